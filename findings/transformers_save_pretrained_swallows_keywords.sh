#!/usr/bin/env bash
# transformers 5.24.0: save_pretrained takes any keyword, and a misspelt one does nothing.
#
# The same goes for names given to a config. from_pretrained of a model, by contrast, refuses a keyword
# that it does not know.
# Seen: save_pretrained(max_shard_sise="10KB") writes one file, max_shard_size="10KB" several;
# LlamaConfig(num_hiden_layers=3) has 32 layers; from_pretrained(dtpye=...) raises TypeError.
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

import tempfile
from pathlib import Path

config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
model = transformers.LlamaForCausalLM(config)
counts = {}
for name in ("max_shard_size", "max_shard_sise"):
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, **{name: "10KB"})
        counts[name] = len(list(Path(directory).glob("*.safetensors")))
layers = transformers.LlamaConfig(num_hiden_layers=3).num_hidden_layers
print("files:", counts, "| layers:", layers)
with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    try:
        transformers.LlamaForCausalLM.from_pretrained(directory, dtpye=torch.float16)
    except TypeError as error:
        print("from_pretrained: TypeError:", error)
    else:
        raise SystemExit("changed: from_pretrained takes any keyword")
assert counts["max_shard_size"] > 1 == counts["max_shard_sise"] and layers == 32, "changed"
PYTHON
