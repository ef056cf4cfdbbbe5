#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer makes an empty tokenizer of a directory without tokenizer files,
# for some model types.
#
# A checkpoint that was saved without its tokenizer loads, and every text becomes no tokens at all (or
# the same few). For other types, such as Llama, the same directory is an error.
# Seen: gpt2, opt, qwen2 and mamba2 give a tokenizer of one or two entries, and "Hello world" is [];
# llama raises ValueError.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import tempfile

import transformers

transformers.logging.set_verbosity_error()


def tokenizer_of(model_type):
    with tempfile.TemporaryDirectory() as directory:
        transformers.AutoConfig.for_model(model_type).save_pretrained(directory)
        return transformers.AutoTokenizer.from_pretrained(directory)


for model_type in ("gpt2", "opt", "qwen2", "mamba2"):
    tokenizer = tokenizer_of(model_type)
    ids = tokenizer("Hello world").input_ids
    print(f"{model_type}: {type(tokenizer).__name__} of {len(tokenizer)} entries, {ids}")
    assert ids == [] and len(tokenizer) <= 2, "changed"
try:
    tokenizer_of("llama")
except ValueError as error:
    print("llama: ValueError:", str(error).splitlines()[0])
else:
    raise SystemExit("changed: llama loads too")
PYTHON
