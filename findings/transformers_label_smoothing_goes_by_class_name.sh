#!/usr/bin/env bash
# transformers 5.24.0: Trainer's label smoothing shifts the labels of a causal model by its class's
# name.
#
# A subclass under a name of its own is not in the list of causal classes, so each token is compared
# with itself instead of the next one, without a word.
# Seen: two models with the same weights, one a subclass; their smoothed losses differ, their plain
# ones do not.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import tempfile
import warnings

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()


class Renamed(transformers.LlamaForCausalLM):
    pass


config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(config).eval()
renamed = Renamed(config).eval()
renamed.load_state_dict(model.state_dict())
ids = torch.randint(3, 50, (2, 12))
losses = {}
with tempfile.TemporaryDirectory() as directory, torch.no_grad():
    for smoothing in (0.0, 0.1):
        arguments = transformers.TrainingArguments(
            directory, label_smoothing_factor=smoothing, use_cpu=True, report_to=[]
        )
        for one in (model, renamed):
            trainer = transformers.Trainer(one, arguments)
            loss = trainer.compute_loss(one, {"input_ids": ids, "labels": ids.clone()})
            losses[smoothing, type(one).__name__] = float(loss)
print({f"smoothing {s}, {name}": round(loss, 4) for (s, name), loss in losses.items()})
assert losses[0.0, "Renamed"] == losses[0.0, "LlamaForCausalLM"]
assert abs(losses[0.1, "Renamed"] - losses[0.1, "LlamaForCausalLM"]) > 1e-4, "changed"
PYTHON
