#!/usr/bin/env bash
# transformers 5.24.0: a hybrid whose layers are all recurrent cannot run with the cache it makes
# itself.
#
# Its model asks the cache for a length, and a cache of linear layers alone has none. Mamba-2, whose
# layers are the same, runs.
# Seen: ValueError from forward(use_cache=True) of a Bamba without attention layers; use_cache=False
# runs.
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

config = transformers.BambaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, mamba_n_heads=4, mamba_d_head=16,
    mamba_n_groups=1, mamba_d_state=8, attn_layer_indices=[],
)
model = transformers.BambaForCausalLM(config).eval()
ids = torch.arange(5)[None]
print("layers:", config.layer_types, "| without a cache:", tuple(model(ids, use_cache=False).logits.shape))
try:
    model(ids, use_cache=True)
except ValueError as error:
    print("with one: ValueError:", str(error)[:60], "...")
    assert "get_seq_length" in str(error)
else:
    raise SystemExit("changed: it runs with a cache now")
PYTHON
