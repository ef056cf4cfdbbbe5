#!/usr/bin/env bash
# torch 2.13.0: a product of a CPU tensor and a meta tensor gives a CPU tensor, whose values nobody
# computed.
#
# A weight that was offloaded, and is read past the hook that would bring it back, is on the device meta.
# add and mul refuse it; mm, linear and addmm return a result.
# Seen: mm, linear and addmm on the CPU without an error; RuntimeError from add and mul.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import torch

x, weight = torch.ones(2, 3), torch.empty(3, 4, device="meta")
products = {
    "mm": lambda: x @ weight,
    "linear": lambda: torch.nn.functional.linear(x, weight.t()),
    "addmm": lambda: torch.addmm(torch.ones(4), x, weight),
}
for name, product in products.items():
    result = product()
    print(f"{name}: a tensor {tuple(result.shape)} on {result.device}")
    assert result.device.type == "cpu", "changed"
for name, operation in {"add": torch.add, "mul": torch.mul}.items():
    try:
        operation(torch.ones(3, 4), weight)
    except RuntimeError as error:
        print(f"{name}: RuntimeError: {error}")
    else:
        raise SystemExit(f"changed: {name} takes it too")
PYTHON
