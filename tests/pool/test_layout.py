"""Layouts place every row once, within its frame, and waste little."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.evaluation.reference_models import REFERENCE_MODELS
from cacheshrink_hybrid.pool.layout import Layout, compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from cacheshrink_hybrid.pool.state_map import StateRows


def random_parts(seed: int) -> tuple[list[LayerRows], list[StateRows]]:
    """Layers of odd widths in up to three lifetime classes, and states of odd row sizes."""
    random = np.random.default_rng(seed)
    windows = [None, 32, 500][: random.integers(1, 4)]
    rows = [
        LayerRows(
            layer_idx=i,
            row_bytes=int(random.integers(1, 40)) * int(random.choice([1, 2, 16])),
            window=windows[random.integers(len(windows))],
        )
        for i in range(random.integers(0, 9))
    ]
    states = [
        StateRows(
            layer_idx=i,
            name=name,
            num_rows=int(random.integers(1, 300)),
            row_bytes=int(random.integers(1, 200)),
        )
        for i in range(random.integers(0 if rows else 1, 4))
        for name in ("conv", "recurrent")
    ]
    return rows, states


def kv_bytes(layout: Layout, number: int) -> np.ndarray:
    """How many rows claim each byte of a frame of one class."""
    lifetime = layout.classes[number]
    claimed = np.zeros(layout.frame_bytes, dtype=int)
    for offset, row_bytes in zip(lifetime.offsets, lifetime.row_bytes, strict=True):
        for token in range(lifetime.tokens_per_frame):
            start = offset + token * row_bytes
            assert start + row_bytes <= layout.frame_bytes
            claimed[start : start + row_bytes] += 1
    return claimed


@pytest.mark.parametrize("seed", range(60))
def test_every_row_has_bytes_of_its_own(seed: int) -> None:
    rows, states = random_parts(seed)
    layout = compile_layout(rows, states)
    assert layout.frame_bytes % 256 == 0
    placed = {idx for lifetime in layout.classes for idx in lifetime.layer_ids}
    assert placed == {row.layer_idx for row in rows}
    for number, lifetime in enumerate(layout.classes):
        assert kv_bytes(layout, number).max() == 1
        assert lifetime.tokens_per_frame % 8 == 0
        assert all(offset % 16 == 0 for offset in lifetime.offsets)
    claimed = np.zeros(layout.state.num_frames * layout.frame_bytes, dtype=int)
    for state, slices in zip(layout.state.rows, layout.state.slices, strict=True):
        assert [piece.first_row for piece in slices] == list(
            np.cumsum([0, *(piece.num_rows for piece in slices)])[:-1]
        )
        assert sum(piece.num_rows for piece in slices) == state.num_rows
        for piece in slices:
            num_bytes = piece.num_rows * state.row_bytes
            assert piece.offset + num_bytes <= layout.frame_bytes
            start = piece.frame * layout.frame_bytes + piece.offset
            claimed[start : start + num_bytes] += 1
        assert (slices[0].frame * layout.frame_bytes + slices[0].offset) % 16 == 0
    assert claimed.max(initial=0) <= 1
    assert claimed.sum() == layout.state.useful_bytes


@pytest.mark.parametrize("codec", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("model", REFERENCE_MODELS, ids=lambda model: model.name)
def test_waste_at_one_and_eight_thousand_tokens(model, codec: str) -> None:
    layout = compile_layout(model.layer_rows(4.0), model.state_rows(codec))
    assert layout.expected_waste(1024) <= 0.01
    if codec == "int8":
        assert layout.expected_waste(8192) <= 0.005


def test_published_sizes() -> None:
    """KV bytes per token and MiB of int8 and fp32 state, by hand from the model cards."""
    due = {
        "Jamba-v0.1": (16384, 4.9, 15.3),
        "Zamba2-7B": (372736, 40.0, 145.2),
        "Nemotron-H-8B": (16384, 26.2, 97.4),
        "Qwen3-Next-80B": (24576, 20.3, 73.7),
        "Granite-4.0-H-Small": (16384, 38.9, 145.7),
        "RecurrentGemma-9B": (12288, 0.7, 1.0),
        "Falcon-H1-7B": (45056, 34.9, 132.9),
    }
    for model in REFERENCE_MODELS:
        states = [
            sum(rows.num_bytes for rows in model.state_rows(codec)) / 2**20
            for codec in ("int8", "fp32")
        ]
        per_token = sum(row.row_bytes for row in model.layer_rows())
        assert (per_token, *states) == pytest.approx(due[model.name], abs=0.051)


def test_held_bytes_are_frames_and_never_less_than_useful() -> None:
    for seed in range(20):
        layout = compile_layout(*random_parts(seed))
        for num_tokens in (0, 1, 7, 64, 65, 1000):
            assert layout.held_bytes(num_tokens) >= layout.useful_bytes(num_tokens)
            assert layout.held_bytes(num_tokens) % layout.frame_bytes == 0


def test_window_classes_hold_a_window() -> None:
    rows = [LayerRows(layer_idx=0, row_bytes=32), LayerRows(layer_idx=1, row_bytes=32, window=32)]
    layout = compile_layout(rows, tokens_per_frame=8)
    full, window = layout.classes
    assert (full.frames_for(1000), window.frames_for(1000)) == (125, 4)
    assert window.frames_for(1001) == 5
    assert window.frames_for(1000, history=8) == 5
    assert window.useful_bytes(1000) == 32 * 32


def test_wide_state_rows_fit_a_frame() -> None:
    state = StateRows(layer_idx=0, name="recurrent", num_rows=3, row_bytes=5000)
    layout = compile_layout([LayerRows(layer_idx=0, row_bytes=2)], [state])
    assert layout.frame_bytes >= 5000
    assert layout.state.useful_bytes == 15000


def test_seamless_states_lie_in_one_piece() -> None:
    rows = [LayerRows(layer_idx=0, row_bytes=64)]
    states = [StateRows(layer_idx=1, name="recurrent", num_rows=500, row_bytes=128)]
    layout = compile_layout(rows, states, tokens_per_frame=16)
    assert layout.state.seamless
    assert layout.state.num_frames > 1
    crooked = [dataclasses.replace(states[0], row_bytes=100)]
    assert not compile_layout(rows, crooked, tokens_per_frame=16).state.seamless


def test_pure_and_hashed() -> None:
    model = REFERENCE_MODELS[0]
    layouts = [compile_layout(model.layer_rows(4.0), model.state_rows()) for _ in range(2)]
    assert layouts[0] == layouts[1]
    assert layouts[0].digest == layouts[1].digest
    other = compile_layout(model.layer_rows(2.0), model.state_rows())
    assert other.digest != layouts[0].digest
    assert compile_layout(model.layer_rows(4.0)[::-1], model.state_rows()) == layouts[0]


@pytest.mark.parametrize(
    ("rows", "states", "settings", "message"),
    [
        ([], [], {}, "nothing to lay out"),
        ([LayerRows(layer_idx=0, row_bytes=0)], [], {}, "row_bytes >= 1"),
        ([LayerRows(layer_idx=0, row_bytes=8, window=0)], [], {}, "window >= 1"),
        ([LayerRows(layer_idx=0, row_bytes=8)] * 2, [], {}, "named once"),
        ([], [StateRows(layer_idx=0, name="a", num_rows=0, row_bytes=1)], {}, "num_rows >= 1"),
        ([], [StateRows(layer_idx=0, name="a", num_rows=1, row_bytes=1)] * 2, {}, "named once"),
        ([LayerRows(layer_idx=0, row_bytes=8)], [], {"tokens_per_frame": 12}, "multiple of 8"),
    ],
)
def test_refusals(rows, states, settings, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        compile_layout(rows, states, **settings)


def test_text() -> None:
    model = REFERENCE_MODELS[-1]
    text = compile_layout(model.layer_rows(4.0), model.state_rows()).table()
    assert "11264 bytes per token, 32 tokens per frame" in text
    assert "waste: 0.6" in text
