#!/usr/bin/env bash
# transformers 5.24.0: where published weights are fused, save_pretrained writes a part of them under
# the name of the whole, without a warning, and from_pretrained raises on what it wrote.
#
# The checkpoints of sarvam_moe have one matrix for queries, keys and values; glm4_moe, the same class,
# has three. Only the weights that were trained are saved, by state_dict=.
# Seen with q_proj alone: as glm4_moe it is saved by its name and loaded; as sarvam_moe its 64 rows are
# saved as query_key_value, where 128 are due, and loading ends in a RuntimeError. With
# save_original_format=False it is saved by its name and loaded.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
SIZES = {
    "vocab_size": 50, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}


def saved_and_loaded(model_type, **options):
    """What is in the file, how many warnings came, and whether the trained weights come back."""
    config = transformers.AutoConfig.for_model(model_type, **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    trained = {name: w for name, w in model.state_dict().items() if "q_proj" in name}
    with tempfile.TemporaryDirectory() as directory:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model.save_pretrained(directory, state_dict=trained, **options)
        file = load_file(Path(directory, "model.safetensors"))
        shapes = {name: tuple(weights.shape) for name, weights in file.items()}
        try:
            loaded = type(model).from_pretrained(directory).state_dict()
        except RuntimeError as error:
            return shapes, len(told), f"RuntimeError: {error}"
    return shapes, len(told), all(torch.equal(loaded[name], w) for name, w in trained.items())


plain, fused = saved_and_loaded("glm4_moe"), saved_and_loaded("sarvam_moe")
by_name = saved_and_loaded("sarvam_moe", save_original_format=False)
print("glm4_moe:", *plain)
print("sarvam_moe:", *fused)
print("sarvam_moe, save_original_format=False:", *by_name)
assert plain[2] is True and by_name == plain
assert fused[0] == {"model.layers.0.attention.query_key_value.weight": (64, 64)}, "changed"
assert fused[1] == 0 and "RuntimeError" in str(fused[2]), "changed"
PYTHON
