#!/usr/bin/env bash
# safetensors 0.8.0: a complex tensor that torch conjugates lazily is saved without its conjugation.
#
# x.conj() is a view with a flag; the file gets the memory behind it. x.conj().resolve_conj() is saved
# right, and views that are transposed instead are refused.
# Seen: x.conj() of 1+2i is read back as 1+2i.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy packaging
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

x = torch.tensor([1 + 2j, 3 - 4j])
read = {}
with tempfile.TemporaryDirectory() as directory:
    for name, tensor in {"lazy": x.conj(), "resolved": x.conj().resolve_conj()}.items():
        path = Path(directory, f"{name}.safetensors")
        save_file({"x": tensor}, path)
        read[name] = load_file(path)["x"]
print("saved:", x.conj().tolist())
print("read:", {name: tensor.tolist() for name, tensor in read.items()})
assert torch.equal(read["resolved"], x.conj()) and torch.equal(read["lazy"], x), "changed"
PYTHON
