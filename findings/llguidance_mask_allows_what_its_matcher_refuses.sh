#!/usr/bin/env bash
# llguidance 1.9.1: where only one text may follow, the mask of a TokenizerWrapper may allow only a
# token that the grammar forbids and the same matcher refuses.
#
# The wrapper calls a tokenizer that writes a space in front of its text, as Llama 2's does. Where one
# text is certain, the mask allows what the call gives for it; elsewhere it goes by the tokens' bytes.
# Seen for the grammar "yes": the mask allows " yes" alone, of which the matcher takes no token, and
# there is no error; for "yes" | "no", and for both with from_tokenizer, what is allowed is taken.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
    llguidance==1.9.1 transformers==5.24.0 tokenizers==0.23.3 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import llguidance.hf
import transformers
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import Tokenizer, decoders, models, normalizers

PIECES = ["<unk>", "</s>", "▁", *"yesno", "ye", "yes", "▁yes"]
MERGES = [("y", "e"), ("ye", "s"), ("▁", "yes")]
backend = Tokenizer(models.BPE({p: i for i, p in enumerate(dict.fromkeys(PIECES))}, MERGES))
backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
)
backend.decoder = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
)


class Wrapped:
    """What TokenizerWrapper asks for."""

    eos_token_id, bos_token_id = tokenizer.eos_token_id, None
    special_token_ids = tokenizer.all_special_ids
    tokens = [
        piece.replace("▁", " ").encode()
        for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ]

    def __call__(self, text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]


def allowed(known, grammar):
    """Tokens that the mask allows, and those of them that the matcher takes."""
    matcher = LLMatcher(known, grammar)
    mask = allocate_token_bitmask(1, len(Wrapped.tokens))
    fill_next_token_bitmask(matcher, mask)
    ids = [i for i in range(len(Wrapped.tokens)) if mask[0, i // 32] >> i % 32 & 1]
    taken = [i for i in ids if matcher.deep_copy().try_consume_tokens([i]) == 1]
    assert not matcher.is_error(), matcher.get_error()
    return [Wrapped.tokens[i] for i in ids], [Wrapped.tokens[i] for i in taken]


assert tokenizer.decode(Wrapped()("yes")) == "yes"
seen = {}
for name, known in (
    ("from_tokenizer", llguidance.hf.from_tokenizer(tokenizer)),
    ("TokenizerWrapper", LLTokenizer(TokenizerWrapper(Wrapped()))),
):
    for grammar in ('start: "yes"', 'start: "yes" | "no"'):
        mask, taken = seen[name, grammar] = allowed(known, grammar)
        print(f"{name}, {grammar}: the mask allows {mask}, the matcher takes {taken} of them")
wrong = seen.pop(("TokenizerWrapper", 'start: "yes"'))
assert all(mask == taken and mask for mask, taken in seen.values())
assert wrong == ([b" yes"], []), "changed"
PYTHON
