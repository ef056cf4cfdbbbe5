#!/usr/bin/env bash
# peft 0.21.2: a name in target_modules that matches nothing is passed over where another one matches.
#
# A recipe that was written for other module names, or has a misspelt one, trains a part of what it says.
# Only where no name matches at all does it raise.
# Seen: ["q_proj", "key_proj"] adapts q_proj alone, without a warning of it; ["key_proj"] raises
# ValueError.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import transformers
from peft import LoraConfig, get_peft_model

transformers.logging.set_verbosity_error()


def adapted(names):
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    return get_peft_model(model, LoraConfig(r=2, target_modules=names)).targeted_module_names


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = adapted(["q_proj", "key_proj"])
told = [str(warning.message) for warning in caught if "key_proj" in str(warning.message)]
print("adapted:", found, "| warnings of key_proj:", told)
assert found == ["model.layers.0.self_attn.q_proj"] and not told, "changed"
try:
    adapted(["key_proj"])
except ValueError as error:
    print("alone: ValueError:", str(error)[:80])
else:
    raise SystemExit("changed: one name that matches nothing is no error")
PYTHON
