#!/usr/bin/env bash
# torch 2.13.0: under bfloat16 autocast on a CPU, torch.cat refuses float16 tensors.
#
# Autocast brings the tensors of some operations to one type, and on a CPU it knows no rank for
# float16, also if all of them are float16 already. A model that keeps a state in float16 meets it.
# Seen: RuntimeError from prioritize; without autocast, and with float32 tensors, it works.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import torch

halves = [torch.zeros(2, dtype=torch.float16), torch.ones(2, dtype=torch.float16)]
print("without autocast:", torch.cat(halves).dtype)
with torch.autocast("cpu", dtype=torch.bfloat16):
    print("float32 in it:", torch.cat([torch.zeros(2), torch.ones(2)]).dtype)
    try:
        torch.cat(halves)
    except RuntimeError as error:
        print("float16 in it: RuntimeError:", error)
        assert "prioritize" in str(error)
    else:
        raise SystemExit("changed: float16 is taken")
PYTHON
