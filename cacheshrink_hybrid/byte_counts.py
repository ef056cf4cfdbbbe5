"""Amounts of memory as text: "2GiB", "500 MB", or "60%" of what is free."""

from __future__ import annotations

import re
from decimal import Decimal

from .errors import ConfigError

UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**n for n, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**n for n, letter in enumerate("kmgt", start=1)},
}


def parse_bytes(text: str) -> int:
    """Bytes of text such as "2GiB", "500 MB" or "1.5gib"; powers of 1024 with an i, else of 1000.

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise ConfigError(
            f"{text!r} is no amount of memory; write a number with a unit, such as 2GiB, 500MB "
            "or 4096"
        )
    return int(Decimal(match[1]) * UNITS[match[2].lower()])


def parse_budget(text: str) -> int | float:
    """Text as bytes, an int, or, where it ends in %, as the fraction of what is free, a float.

    Raises:
        ConfigError: neither, nothing, or more than all.
    """
    if not text.strip().endswith("%"):
        num_bytes = parse_bytes(text)
        if num_bytes < 1:
            raise ConfigError(f"budget={text!r} must be positive")
        return num_bytes
    try:
        fraction = float(text.strip()[:-1]) / 100
    except ValueError as error:
        raise ConfigError(f"{text!r} is no percentage; write one such as 60%") from error
    if not 0 < fraction <= 1:
        raise ConfigError(f"budget={text!r} must be above 0% and at most 100% of free memory")
    return fraction
