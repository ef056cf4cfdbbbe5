#!/usr/bin/env bash
# transformers 5.24.0: getattr with a default, and hasattr, raise on a config with per_layer_config.
#
# Reading an attribute that differs by layer raises a RuntimeError, which neither of them catches.
# Seen: AmbiguousGlobalPerLayerAttributeError from getattr(config, 'num_key_value_heads', None) and
# from hasattr; plain attributes answer.
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

config = transformers.AutoConfig.for_model(
    "llama", num_hidden_layers=2, per_layer_config={1: {"num_key_value_heads": 4}}
)
raised = []
for read in (
    lambda: getattr(config, "num_key_value_heads", None),
    lambda: hasattr(config, "num_key_value_heads"),
):
    try:
        read()
    except RuntimeError as error:
        raised.append(type(error).__name__)
print(raised, "| hidden_size:", config.hidden_size)
assert raised == ["AmbiguousGlobalPerLayerAttributeError"] * 2, "changed"
PYTHON
