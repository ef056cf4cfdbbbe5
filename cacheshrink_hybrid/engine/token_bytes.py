"""What single tokens write, as bytes: a character may take several tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of each token of a tokenizer.

    Byte-level tokenizers name bytes by characters, those with byte fallback by `<0x..>`, and others
    write a space as a sign of their own; their decoders say which. Special tokens write their names
    here, which texts leave out.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        decoder: Any = None
        if tokenizer.is_fast:
            decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
        parts = list(_flat(decoder))
        kinds = {part["type"] for part in parts}
        self._by_character = _byte_of_character() if "ByteLevel" in kinds else {}
        self._falls_back = "ByteFallback" in kinds
        self._signs = dict(sign for part in parts if (sign := _sign(part)) is not None)

    def __call__(self, token: int) -> bytes:
        """Of one token; empty for a number that no token has."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if token in self._special:
            return str(piece).encode()
        if not self._tokenizer.is_fast:
            return str(self._tokenizer.decode([token])).encode()
        if self._by_character:
            known = [self._by_character.get(character) for character in piece]
            whole = [value for value in known if value is not None]
            return bytes(whole) if len(whole) == len(known) else str(piece).encode()
        if self._falls_back and (found := FALLBACK.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        for sign, written in self._signs.items():
            piece = piece.replace(sign, written)
        return str(piece).encode()

    def is_special(self, token: int) -> bool:
        return token in self._special

    def text(self, token: int) -> str:
        """The same as text; bytes that are no characters become replacement characters."""
        return self(token).decode(errors="replace")

    def name(self, token: int) -> str:
        """`text`, and of bytes that are no characters `bytes:` and each of them, as OpenAI's legacy
        completions tell them: no two tokens are the same then, and clients can put them together.
        """
        written = self(token)
        try:
            return written.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def _flat(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A decoder's parts, those of sequences one by one."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _flat(part)
    else:
        yield decoder


def _sign(part: dict[str, Any]) -> tuple[str, str] | None:
    """What a part of a decoder replaces, and by what."""
    if part["type"] == "Metaspace":
        return part["replacement"], " "
    if part["type"] == "Replace" and "String" in part["pattern"]:
        return part["pattern"]["String"], part["content"]
    return None


def _byte_of_character() -> dict[str, int]:
    """How byte-level tokenizers name bytes: visible characters of Latin-1 by themselves, the others
    by the characters from 256 on, in order."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (value for value in range(256) if value not in visible)
    return {chr(value): value for value in visible} | {
        chr(256 + number): value for number, value in enumerate(others)
    }
