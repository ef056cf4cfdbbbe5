#!/usr/bin/env bash
# transformers 5.24.0: the fp8 cache takes its scale from the first call, and clips what comes later.
#
# Tokens whose keys or values are larger than those of the first call are cut off at its range, without
# a word. A cache whose first call has one token has the range of one token.
# Seen: keys of size 19.5 that follow keys of size 3.4 are read back as 3.4; in one call with them they
# are read back as 19.5.
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
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
torch.manual_seed(0)
first = torch.randn(1, 2, 8, 8)
later = 10 * torch.randn(1, 2, 8, 8)
last = torch.zeros(1, 2, 1, 8)


def read_back(*calls):
    """Largest key of the second eight tokens, as later tokens see it."""
    cache = transformers.QuantizedCache("fp8", config)
    for states in (*calls, last):
        keys, _ = cache.update(states, states, 0)
    return float(keys[:, :, 8:16].abs().max())


apart, together = read_back(first, later), read_back(torch.cat([first, later], dim=2))
size = float(later.abs().max())
print(f"largest key {size:.1f}; after a first call {apart:.1f}, in one call {together:.1f}")
assert apart < 0.3 * size and abs(together - size) < 0.1 * size, "changed"
PYTHON
