#!/usr/bin/env bash
# transformers 5.24.0: from_pretrained sets requires_grad on every parameter that it loads.
#
# A parameter that a model makes with requires_grad=False (a scale, a basis that is not to be
# trained) is frozen after __init__ and trainable after loading; an optimizer over
# model.parameters() then moves it.
# Seen: False before saving, True after loading.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import tempfile
import warnings

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()


class Scaled(transformers.LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(3), requires_grad=False)


config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
model = Scaled(config)
with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    loaded = Scaled.from_pretrained(directory)
print("made:", model.scale.requires_grad, "| loaded:", loaded.scale.requires_grad)
assert not model.scale.requires_grad and loaded.scale.requires_grad, "changed"
PYTHON
