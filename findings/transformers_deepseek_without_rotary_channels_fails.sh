#!/usr/bin/env bash
# transformers 5.24.0: DeepseekV3Config takes qk_rope_head_dim=0, keys without a rotated part, and the model
# fails in its forward pass.
#
# Seen: the rotary embedding takes a width of 0 for none at all and makes angles for hidden_size /
# num_attention_heads channels (inv_freq of 4 for 8), which meet a query part of width 0: RuntimeError
# "The size of tensor a (0) must match the size of tensor b (4)". With 4 channels it runs.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import torch
import transformers

transformers.logging.set_verbosity_error()
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "first_k_dense_replace": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
}


def model(width):
    config = transformers.DeepseekV3Config(**SIZES, qk_rope_head_dim=width)
    return transformers.DeepseekV3ForCausalLM(config).eval()


ids = torch.tensor([[1, 2, 3]])
assert model(4)(ids).logits.shape == (1, 3, 50)
unrotated = model(0)
angles = unrotated.model.rotary_emb.inv_freq.numel()
print("frequencies for a width of 0:", angles)
assert angles == 4, "changed"
try:
    unrotated(ids)
except RuntimeError as error:
    print("RuntimeError:", error)
    assert "tensor a (0) must match" in str(error)
else:
    raise AssertionError("changed: it runs")
PYTHON
