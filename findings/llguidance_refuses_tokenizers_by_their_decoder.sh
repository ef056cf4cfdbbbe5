#!/usr/bin/env bash
# llguidance 1.9.1: from_tokenizer, which takes fast tokenizers of transformers, refuses those whose
# decoder neither is byte-level nor falls back on bytes.
#
# The tokenizer has one token per character and one for the mark that stands for a space. It decodes
# what it encodes.
# Seen: ValueError "can't determine decoder type" for Fuse alone, Replace and Fuse, Metaspace, WordPiece
# and no decoder; a ByteFallback in front, with no byte token in the vocabulary, is enough to be taken.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
    llguidance==1.9.1 transformers==5.24.0 tokenizers==0.23.3
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import llguidance.hf
import transformers
from tokenizers import Tokenizer, decoders, models

SPACE = decoders.Replace("▁", " ")
DECODERS = {
    "Fuse": decoders.Fuse(),
    "Replace, Fuse": decoders.Sequence([SPACE, decoders.Fuse()]),
    "Metaspace": decoders.Metaspace(),
    "WordPiece": decoders.WordPiece(),
    "none": None,
    "ByteFallback, Fuse": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
}
VOCABULARY = {piece: index for index, piece in enumerate(["</s>", "▁", *"abc"])}
taken = {}
for name, decoder in DECODERS.items():
    backend = Tokenizer(models.BPE(VOCABULARY, []))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert tokenizer.decode(tokenizer("cab")["input_ids"]).replace(" ", "") == "cab"
    try:
        llguidance.hf.from_tokenizer(tokenizer)
    except ValueError as error:
        taken[name] = False
        print(f"{name}: ValueError: {str(error)[:60]}")
        assert "can't determine decoder type" in str(error), "changed"
    else:
        taken[name] = True
        print(f"{name}: taken")
assert [name for name, was in taken.items() if was] == ["ByteFallback, Fuse"], "changed"
PYTHON
