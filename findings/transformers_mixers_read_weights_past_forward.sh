#!/usr/bin/env bash
# transformers 5.24.0: Mamba layers read the weights of conv1d and dt_proj instead of calling them.
#
# Whatever stands around these layers (a hook, an adapter, a parametrization by a wrapper) is passed
# over without a word, while in_proj and x_proj are called.
# Seen: forward hooks of conv1d and dt_proj are never called in Jamba, those of in_proj and x_proj
# are.
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

config = transformers.JambaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_experts=1, mamba_d_state=8,
    attn_layer_offset=1, attn_layer_period=2, use_mamba_kernels=False,
)
model = transformers.JambaForCausalLM(config).eval()
mixer, called = model.model.layers[0].mamba, []
for name in ("in_proj", "conv1d", "x_proj", "dt_proj"):
    module = getattr(mixer, name)
    module.register_forward_hook(lambda module, given, output, name=name: called.append(name))
model(torch.arange(5)[None])
print("called:", called)
assert called == ["in_proj", "x_proj"], "changed"
PYTHON
