#!/usr/bin/env bash
# transformers 5.24.0: generate() with a cache that holds the whole prompt feeds the whole prompt again
# behind it, and generates other tokens, in silence.
#
# What the cache holds of the prompt is left out of what is fed, by taking its last n tokens; where n is
# 0, all of them are taken.
# Seen with a prompt of 20 tokens: caches of 0, 10 and 19 of them give the same 4 tokens and end with 23;
# a cache of 20 gives others and ends with 43.
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

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, eos_token_id=None,
)
model = transformers.LlamaForCausalLM(config).eval()
prompt = torch.randint(3, 50, (1, 20))
seen = {}
for num_cached in (0, 10, 19, 20):
    cache = transformers.DynamicCache(config=config)
    if num_cached:
        with torch.no_grad():
            model(prompt[:, :num_cached], cache=cache)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = model.generate(prompt, cache=cache, max_new_tokens=4, do_sample=False)
    seen[num_cached] = found[0, 20:].tolist(), cache.get_seq_length(), len(told)
    print(f"{num_cached} tokens in the cache: new {seen[num_cached][0]}, then {seen[num_cached][1]}, "
          f"warnings: {len(told)}")
full = seen.pop(20)
assert all(found == seen[0] and found[1] == 23 for found in seen.values())
assert full[0] != seen[0][0] and full[1:] == (43, 0), "changed"
PYTHON
