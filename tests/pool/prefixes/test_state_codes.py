"""States that are kept in fewer bytes: what comes back, and what they weigh."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs.state import one_segment
from cacheshrink_hybrid.codecs.state_format import ELEMENTS
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import Layout, compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from cacheshrink_hybrid.pool.prefixes.lookup import NO_ROOM
from cacheshrink_hybrid.pool.prefixes.state_codes import LIVE, StateCodes, state_codes
from cacheshrink_hybrid.pool.state_tensors import StateShape
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.shadow import coded_layout, codes_of

LIVE_CODEC = one_segment(3, 16, 8, "float16")
SHAPES = (
    StateShape(0, "conv", 0, (24, 4), torch.float32),
    StateShape(0, "recurrent", 0, (4, 32, 16), torch.float32),
    StateShape(1, "recurrent", 0, (48, 8), torch.float32),
    StateShape(2, "recurrent", 0, (64,), torch.float32),
    StateShape(3, "recurrent", 0, (LIVE_CODEC.row_bytes,), torch.uint8, LIVE_CODEC),
    StateShape(3, "recurrent", 1, (5, 12), torch.float16),
)
ERRORS = {"float16": 2**-10, "bfloat16": 2**-7, "int8": 1 / 200, "float8": 2**-3}
"""Of the largest number among those that share a scale."""


def layout_with(shapes: tuple[StateShape, ...]) -> Layout:
    return compile_layout([LayerRows(layer_idx=9, row_bytes=64)], [x.rows() for x in shapes])


def live_state(layout: Layout, seed: int = 0) -> torch.Tensor:
    """Bytes of a state, frame by frame."""
    torch.manual_seed(seed)
    parts = []
    for shape in SHAPES:
        if shape.codec is None:
            data = torch.randn(shape.shape).to(shape.dtype).reshape(-1).view(torch.uint8)
        else:
            data = shape.codec.encode(torch.randn(1, 3, 16, 8))[0]
        parts.append(data)
        parts.append(torch.zeros(-len(data) % 16, dtype=torch.uint8))
    whole = torch.cat(parts)
    padding = layout.state.num_frames * layout.frame_bytes - len(whole)
    return torch.cat([whole, torch.zeros(padding, dtype=torch.uint8)]).view(-1, layout.frame_bytes)


def tensors_in(state: torch.Tensor) -> list[torch.Tensor]:
    """The numbers of all tensors of a live state."""
    found, at, flat = [], 0, state.reshape(-1)
    for shape in SHAPES:
        size = shape.rows().num_bytes
        part = flat[at : at + size]
        at += size + -size % 16
        if shape.codec is not None:
            found.append(shape.codec.decode(part[None])[0])
        else:
            found.append(part.view(shape.dtype).view(shape.shape).float())
    return found


def through(codes: StateCodes, layout: Layout, state: torch.Tensor) -> torch.Tensor:
    """A state, kept and taken up again."""
    pool = FramePool(40, layout.frame_bytes, poison=True)
    live, kept = pool.allocate(layout.state.num_frames), pool.allocate(codes.num_frames)
    pool.frames[pool.index(live)] = state
    codes.encode(pool, live, kept)
    pool.release(live)
    again = pool.allocate(layout.state.num_frames)
    codes.decode(pool, kept, again)
    return pool.frames[pool.index(again)]


@pytest.mark.parametrize("code", ERRORS)
def test_what_comes_back(code: str) -> None:
    layout = layout_with(SHAPES)
    codes = state_codes(layout, SHAPES, code)
    assert codes is not None
    before = live_state(layout)
    after = through(codes, layout, before)
    narrower = ELEMENTS[code].itemsize < 2
    for number, (old, new) in enumerate(zip(tensors_in(before), tensors_in(after), strict=True)):
        if number in (1, 2, 3) or (number == 4 and narrower):
            error = (new - old).abs().amax()
            assert 0 < error <= ERRORS[code] * old.abs().amax()
        else:
            assert torch.equal(new, old)
    again = through(codes, layout, after)
    if not narrower:
        assert torch.equal(again, after)  # what was rounded stays as it is
    for old, new in zip(tensors_in(after), tensors_in(again), strict=True):
        assert (new - old).abs().amax() <= ERRORS[code] * old.abs().amax()


def test_bytes_are_counted() -> None:
    layout = layout_with(SHAPES)
    sizes = {
        code: codes.map.useful_bytes
        for code in ("float16", "bfloat16", "int8", "float8")
        if (codes := state_codes(layout, SHAPES, code)) is not None
    }
    numbers = 4 * 32 * 16 + 48 * 8 + 64
    assert layout.state.useful_bytes - sizes["bfloat16"] == 2 * numbers
    assert sizes["int8"] < sizes["float8"] + 512 < sizes["bfloat16"] < layout.state.useful_bytes


@pytest.mark.parametrize("code", [LIVE, "float32"])
def test_states_that_are_no_wider_are_shared(code: str) -> None:
    assert state_codes(layout_with(SHAPES), SHAPES, code) is None


def test_models_without_states_have_no_codes() -> None:
    layout = compile_layout([LayerRows(layer_idx=9, row_bytes=64)])
    assert state_codes(layout, (), "int8") is None


def test_digests_tell_codes_apart() -> None:
    layout = layout_with(SHAPES)
    found = [state_codes(layout, SHAPES, code) for code in ERRORS]
    digests = {layout.digest, *(codes.digest for codes in found if codes is not None)}
    assert len(digests) == 1 + len(ERRORS)


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix_state_dtype='int4' is unknown; choose one of"):
        state_codes(layout_with(SHAPES), SHAPES, "int4")


def kept_in(num_frames: int) -> SequenceStore:
    """A store in which a sequence of 16 tokens was kept."""
    layout = coded_layout()
    pool = FramePool(num_frames, layout.frame_bytes)
    store = SequenceStore(layout, pool, codes=codes_of(layout))
    store.create("first")
    store.reserve(["first"], 16)
    store.commit(["first"])
    store.offer_prefix("first", range(16))
    store.free("first")
    return store


def test_kept_states_are_copies_and_their_bytes_count() -> None:
    store = kept_in(100)
    layout, codes = store.layout, store.prefixes.codes
    assert codes is not None and codes.num_frames < layout.state.num_frames
    assert store.pool.num_held == 2 + codes.num_frames
    rows = 16 * layout.bytes_per_token
    assert store.statistics().useful_bytes == rows + codes.map.useful_bytes
    store.create("second")
    assert store.resume_prefix("second", range(20)).num_tokens == 16
    assert store.pool.num_held == 2 + codes.num_frames + layout.state.num_frames
    store.check_integrity()
    store.prefixes.make_free(100)
    store.check_integrity()
    assert store.num_tokens("second") == 16 and store.pool.num_held == 2 + layout.state.num_frames


def test_running_sequences_leave_no_room_for_a_state() -> None:
    store = kept_in(100)
    layout = store.layout
    store.create("running")
    tokens = 8 * (store.pool.num_free - 2 * layout.state.num_frames + 1)
    store.reserve(["running"], tokens)
    store.commit(["running"])
    store.create("second")
    found = store.resume_prefix("second", range(20))
    assert (found.num_tokens, found.num_matched, found.reason) == (0, 16, NO_ROOM)
    assert store.num_tokens("second") == 0 == store.num_held("second")
    assert store.prefixes.statistics().misses == {NO_ROOM: 1}
    store.check_integrity()
    store.free("running")
    assert store.resume_prefix("second", range(20)).num_tokens == 16


def test_a_state_that_finds_no_room_leaves_its_rows() -> None:
    layout = coded_layout()
    pool = FramePool(2 + layout.state.num_frames, layout.frame_bytes)
    store = SequenceStore(layout, pool, codes=codes_of(layout))
    store.create("only")
    store.reserve(["only"], 16)
    store.commit(["only"])
    store.offer_prefix("only", range(16))
    store.check_integrity()
    assert store.prefixes.num_tokens == 16 and store.prefixes.num_checkpoints == 0
