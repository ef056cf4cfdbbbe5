"""Where along a prompt checkpoints are kept, which recurrent layers and windows can go on from.

A strategy gives positions for a prompt of so many tokens; beside them it may ask for those that
only the serving knows of. Where rows alone are enough to go on, nothing depends on it.

Reference: strategies by depth as in arXiv 2605.05219 (Shirokikh and Nikolenko); branch points and
the last positions as in Marconi, arXiv 2411.19379.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from ...errors import ConfigError
from ..layout import Layout
from ..state_map import StateMap
from .overlaps import OverlapPlan

Positions = Callable[[int], list[int]]
"""Positions, in tokens, of a prompt of so many tokens: ascending, none of them 0 or beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A strategy.

    Attributes:
        name: in tables.
        positions: those known beforehand; None for none.
        observe: is told how many tokens of each prompt were found, wherever they can be gone on
            from; None for nothing.
        at_pieces: also where the prefill ends a piece.
        least_distance: tokens from there to the checkpoint before; None for `grid_distance`.
        at_branches: also where a prompt goes on otherwise than those that are kept.
        remembers: or than others, of which only the texts are (`history`).
        at_prompts: also at the end of prompts.
        at_ends: also at the end of requests.
        keeps_rows: False to keep nothing at all.
    """

    name: str
    positions: Positions | None = None
    observe: Callable[[int], None] | None = None
    at_pieces: bool = False
    least_distance: int | None = None
    at_branches: bool = False
    remembers: bool = False
    at_prompts: bool = False
    at_ends: bool = False
    keeps_rows: bool = True


def rounded_down(places: Iterable[int], granularity: int) -> list[int]:
    """Positions at multiples of `granularity`, each once, without 0."""
    return sorted({place // granularity * granularity for place in places} - {0})


def block(size: int, num_tokens: int, *, granularity: int = 1) -> list[int]:
    """Every `size` tokens."""
    return rounded_down(range(size, num_tokens + 1, size), granularity)


def balanced(count: int, num_tokens: int, *, granularity: int = 1) -> list[int]:
    """`count` positions at equal distances."""
    step = max(1, num_tokens // (count + 1))
    places = (step * (number + 1) for number in range(count))
    return rounded_down((place for place in places if place <= num_tokens), granularity)


def aligned_end(size: int, num_tokens: int, *, granularity: int = 1) -> list[int]:
    """The last multiple of `size`."""
    return rounded_down([num_tokens // size * size], granularity)


def square_root(num_tokens: int, *, granularity: int = 1) -> list[int]:
    """As many positions as tokens between two of them."""
    return block(max(1, math.isqrt(num_tokens)), num_tokens, granularity=granularity)


def powers_of_two(first: int, num_tokens: int, *, granularity: int = 1) -> list[int]:
    """Powers of two, from `first` on."""
    powers = (1 << exponent for exponent in range(num_tokens.bit_length()))
    return rounded_down((x for x in powers if first <= x <= num_tokens), granularity)


def _planned(name: str, count: int, **settings: float | None) -> Placement:
    plan = OverlapPlan(count, **settings)  # type: ignore[arg-type]
    return Placement(name=name, positions=plan.positions, observe=plan.observe)


NAMED: dict[str, Callable[[str], Placement]] = {
    "learned": lambda name: replace(NAMED["grid"](name), remembers=True),
    "grid": lambda name: Placement(
        name=name, at_pieces=True, at_branches=True, at_prompts=True, at_ends=True
    ),
    "branch": lambda name: Placement(name=name, at_branches=True, at_prompts=True, at_ends=True),
    "marconi": lambda name: Placement(name=name, at_branches=True, at_ends=True),
    "last": lambda name: Placement(name=name, at_prompts=True, at_ends=True),
    "sqrt": lambda name: Placement(name=name, positions=square_root),
    "kv_only": lambda name: Placement(name=name),
    "no_cache": lambda name: Placement(name=name, keeps_rows=False),
}
"""`learned` is `grid`, and where texts of requests parted whose rows are gone (`history`): whatever
may be of use, of which an eviction that learns gives up what is not. `grid` is where the prefill
ends a piece anyway and no checkpoint is near, and `branch`; that is where prompts were seen to
part, and `last`; that is where prompts and requests end. `marconi` is where prompts were seen to
part and where requests end, at most two states for each. `kv_only` keeps rows, so that recurrent
layers start again."""
NUMBERED: dict[str, Callable[[str, int], Placement]] = {
    "block": lambda name, size: Placement(name=name, positions=partial(block, size)),
    "align": lambda name, size: Placement(name=name, positions=partial(aligned_end, size)),
    "balanced": lambda name, count: Placement(name=name, positions=partial(balanced, count)),
    "log": lambda name, first: Placement(name=name, positions=partial(powers_of_two, first)),
    "dp": partial(_planned, decay=0.99, replan_every=10),
    "dp_periodic": partial(_planned, replan_every=100),
    "dp_frozen": partial(_planned, replan_every=None),
}
"""With a number behind the name: `block_512` every 512 tokens, `align_512` at the last multiple of
512, `balanced_3` at 3 positions,
`log_1024` powers of two from 1024 on, `dp_3` at the 3 positions that are best for how far prompts
were found lately (`overlaps`), planned often, seldom or once."""

ROWS_PER_CHECKPOINT = 2
"""Bytes of rows between two checkpoints of a grid, in checkpoints."""


def grid_distance(layout: Layout, state: StateMap) -> int:
    """Tokens whose rows take `ROWS_PER_CHECKPOINT` times what a checkpoint takes, which is a kept
    state and the rows of windows; 0 where there are no other rows."""
    windows = [x for x in layout.classes if x.window is not None]
    checkpoint = state.num_frames * layout.frame_bytes
    checkpoint += sum(x.bytes_per_token * (x.window or 0) for x in windows)
    rows = sum(x.bytes_per_token for x in layout.classes if x.window is None and x.limit is None)
    return ROWS_PER_CHECKPOINT * checkpoint // rows if rows else 0


def placement_of(given: str | Placement) -> Placement:
    """A placement, or a new one of this name.

    Raises:
        ConfigError: no such name.
    """
    if isinstance(given, Placement):
        return given
    if given in NAMED:
        return NAMED[given](given)
    kind, _, number = given.rpartition("_")
    if kind in NUMBERED and number.isdecimal() and int(number):
        return NUMBERED[kind](given, int(number))
    numbered = [f"{kind}_N" for kind in NUMBERED]
    raise ConfigError(
        f"prefix_placement={given!r} is unknown; choose one of {', '.join([*NAMED, *numbered])} "
        "(N a number of at least 1), or give a Placement"
    )
