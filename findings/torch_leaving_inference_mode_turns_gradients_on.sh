#!/usr/bin/env bash
# torch 2.13.0: inference_mode(False) turns gradients on, also inside no_grad().
#
# Code that leaves inference mode for a moment, so that the buffers it makes can be written to
# later, records a graph there although its caller asked for none.
# Seen: is_grad_enabled() is False in no_grad(), True in inference_mode(False) inside it, False
# again with the two the other way round.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import torch

with torch.no_grad(), torch.inference_mode(False):
    inner = torch.is_grad_enabled()
with torch.inference_mode(False), torch.no_grad():
    outer = torch.is_grad_enabled()
print("inference_mode(False) inside no_grad:", inner, "| no_grad inside it:", outer)
assert inner and not outer, "changed"
PYTHON
