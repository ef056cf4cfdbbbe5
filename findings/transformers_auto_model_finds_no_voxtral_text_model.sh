#!/usr/bin/env bash
# transformers 5.24.0: AutoModel lists VoxtralRealtimeTextModel, and does not find it.
#
# The class is in the modeling file, but not among the names that the file gives out, so that the
# text part of Voxtral Realtime cannot be made from its config, as those of other wholes can.
# Seen: listed "VoxtralRealtimeTextModel"; "Could not find VoxtralRealtimeTextModel neither in ...",
# where Qwen2-VL's text model is made.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$work/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

small = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}
listed = MODEL_MAPPING_NAMES["voxtral_realtime_text"]
made = type(AutoModel.from_config(AutoConfig.for_model("qwen2_vl_text", **small))).__name__
try:
    AutoModel.from_config(AutoConfig.for_model("voxtral_realtime_text", **small))
    said = "made"
except ValueError as error:
    said = str(error).partition(" neither")[0]
print(f"qwen2_vl_text: {made}; voxtral_realtime_text: listed {listed}; {said}")
assert listed == "VoxtralRealtimeTextModel", "changed"
assert said == "Could not find VoxtralRealtimeTextModel", "changed"
PYTHON
