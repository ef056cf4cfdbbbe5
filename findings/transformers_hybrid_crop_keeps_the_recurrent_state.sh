#!/usr/bin/env bash
# transformers 5.24.0: crop() takes tokens from the attention layers of a hybrid's cache, and leaves its
# recurrent states as they are.
#
# After activate_past_recording() it raises nothing, and the cache's length is the shorter one. What is
# decoded next comes from keys of 22 tokens and a state of 25. is_croppable is False, which crop() does
# not ask.
# Seen: Qwen3-Next, 25 tokens, crop(-3): length 22, recurrent state equal to that of 25 tokens and unlike
# that of 22.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

config = transformers.Qwen3NextConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
)
torch.manual_seed(0)
model = transformers.Qwen3NextForCausalLM(config).eval()
ids = torch.randint(3, 50, (1, 25))


def filled(num_tokens):
    cache = transformers.DynamicCache(config=config)
    cache.activate_past_recording()
    with torch.no_grad():
        model(ids[:, :num_tokens], cache=cache, use_cache=True)
    return cache


def state(cache):
    return cache.layers[0].recurrent_states[0]


cropped = filled(25)
cropped.crop(-3)
off = {n: float((state(cropped) - state(filled(n))).abs().max()) for n in (22, 25)}
print("length:", cropped.get_seq_length(), "| croppable:", cropped.is_croppable)
print("state differs from that of 22 tokens by", off[22], "and from that of 25 by", off[25])
assert cropped.get_seq_length() == 22 and not cropped.is_croppable
assert off[25] == 0 < off[22], "changed"
PYTHON
