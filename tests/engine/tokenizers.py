"""Small tokenizers of the kinds that language models have, made on the spot."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cacheshrink_hybrid.demo import model_path
from tests.texts import word_tokenizer

TEXTS = (
    "Once upon a time, there was a little girl named Lily.",
    "Grüße aus Zürich:  zwei Leerzeichen,\n\tein Tab und 世界 👩‍👩‍👧 naïve.",
    " begins with a space",
    "日本語だけ",
    "x" * 80,
)
PIECES = ("Once", "upon", "a", "time", "there", "was", "little", "girl", "named", "Lily", "space")


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@cache
def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As of Llama 2: words carry their space, the first space of a text is dropped, and characters
    outside the vocabulary are bytes."""
    special = [("<pad>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    byte = [(f"<0x{value:02X}>", -9.0) for value in range(256)]
    words = [(f"▁{piece}", -3.0) for piece in PIECES] + [(piece, -4.0) for piece in PIECES]
    letters = [(letter, -6.0) for letter in "▁,.:xbdehinrstuw" if letter not in PIECES]
    model = models.Unigram([*special, *byte, *words, *letters], unk_id=3, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrapped(tokenizer)


@cache
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As of GPT-2: a token is one or more bytes."""
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("Ġ", "a"), ("i", "n"), ("Ã", "¼"), ("æ", "Ĺ")]
    names += [first + second for first, second in merges]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer)


@cache
def character_tokenizer() -> PreTrainedTokenizerBase:
    """That of the model which ships with the package."""
    return AutoTokenizer.from_pretrained(model_path())


TOKENIZERS = {
    "byte fallback": byte_fallback_tokenizer,
    "byte level": byte_level_tokenizer,
    "characters": character_tokenizer,
    "words": word_tokenizer,
}
