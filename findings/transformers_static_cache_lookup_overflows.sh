#!/usr/bin/env bash
# transformers 5.24.0: generate() makes a static cache too short for prompt look-up decoding.
#
# The buffer holds max_length - 1 tokens, but the candidates of a look-up are not capped at what is
# left, so the pass over them writes behind its end.
# Seen: IndexError from index_copy_ with the static cache, where the dynamic one finishes.
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
    vocab_size=7, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, eos_token_id=None, pad_token_id=0,
)
torch.manual_seed(8)
model = transformers.LlamaForCausalLM(config).eval()
ids = torch.randint(0, 7, (1, 4)).repeat(1, 3)
settings = {"max_new_tokens": 12, "do_sample": False, "prompt_lookup_num_tokens": 3}
print("dynamic cache:", model.generate(ids, **settings).shape[1], "tokens")
try:
    model.generate(ids, cache_implementation="static", **settings)
except IndexError as error:
    print("static cache: IndexError:", error)
    assert "out of bounds" in str(error)
else:
    raise SystemExit("changed: the static cache is long enough now")
PYTHON
