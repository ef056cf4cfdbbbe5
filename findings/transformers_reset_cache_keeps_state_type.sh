#!/usr/bin/env bash
# transformers 5.24.0: a DynamicCache of a hybrid that was reset keeps the number format of its
# convolution states, and rounds those of a model in a wider one, in silence.
#
# Keys and values are made anew in the type that comes; convolution states are zeroed in place.
# Seen: after bfloat16, reset() and model.float(), decoding differs from that with a new cache by about
# 1e-2 of the largest logit; the cache says bfloat16 of its convolution states, float32 of its keys.
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
torch.manual_seed(0)
config = transformers.BambaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, mamba_n_heads=4, mamba_d_head=16,
    mamba_n_groups=1, mamba_d_state=8, attn_layer_indices=[1], initializer_range=0.3,
)
model = transformers.BambaForCausalLM(config).eval().bfloat16()
ids = torch.arange(12)[None] % 50


@torch.no_grad()
def decoded(cache):
    model(ids[:, :8], cache=cache)
    return model(ids[:, 8:9], cache=cache).logits


used = transformers.DynamicCache(config=config)
decoded(used)
used.reset()
model.float()
fresh = transformers.DynamicCache(config=config)
expected, found = decoded(fresh), decoded(used)
states = {
    name: layer.conv_states[0].dtype
    for name, cache in (("fresh", fresh), ("reset", used))
    for layer in cache.layers
    if getattr(layer, "conv_states", None)
}
keys = used.layers[1].keys.dtype
difference = float((found - expected).abs().max() / expected.abs().max())
print("convolution states:", states, "| keys:", keys, f"| difference: {difference:.1e}")
assert states == {"fresh": torch.float32, "reset": torch.bfloat16} and keys == torch.float32
assert difference > 1e-5
PYTHON
