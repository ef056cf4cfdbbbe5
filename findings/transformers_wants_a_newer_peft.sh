#!/usr/bin/env bash
# transformers 5.24.0 and peft 0.21.2, installed together without a complaint of pip, do not work
# together.
#
# model.add_adapter() and load_adapter() ask for peft 0.22.0 or newer when they are called;
# get_peft_model() of the same peft works on the same model.
# Seen: ValueError from add_adapter; get_peft_model returns a model that runs.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

from peft import LoraConfig, get_peft_model

config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
settings = LoraConfig(r=2, target_modules=["q_proj"])
try:
    transformers.LlamaForCausalLM(config).add_adapter(settings)
except ValueError as error:
    print("add_adapter: ValueError:", error)
    assert "0.22.0" in str(error)
else:
    raise SystemExit("changed: add_adapter works")
wrapped = get_peft_model(transformers.LlamaForCausalLM(config), settings)
print("get_peft_model:", tuple(wrapped(torch.arange(5)[None]).logits.shape))
PYTHON
