"""JSON files of what is calibrated on: one list, or with the ending .jsonl a value in each line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CalibrationError


def values_of(path: Path, what: str) -> Any:
    """The value of a JSON file, or a list of those of its lines.

    Args:
        what: it should hold, in the plural.

    Raises:
        CalibrationError: no such file, no text, or no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is no text in UTF-8 (byte {error.start}); give a JSON file of {what}"
        ) from error
    except OSError as error:
        raise CalibrationError(
            f"{path} cannot be read ({error.strerror}); give a JSON file of {what}"
        ) from error
    if path.suffix != ".jsonl":
        return _parsed(text, str(path), what)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [_parsed(line, f"line {number} of {path}", what) for number, line in lines]


def _parsed(text: str, name: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(
            f"{name} is no JSON ({error}); give a JSON list of {what}, or a .jsonl file "
            "with one in each line"
        ) from error
