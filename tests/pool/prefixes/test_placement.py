"""Positions of strategies, by the values of the paper where these are no mistakes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.pool.layout import Layout, compile_layout
from cacheshrink_hybrid.pool.lifetime import FIRST, RECENT, LayerRows
from cacheshrink_hybrid.pool.prefixes.placement import (
    NAMED,
    NUMBERED,
    Placement,
    balanced,
    block,
    grid_distance,
    placement_of,
    powers_of_two,
    square_root,
)
from cacheshrink_hybrid.pool.state_map import StateRows, place_state


@pytest.mark.parametrize(
    ("strategy", "num_tokens", "places"),
    [
        (partial(block, 512), 2200, [512, 1024, 1536, 2048]),
        (partial(balanced, 3), 2200, [512, 1088, 1600]),
        (partial(balanced, 5), 2200, [320, 704, 1088, 1408, 1792]),
        (partial(powers_of_two, 768), 2200, [1024, 2048]),
        (partial(balanced, 3), 6000, [1472, 2944, 4480]),
        (partial(powers_of_two, 768), 6000, [1024, 2048, 4096]),
        (square_root, 16384, list(range(128, 16385, 128))),
        (square_root, 1000, list(range(64, 961, 64))),
        (partial(balanced, 3), 100, [64]),
        (partial(block, 512), 500, []),
        (partial(balanced, 3), 1, []),
    ],
)
def test_places_at_multiples_of_64(strategy, num_tokens, places) -> None:
    """Position 0, which every sequence begins at, is none of them."""
    assert strategy(num_tokens, granularity=64) == places


@pytest.mark.parametrize(
    ("name", "num_tokens", "places"),
    [
        ("block_7", 21, [7, 14, 21]),
        ("balanced_3", 100, [25, 50, 75]),
        ("balanced_9", 5, [1, 2, 3, 4, 5]),
        ("sqrt", 10, [3, 6, 9]),
        ("log_3", 16, [4, 8, 16]),
        ("align_30", 100, [90]),
        ("dp_3", 100, [25, 50, 75]),
        ("dp_frozen_1", 9, [4]),
    ],
)
def test_places_of_named_strategies(name: str, num_tokens: int, places: list[int]) -> None:
    placement = placement_of(name)
    assert placement.name == name
    assert placement.positions is not None
    assert placement.positions(num_tokens) == places
    assert set(placement.positions(1)) <= {1}


def test_two_states_per_request_are_the_most_of_marconi() -> None:
    """Where prompts part and where requests end; `branch` has those at the ends of prompts, too."""
    marconi, branch = placement_of("marconi"), placement_of("branch")
    assert (marconi.at_branches, marconi.at_prompts, marconi.at_ends) == (True, False, True)
    assert replace(marconi, name="branch", at_prompts=True) == branch


def test_what_learns_is_a_grid_that_remembers_texts() -> None:
    assert replace(placement_of("grid"), name="learned", remembers=True) == placement_of("learned")


def test_every_name_makes_one_of_its_own() -> None:
    for name in (*NAMED, *(f"{kind}_4" for kind in NUMBERED)):
        assert placement_of(name).name == name
    first, second = placement_of("dp_2"), placement_of("dp_2")
    assert first.observe is not None and second.positions is not None
    for _ in range(10):
        first.observe(640)
    assert second.positions(1000) == [333, 666]
    mine = Placement(name="mine")
    assert placement_of(mine) is mine


@pytest.mark.parametrize("name", ["", "block", "block_", "block_0", "block_-3", "grid_5", "best"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ConfigError, match=r"one of learned, grid, .* dp_frozen_N \(N a number"):
        placement_of(name)


def distance_in(layout: Layout) -> int:
    return grid_distance(layout, layout.state)


def test_a_grid_is_as_wide_as_checkpoints_are_heavy() -> None:
    rows = [LayerRows(layer_idx=0, row_bytes=64), LayerRows(layer_idx=1, row_bytes=64)]
    states = [StateRows(layer_idx=2, name="recurrent", num_rows=64, row_bytes=256)]
    layout = compile_layout(rows, states)
    state_bytes = layout.state.num_frames * layout.frame_bytes
    assert state_bytes >= 64 * 256
    assert distance_in(layout) == 2 * state_bytes // 128
    half = place_state([replace(states[0], row_bytes=128)], layout.frame_bytes)
    assert grid_distance(layout, half) == 2 * half.num_frames * layout.frame_bytes // 128
    assert half.num_frames < layout.state.num_frames
    assert distance_in(compile_layout(rows)) == 0
    assert distance_in(compile_layout([], states)) == 0
    window = LayerRows(layer_idx=0, row_bytes=32, window=16, kind=RECENT)
    first = LayerRows(layer_idx=0, row_bytes=32, limit=4, kind=FIRST)
    assert distance_in(compile_layout([*rows, window, first])) == 2 * 16 * 32 // 128
