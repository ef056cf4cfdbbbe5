#!/usr/bin/env bash
# transformers 5.24.0: every pass of Llama4ForConditionalGeneration ends in an AttributeError.
#
# After its text model has run, forward() asks the output of that for `image_outputs`, a field that
# only the whole model's output has; logits are there and are lost. With images or without, and
# with return_dict=False as well. The text model alone runs.
# Seen: "'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'" in all three.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

text = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    intermediate_size_mlp=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
vision = dict(
    hidden_size=32,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    image_size=28,
    patch_size=7,
    projector_input_dim=32,
    projector_output_dim=32,
    vision_output_dim=32,
)
config = Llama4Config(text_config=text, vision_config=vision, image_token_index=63)
model = Llama4ForConditionalGeneration(config).eval()
ids = torch.tensor([[5, 6, 63, 63, 63, 63, 7]])
image = torch.randn(1, 3, 28, 28)
calls = {
    "images": lambda: model(input_ids=ids, pixel_values=image),
    "text": lambda: model(input_ids=ids[:, :2]),
    "a tuple": lambda: model(input_ids=ids, pixel_values=image, return_dict=False),
    "text model alone": lambda: model.language_model(input_ids=ids[:, :2]),
}
ends = {}
for name, call in calls.items():
    try:
        call()
        ends[name] = "runs"
    except AttributeError as error:
        ends[name] = str(error)
    print(f"{name}: {ends[name]}")
assert "image_outputs" in ends["images"] and "image_outputs" in ends["text"], "changed"
assert ends["text model alone"] == "runs", "changed"
PYTHON
