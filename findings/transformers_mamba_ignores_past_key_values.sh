#!/usr/bin/env bash
# transformers 5.24.0: a cache given to Mamba-2 as past_key_values is dropped without a word.
#
# Attention models rename that keyword to `cache`; recurrent ones rename `cache_params` alone and
# swallow the other, so that every decoded token starts from an empty state.
# Seen: logits of the sixth token equal those of the token alone; under the names cache and
# cache_params they are right.
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

config = transformers.Mamba2Config(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8,
    n_groups=1, chunk_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
torch.manual_seed(0)
model = transformers.Mamba2ForCausalLM(config).eval()
ids = torch.randint(3, 50, (1, 6))
with torch.no_grad():
    due = model(ids, use_cache=False).logits[0, -1]
    alone = model(ids[:, 5:], use_cache=False).logits[0, -1]
    off = {}
    for name in ("cache", "cache_params", "past_key_values"):
        cache = transformers.DynamicCache(config=config)
        model(ids[:, :5], use_cache=True, **{name: cache})
        last = model(ids[:, 5:], use_cache=True, **{name: cache}).logits[0, -1]
        off[name] = [float((last - other).abs().max()) for other in (due, alone)]
        print(f"{name}: off by {off[name][0]:.1e}, from the token alone by {off[name][1]:.1e}")
assert off["cache"][0] < 1e-5 and off["cache_params"][0] < 1e-5
assert off["past_key_values"][1] < 1e-6 < off["past_key_values"][0], "changed"
PYTHON
