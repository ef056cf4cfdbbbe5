#!/usr/bin/env bash
# transformers 5.24.0: an infinite value is written to config.json as an object.
#
# Mamba-2's time_step_limit ends at infinity by default. Programs that read config.json with a JSON
# reader of their own find a dictionary where a number is due; AutoConfig turns it back.
# Seen: "time_step_limit": [0.0, {"__float__": "Infinity"}].
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
import tempfile
import warnings
from pathlib import Path

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

with tempfile.TemporaryDirectory() as directory:
    transformers.Mamba2Config().save_pretrained(directory)
    written = json.loads(Path(directory, "config.json").read_text())["time_step_limit"]
    read = transformers.AutoConfig.from_pretrained(directory).time_step_limit
print("written:", written, "| read back:", read)
assert written[1] == {"__float__": "Infinity"} and read[1] == float("inf"), "changed"
PYTHON
