"""Recurrent states that are kept for others, in fewer bytes than live ones.

A live state is rewritten again and again, so that rounding adds up; a kept one is written once and
read by whoever goes on from it. It can therefore be narrower. Only recurrent matrices are coded;
columns of convolutions, inputs in rings, and what is as narrow already are kept as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...codecs.names import STATE_CODES
from ...codecs.state import StateCodec, one_segment
from ...codecs.state_format import ELEMENTS
from ...errors import ConfigError
from ..frame_ledger import Handles
from ..frame_pool import FramePool
from ..layout import Layout
from ..state_map import ROW_ALIGNMENT, StateMap, place_state
from ..state_tensors import StateShape, first_byte

LIVE = "live"
"""In the place of a code: as the states that go on."""
KEPT_STATES = (LIVE, *STATE_CODES)
DEFAULT_KEPT_STATE = "float16"
"""The narrowest that cannot be told from a prompt that was fed in other pieces: docs/MEASURED.md,
"kept states"."""


@dataclass(frozen=True, slots=True)
class Recoding:
    """How one tensor is kept.

    Attributes:
        live: codec of the live bytes; None for float32 numbers.
        kept: codec of the kept ones.
    """

    live: StateCodec | None
    kept: StateCodec

    def encode(self, live: Tensor) -> Tensor:
        """Live bytes (1, n) -> kept bytes (1, k)."""
        if self.live is None:
            axes = self.kept.num_heads, self.kept.head_dim, self.kept.width
            return self.kept.encode(live.view(torch.float32).view(1, *axes))
        return self.kept.encode(self.live.decode(live))

    def decode(self, kept: Tensor) -> Tensor:
        """Kept bytes (1, k) -> live bytes (1, n)."""
        state = self.kept.decode(kept)
        if self.live is None:
            return state.flatten(1).view(torch.uint8)
        return self.live.encode(state)


class StateCodes:
    """Codes states of one layout into frames of their own, and back.

    Args:
        layout: of the model.
        recodings: of its state tensors, in the order of the layout; None for one that is kept as
            it is.

    Attributes:
        map: where the kept state of one sequence lies.
        digest: SHA-256 of the layout and how its states are kept, in hexadecimal.
    """

    def __init__(self, layout: Layout, recodings: Sequence[Recoding | None]) -> None:
        self._live, self._frame_bytes = layout.state, layout.frame_bytes
        self._recodings = list(recodings)
        rows = [
            rows
            if how is None
            else replace(
                rows, num_rows=how.kept.row_bytes // ROW_ALIGNMENT, row_bytes=ROW_ALIGNMENT
            )
            for rows, how in zip(layout.state.rows, recodings, strict=True)
        ]
        self.map: StateMap = place_state(rows, layout.frame_bytes)
        segments = [how and (how.kept.head_dim, how.kept.segments) for how in recodings]
        self.digest = hashlib.sha256(repr((layout.digest, segments)).encode()).hexdigest()

    @property
    def num_frames(self) -> int:
        """Frames of one kept state."""
        return self.map.num_frames

    def encode(self, pool: FramePool, live: Handles, kept: Handles) -> None:
        """Write the state in frames `live` to the frames `kept`."""
        source = pool.frames[pool.index(live)].view(1, -1)
        target = source.new_zeros(1, self.num_frames * self._frame_bytes)
        for number, how in enumerate(self._recodings):
            part = self._part(source, self._live, number)
            coded = part if how is None else how.encode(part)
            self._part(target, self.map, number).copy_(coded)
        pool.frames[pool.index(kept)] = target.view(-1, self._frame_bytes)

    def decode(self, pool: FramePool, kept: Handles, live: Handles) -> None:
        """The inverse of `encode`, up to what the codes round."""
        source = pool.frames[pool.index(kept)].view(1, -1)
        target = source.new_zeros(1, self._live.num_frames * self._frame_bytes)
        for number, how in enumerate(self._recodings):
            part = self._part(source, self.map, number)
            decoded = part if how is None else how.decode(part)
            self._part(target, self._live, number).copy_(decoded)
        pool.frames[pool.index(live)] = target.view(-1, self._frame_bytes)

    def _part(self, memory: Tensor, state: StateMap, number: int) -> Tensor:
        """Bytes (1, n) of tensor `number` in those of a whole state."""
        start = first_byte(state, number, self._frame_bytes)
        return memory[:, start : start + state.rows[number].num_bytes]


def state_codes(layout: Layout, shapes: Sequence[StateShape], code: str) -> StateCodes | None:
    """How states with these tensors are kept; None where all are kept as they are.

    Args:
        shapes: in the order of the layout.
        code: one of `KEPT_STATES`; tensors that are as narrow or narrower are kept as they are.

    Raises:
        ConfigError: an unknown code.
    """
    if code not in KEPT_STATES:
        raise ConfigError(
            f"prefix_state_dtype={code!r} is unknown; choose one of {', '.join(KEPT_STATES)}"
        )
    recodings = [None if code == LIVE else _recoding(shape, code) for shape in shapes]
    return StateCodes(layout, recodings) if any(recodings) else None


def _recoding(shape: StateShape, code: str) -> Recoding | None:
    size = ELEMENTS[code].itemsize
    if shape.codec is not None:
        segments = tuple(
            replace(segment, code=code) if ELEMENTS[segment.code].itemsize > size else segment
            for segment in shape.codec.segments
        )
        if segments == shape.codec.segments:
            return None
        return Recoding(shape.codec, StateCodec(shape.codec.head_dim, segments))
    if shape.kind != "recurrent" or shape.dtype != torch.float32 or size >= shape.dtype.itemsize:
        return None
    # Layers without heads keep (C, N) or (C).
    num_heads, head_dim, rank = {1: (1, *shape.shape, 1), 2: (1, *shape.shape)}.get(
        len(shape.shape), shape.shape
    )
    return Recoding(None, one_segment(num_heads, head_dim, rank, code))
