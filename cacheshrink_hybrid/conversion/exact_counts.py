"""How many tokens stay exact in a layer: what was asked for, or the defaults where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..config import CompressionConfig
from ..errors import ConfigError
from ..latents.attention.parts import AttentionParts
from ..latents.plan import EXACT_BITS
from ..methods import WIDTHS_OF
from ..spec import LayerSpec

SINKS = 4
WINDOW = 32
SHARE = 8
"""By default, at most one of so many tokens that a layer reads stays exact: of the model's
positions, a sliding window, a sequence of calibration text, the text that a budget is meant for."""


class ExactCounts(NamedTuple):
    """First tokens of a sequence, and most recent ones, that stay exact."""

    sinks: int
    window: int


def exact_counts(
    config: CompressionConfig, positions: int | None, sliding_window: int | None
) -> ExactCounts:
    """Counts of a layer, which sinks leave where it has a sliding window.

    Args:
        positions: of the model; None for no limit.
        sliding_window: tokens that a query of the layer sees, itself included; None for all.
    """
    narrow = config.coded and min(WIDTHS_OF[config.cache_bits]) < EXACT_BITS
    lengths = (positions, sliding_window, config.max_calibration_length, config.context_length)
    reach = min(n for n in lengths if n is not None)
    room = reach // SHARE if narrow else 0
    sinks = min(SINKS, room // 2) if config.exact_sinks is None else config.exact_sinks
    if sliding_window is not None:
        sinks = 0
    window = min(WINDOW, room - min(sinks, room))
    return ExactCounts(sinks, window if config.exact_window is None else config.exact_window)


def counts_beside(
    runs: Sequence[tuple[int, int]], counts: ExactCounts, config: CompressionConfig
) -> ExactCounts:
    """Counts of a layer, once its rows are known: beside rows that are exact themselves, only what
    was asked for.

    Args:
        runs: channels and their bits.
        counts: from `exact_counts`.
    """
    if any(bits < EXACT_BITS for _, bits in runs):
        return counts
    sinks = 0 if config.exact_sinks is None else counts.sinks
    return ExactCounts(sinks, 0 if config.exact_window is None else counts.window)


def sinks_of(
    config: CompressionConfig, parts: Iterable[AttentionParts], positions: int | None
) -> tuple[int, ...]:
    """First tokens that each attention module reads exactly.

    Args:
        positions: of the model; None for no limit.
    """
    return tuple(exact_counts(config, positions, part.sliding_window).sinks for part in parts)


def check_exact_counts(
    config: CompressionConfig, positions: int | None, layers: Iterable[LayerSpec]
) -> None:
    """Refuse counts that leave no token of the longest text, or of a sliding window, to be coded,
    and first tokens that no layer keeps.

    Args:
        positions: of the model; None for no limit.
        layers: that are converted.

    Raises:
        ConfigError: for such counts.
    """
    sinks, window = config.exact_sinks or 0, config.exact_window or 0
    layers = list(layers)
    if sinks and layers and all(_window_of(layer) is not None for layer in layers):
        raise ConfigError(
            f"exact_sinks={sinks} has no layer to stay exact in: all attention layers of this "
            "model have a sliding window, which leaves first tokens behind; leave it out, or give "
            "exact_window alone"
        )
    if positions is not None and sinks + window >= positions:
        given = {"exact_sinks": config.exact_sinks, "exact_window": config.exact_window}
        named = [f"{name}={count}" for name, count in given.items() if count is not None]
        raise ConfigError(
            f"{' and '.join(named)} {'keeps' if len(named) == 1 else 'keep'} all of this model's "
            f"{positions} positions at {EXACT_BITS} bits, so that none is coded; give fewer than "
            f"{positions}{' together' if len(named) > 1 else ''}"
        )
    for layer in layers:
        sliding = _window_of(layer)
        if sliding is not None and window >= sliding:
            raise ConfigError(
                f"exact_window={window} covers the sliding window of {sliding} tokens of layer "
                f"{layer.layer_idx}, so that none is coded; give fewer than {sliding}"
            )


def _window_of(layer: LayerSpec) -> int | None:
    return None if layer.attention is None else layer.attention.sliding_window
