"""Pairs of texts in a file, to calibrate an encoder-decoder model on: what its encoder reads, and
what its decoder is to give, under two names that every pair has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CalibrationError
from .json_files import values_of

WrittenPair = tuple[str, str]


def load_pairs(path: Path, fields: Sequence[str]) -> list[WrittenPair]:
    """The pairs of a file: a JSON list of objects, or with the ending .jsonl one in each line.

    Args:
        fields: names of the encoder's text and the decoder's in each object.

    Raises:
        CalibrationError: no such file, none of JSON, or something else than pairs.
    """
    if len(set(fields)) != 2 or not all(isinstance(name, str) and name for name in fields):
        raise CalibrationError(
            f"pair_fields={tuple(fields)!r} are no two different names; give that of what the "
            "encoder reads and that of what the decoder is to give"
        )
    found = values_of(path, "pairs")
    if not isinstance(found, list) or not found:
        fault = "holds no pair" if isinstance(found, list) else f"is a {type(found).__name__}"
        raise CalibrationError(
            f"{path} {fault}; give a JSON list of objects such as {_example(fields)}, or a .jsonl "
            "file with one in each line"
        )
    return [_pair(one, f"pair {number} of {path}", fields) for number, one in enumerate(found, 1)]


def _pair(one: Any, name: str, fields: Sequence[str]) -> WrittenPair:
    if not isinstance(one, Mapping):
        raise CalibrationError(
            f"{name} is a {type(one).__name__}; give an object such as {_example(fields)}"
        )
    missing = [field for field in fields if field not in one]
    if missing:
        raise CalibrationError(
            f"{name} lacks {' and '.join(missing)} and has {', '.join(one) or 'nothing'}; name its "
            "two texts by pair_fields (--pair-fields), that of the encoder first"
        )
    for field in fields:
        if not isinstance(one[field], str) or not one[field].strip():
            kind = "no text" if isinstance(one[field], str) else f"a {type(one[field]).__name__}"
            raise CalibrationError(f"{field} of {name} is {kind}; give a string with some")
    return one[fields[0]], one[fields[1]]


def _example(fields: Sequence[str]) -> str:
    return f'{{"{fields[0]}": "...", "{fields[1]}": "..."}}'
