"""One method over all windows: losses in pairs with those of its base, and bytes that were counted.

A window is fed in chunks on top of a live cache, and every token but its first is scored. Bytes are
counted at half of the first window and at its end; what lies between grows with the tokens, and
what is left over does not, which gives the bytes at other lengths.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..benchmark import GateError
from .method import Held, Reading

LENGTHS = (1024, 8192, 32768)
"""Tokens at which bytes are told."""


def spread_windows(ids: Sequence[int], number: int, length: int) -> list[Tensor]:
    """`number` windows (length,) of a text, evenly spread over it."""
    step = len(ids) // number
    return [torch.tensor(ids[i * step : i * step + length]) for i in range(number)]


@torch.inference_mode()
def measured(
    begin: Callable[[], Reading], windows: Sequence[Tensor], chunk_length: int
) -> dict[str, Any]:
    """Mean loss of each window in nats, and `Held` by the number of tokens held.

    Raises:
        GateError: nothing is held.
    """
    losses, held = [], {}
    for number, ids in enumerate(windows):
        reading = begin()
        half, total, read = len(ids) // 2, 0.0, 0
        last: Tensor | None = None  # logits of the token before this chunk's
        for chunk in ids.split(chunk_length):
            logits = reading.feed(chunk).float()
            rows = logits if last is None else torch.cat([last, logits])
            targets = chunk[1:] if last is None else chunk
            total += float(F.cross_entropy(rows[:-1].double(), targets, reduction="sum"))
            last = logits[-1:].clone()
            read += len(chunk)
            if number == 0 and read in (half, len(ids)):
                held[str(read)] = asdict(_something(reading.held()))
        losses.append(total / (len(ids) - 1))
    return {"losses": losses, "held": held}


def _something(held: Held) -> Held:
    if not held.here:
        raise GateError("the cache holds nothing, so what was read is not what it stores")
    return held


def held_at(held: dict[str, dict[str, int]], num_tokens: int) -> Held:
    """What is held at another length, on the line through the two that were counted."""
    (first, at_first), (second, at_second) = (
        (int(tokens), counted) for tokens, counted in held.items()
    )
    beyond = (num_tokens - second) / (second - first)
    return Held(
        **{
            name: round(count + beyond * (count - at_first[name]))
            for name, count in at_second.items()
        }
    )


def compared(record: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Perplexity over the base's in percent, with the standard error of the paired difference of
    the windows' losses (None for one window), and bytes per token."""
    losses = record["losses"]
    differences = [a - b for a, b in zip(losses, base["losses"], strict=True)]
    growth = math.exp(statistics.fmean(differences))
    error = None
    if len(losses) > 1:
        spread = statistics.stdev(differences) / len(losses) ** 0.5
        error = 100 * growth * spread
    at = {length: held_at(record["held"], length) for length in LENGTHS}
    return {
        "perplexity": math.exp(statistics.fmean(losses)),
        "increase_percent": 100 * (growth - 1),
        "standard_error": error,
        "bytes_per_token": {str(n): held.at_16bit / n for n, held in at.items()},
        "exact_bytes_per_token": {str(n): held.exact / n for n, held in at.items()},
        "bytes_per_token_here": {str(n): held.here / n for n, held in at.items()},
    }
