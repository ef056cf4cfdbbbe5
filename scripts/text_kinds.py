"""Kinds of text: windows to calibrate on and windows to score, from what a command line names."""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cacheshrink_hybrid.calibration.chats import load_chats
from cacheshrink_hybrid.calibration.text import load_texts
from cacheshrink_hybrid.chat_template import chat_text
from cacheshrink_hybrid.demo.corpus import PYTHON_DOCS
from cacheshrink_hybrid.errors import ConfigError

from .benchmark import DOCUMENT_SEPARATOR, read_documents, spread

PYTHON_CODE = "python-code"
"""The modules of the standard library."""
SOURCES = (
    "a text file (documents separated by `<|endoftext|>`, else cut at the ends of lines), a "
    f"directory of text files, a .jsonl of conversations, {PYTHON_DOCS} or {PYTHON_CODE}"
)


@dataclass(frozen=True)
class TextKind:
    """A kind of text, or a mix of several.

    Attributes:
        name: in tables.
        sources: each one of `SOURCES`.
    """

    name: str
    sources: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> TextKind:
        """`NAME=SOURCE`, or `NAME=SOURCE+SOURCE` for a mix."""
        name, separator, sources = text.partition("=")
        if not (separator and name and all(sources.split("+"))):
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SOURCE or NAME=SOURCE+SOURCE")
        return cls(name, tuple(sources.split("+")))

    @property
    def described(self) -> str:
        """Its sources without their places."""
        return "+".join(Path(source).name for source in self.sources)

    def windows(
        self, tokenizer: PreTrainedTokenizerBase, *, seen: int, scored: int, max_length: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Windows (1, T) to calibrate on, out of the first half of each source, and to score, out
        of the second; of a mix in turn.

        Args:
            seen, scored: how many of each, at most.
            max_length: tokens of a window at most.
        """
        halves = [
            _halves(source, tokenizer, max(seen, scored), max_length) for source in self.sources
        ]
        return tuple(  # type: ignore[return-value]
            [
                torch.tensor([tokenizer(text).input_ids[:max_length]])
                for text in _in_turn([spread(half[i], count) for half in halves])[:count]
            ]
            for i, count in ((0, seen), (1, scored))
        )


def _halves(
    source: str, tokenizer: PreTrainedTokenizerBase, number: int, max_length: int
) -> tuple[list[str], list[str]]:
    if source == PYTHON_DOCS:
        train, test = (
            load_texts(None, PYTHON_DOCS, None, num_samples=number, split=split)
            for split in ("train", "test")
        )
        return train, test
    documents = list(_documents(source, tokenizer, max_length))
    if len(documents) < 2:
        raise ConfigError(f"{source} has {len(documents)} documents; two halves need at least 2")
    middle = len(documents) // 2
    return documents[:middle], documents[middle:]


def _documents(source: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    if source.endswith(".jsonl"):
        return [chat_text(tokenizer, chat) for chat in load_chats(source)]
    path, pattern = Path(source), "*.txt"
    if source == PYTHON_CODE:
        path, pattern = Path(sysconfig.get_path("stdlib")), "*.py"
    files = sorted(path.glob(pattern)) if path.is_dir() else [path]
    return list(chain.from_iterable(long_documents(file, max_length) for file in files))


def long_documents(path: Path, max_length: int) -> list[str]:
    """Documents of a file; where none are marked, it is cut at the ends of lines, so that each
    fills a window of a tokenizer whose tokens have up to four characters."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if DOCUMENT_SEPARATOR in text:
        return read_documents(path)
    documents = [""]
    for line in text.splitlines(keepends=True):
        if len(documents[-1]) >= 4 * max_length:
            documents.append("")
        documents[-1] += line
    return documents


def _in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    return [item for row in zip_longest(*lists) for item in row if item is not None]
