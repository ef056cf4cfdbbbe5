"""Which integers settings may be."""

from __future__ import annotations

from typing import TypeGuard

from .errors import ConfigError

SEEDS = range(-(2**63), 2**64)
"""Seeds that torch's generators take."""
NUMPY_SEEDS = range(2**32)
"""Seeds that NumPy's global generator takes, which transformers seeds together with torch's."""
LARGEST = 2**63 - 1
"""The largest size or count that a tensor can have, and that Python counts by."""


def is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def count_fault(name: str, value: object, least: int) -> str | None:
    """What keeps a setting from being a count of at least `least`; None for nothing."""
    if is_integer(value) and value > LARGEST:
        return f"{name}={shown(value)} must be a whole number of at most {LARGEST}"
    if not is_integer(value) or value < least:
        return f"{name}={shown(value)} must be a whole number >= {least}"
    return None


def check_counts(**given: object) -> None:
    """Refuse settings that are no counts of at least 1.

    Raises:
        ConfigError: with all of them.
    """
    found = [count_fault(name, value, 1) for name, value in given.items()]
    faults = [fault for fault in found if fault is not None]
    if faults:
        raise ConfigError("; ".join(faults))


def seed_fault(name: str, value: object, allowed: range = SEEDS) -> str | None:
    """What keeps a setting from being a seed; None for nothing."""
    if is_integer(value) and value in allowed:
        return None
    return (
        f"{name}={shown(value)} must be a whole number >= {allowed.start} and at most "
        f"{allowed.stop - 1}"
    )


def shown(value: object) -> str:
    """A value in an error; of an integer that would fill a line, its magnitude."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{'-' if value < 0 else ''}2^{value.bit_length() - 1}..."
    return repr(value)
