"""Where along a prompt checkpoints are kept, which recurrent layers and windows can go on from.

A strategy gives positions for a prompt of so many tokens; beside them it may ask for those that
only the serving knows of. Where rows alone are enough to go on, nothing depends on it.

    kv_only     rows without checkpoints: recurrent layers start again
    last        where the prompt ends, and where the request does
    branch      where prompts were seen to part, and the last ones
    grid        where the prefill ends a piece anyway and no checkpoint is near, branches, and the
                last ones
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import ConfigError
from ..layout import Layout

Positions = Callable[[int], list[int]]
"""Positions, in tokens, of a prompt of so many tokens; ascending, none of them 0 or beyond it."""


def nowhere(num_tokens: int) -> list[int]:
    """No positions of its own."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A strategy.

    Attributes:
        name: in tables.
        positions: those known beforehand.
        at_pieces: also where the prefill ends a piece.
        least_distance: tokens from there to the checkpoint before; None for as many as make
            checkpoints a third of what a prompt takes.
        at_branches: also where a prompt goes on otherwise than those that are kept.
        at_ends: also at the end of prompts and requests.
    """

    name: str
    positions: Positions = nowhere
    at_pieces: bool = False
    least_distance: int | None = None
    at_branches: bool = False
    at_ends: bool = False


PLACEMENTS = {
    placement.name: placement
    for placement in (
        Placement(name="grid", at_pieces=True, at_branches=True, at_ends=True),
        Placement(name="branch", at_branches=True, at_ends=True),
        Placement(name="last", at_ends=True),
        Placement(name="kv_only"),
    )
}

ROWS_PER_CHECKPOINT = 2
"""Bytes of rows between two checkpoints of a grid, in checkpoints."""


def grid_distance(layout: Layout) -> int:
    """Tokens whose rows take `ROWS_PER_CHECKPOINT` times what a checkpoint takes, which is a state
    and the rows of windows; 0 where there are no other rows."""
    windows = [x for x in layout.classes if x.window is not None]
    checkpoint = layout.state.num_frames * layout.frame_bytes
    checkpoint += sum(x.bytes_per_token * (x.window or 0) for x in windows)
    rows = sum(x.bytes_per_token for x in layout.classes if x.window is None and x.limit is None)
    return ROWS_PER_CHECKPOINT * checkpoint // rows if rows else 0


def placement_of(given: str | Placement) -> Placement:
    """A placement, or the one of this name.

    Raises:
        ConfigError: no such name.
    """
    if isinstance(given, Placement):
        return given
    if given not in PLACEMENTS:
        raise ConfigError(
            f"prefix_placement={given!r} is unknown; choose one of {', '.join(PLACEMENTS)}, or "
            "give a Placement"
        )
    return PLACEMENTS[given]
