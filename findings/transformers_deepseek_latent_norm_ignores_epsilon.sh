#!/usr/bin/env bash
# transformers 5.24.0: the norm of the latent in models of DeepSeek's attention has an epsilon of 1e-6,
# whatever rms_norm_eps says, which all other norms of the layer follow.
#
# Seen with rms_norm_eps=1e-3 in DeepseekV2, DeepseekV3 and Glm4MoeLite, whose own default is 1e-5. Who rebuilds the
# layer from its config gets other logits, the more so the smaller the latent is.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import transformers

transformers.logging.set_verbosity_error()
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16,
    "num_hidden_layers": 1, "first_k_dense_replace": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 2, "num_experts_per_tok": 1,
    "n_group": 1, "topk_group": 1,
}
for name in ("DeepseekV2", "DeepseekV3", "Glm4MoeLite"):
    config = getattr(transformers, f"{name}Config")(**SIZES, rms_norm_eps=1e-3)
    layer = getattr(transformers, f"{name}ForCausalLM")(config).model.layers[0]
    found = {
        "input_layernorm": layer.input_layernorm.variance_epsilon,
        "kv_a_layernorm": layer.self_attn.kv_a_layernorm.variance_epsilon,
        "q_a_layernorm": layer.self_attn.q_a_layernorm.variance_epsilon,
    }
    print(name, found)
    assert found == {"input_layernorm": 1e-3, "kv_a_layernorm": 1e-6, "q_a_layernorm": 1e-6}, "changed"
PYTHON
