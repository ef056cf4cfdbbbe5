#!/usr/bin/env bash
# transformers 5.24.0: two different caches in one call are no error; the one under the old name is
# dropped.
#
# A decorator renames past_key_values to cache, and lets the new name win if both are there.
# Seen: after llama(ids, past_key_values=a, cache=b) a holds 0 tokens and b all of them.
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

config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)
model = transformers.LlamaForCausalLM(config).eval()
old, new = transformers.DynamicCache(), transformers.DynamicCache()
model(torch.arange(5)[None], past_key_values=old, cache=new)
print("past_key_values:", old.get_seq_length(), "tokens; cache:", new.get_seq_length())
assert (old.get_seq_length(), new.get_seq_length()) == (0, 5), "changed"
PYTHON
