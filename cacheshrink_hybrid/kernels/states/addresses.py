"""Where the parts of a state lie, as kernels need to know it.

A tile of a state is (NB, BLOCK, NU, E): blocks of values, values of a block, units of channels,
channels of a unit. A unit is what 16 bytes hold, so that it lies in one frame and is moved in one
go; where ranks are odd a unit is one channel.

What is the same in many layers is a `Segment` for the compiler; what differs from layer to layer is
a tuple for the kernel, `at`: the arena, the numbers of the segment's heads, where its codes and its
scales start, and the first frame, offset and rows of the state's place. Triton wants the parameters
of a kernel written out, so those that all steps have stand in each.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...codecs.state_format import ELEMENTS
from ..launch import has_native_float8, launch
from ..numerics import constant
from .pages import StatePages, StatePlace, check_head_sizes, int32_ids

CODES = tuple(ELEMENTS)
FLOAT32, FLOAT16, BFLOAT16, INT8, FLOAT8 = map(tl.constexpr, range(5))
ARENA, HEADS, CODES_START, SCALES_START, FIRST_FRAME, FIRST_OFFSET, FIRST_ROWS = map(
    tl.constexpr, range(7)
)

MAX_TILE = 8192
"""Elements of a tile that a program steps at once."""


@dataclass(frozen=True, slots=True)
class FrameRows:
    """How rows of bytes fill frames, as a kernel takes it for a constant."""

    row_bytes: int
    per_frame: int
    frame_bytes: int

    @staticmethod
    def of(place: StatePlace, frame_bytes: int) -> "FrameRows":
        return FrameRows(place.row_bytes, frame_bytes // place.row_bytes, frame_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment of a state as a kernel takes it for a constant.

    Attributes:
        code: its number in `CODES`.
        size: bytes of an element.
        rank, head_dim, block: of its heads.
        unit: channels of a unit.
        num_blocks, num_units: blocks and units of a tile, powers of two.
        heads, width: heads and largest rank of the whole state.
        native_float8: see `has_native_float8`.
        rows: of the state's place.
    """

    code: int
    size: int
    rank: int
    head_dim: int
    block: int
    unit: int
    num_blocks: int
    num_units: int
    heads: int
    width: int
    native_float8: bool
    rows: FrameRows


def launch_segments(kernel, pages: StatePages, batch_size: int, **arguments) -> None:
    """Launch a kernel for every segment of the states: a program per sequence, head and tile.

    Args:
        arguments: those that are the same for all segments; tensors need not be contiguous.
    """
    states, place = pages.format, pages.place
    check_head_sizes(states)
    native = has_native_float8(pages.arena.device)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[name] = value.contiguous()
    for kept, at_codes, at_scales in states.places:
        size = ELEMENTS[kept.code].itemsize
        scaled = kept.code in ("int8", "float8")
        unit = 16 // size
        if kept.rank % unit or at_codes.start % 16 or (scaled and at_scales.start % 16):
            unit = 1
        num_units = triton.next_power_of_2(triton.cdiv(kept.rank, unit))
        blocks_of_head = states.head_dim // states.block
        num_blocks = triton.next_power_of_2(blocks_of_head)
        per_block = states.block * num_units * unit
        if kept.code not in ("float16", "float8"):  # whose scales depend on all of a head
            while num_blocks > 1 and num_blocks * per_block > MAX_TILE // 2:
                num_blocks //= 2
        segment = Segment(
            code=CODES.index(kept.code),
            size=size,
            rank=kept.rank,
            head_dim=states.head_dim,
            block=states.block,
            unit=unit,
            num_blocks=num_blocks,
            num_units=num_units,
            heads=states.num_heads,
            width=states.width,
            native_float8=native,
            rows=FrameRows.of(place, pages.frame_bytes),
        )
        at = (
            pages.arena,
            int32_ids(kept.heads, pages.arena.device),
            at_codes.start,
            at_scales.start,
            place.first_frame,
            place.first_offset,
            place.first_rows,
        )
        launch(
            kernel,
            (batch_size, len(kept.heads), triton.cdiv(blocks_of_head, num_blocks)),
            num_stages=1,
            num_warps=max(1, min(16, num_blocks * per_block // 1024)),
            at=at,
            SEGMENT=segment,
            **arguments,
        )


def launch_step(kernel, like: Tensor, pages: StatePages, **arguments) -> Tensor:
    """`launch_segments` of a kernel that reads states; y, which it writes to `p_y`.

    Args:
        like: a tensor of the shape and type of y, (B, M, P).
    """
    y = torch.empty_like(like, memory_format=torch.contiguous_format)
    launch_segments(kernel, pages, len(like), p_y=y, **arguments)
    return y


@triton.jit
def program_head(at, SEGMENT: tl.constexpr):
    """What a program steps: numbers of its sequence, of its head within the segment, of its tile,
    of its head within the layer, and among those of all sequences."""
    i_seq = tl.program_id(0).to(tl.int64)
    i_m = tl.program_id(1)
    i_head = tl.load(at[HEADS] + i_m)
    return i_seq, i_m, tl.program_id(2), i_head, i_seq * SEGMENT.heads + i_head


@triton.jit
def group_offset(i_seq, i_head, GROUPS: tl.constexpr, SEGMENT: tl.constexpr):
    """First element of the vector (B, GROUPS, width) that a head shares with its group."""
    PER_GROUP: tl.constexpr = SEGMENT.heads // GROUPS
    return (i_seq * GROUPS + i_head // PER_GROUP) * SEGMENT.width


@triton.jit
def locate(p_arena, p_table, byte, first_frame, first_offset, first_rows, ROWS: tl.constexpr):
    """Address of bytes of a state, given the frames of its sequence."""
    row = byte // ROWS.row_bytes
    rest = byte % ROWS.row_bytes
    late = row - first_rows
    after = tl.maximum(late, 0)
    frame = tl.where(late >= 0, after // ROWS.per_frame + 1, 0) + first_frame
    start = tl.where(
        late >= 0,
        (after % ROWS.per_frame) * ROWS.row_bytes,
        first_offset + row * ROWS.row_bytes,
    )
    frame = tl.maximum(tl.load(p_table + frame), 0).to(tl.int64)
    return p_arena + (frame * ROWS.frame_bytes + start + rest)


@triton.jit
def value_offsets(i_block, SEGMENT: tl.constexpr):
    """Values of a tile, (NB, BLOCK)."""
    o_b = i_block * SEGMENT.num_blocks + tl.arange(0, SEGMENT.num_blocks)
    return o_b[:, None] * SEGMENT.block + tl.arange(0, SEGMENT.block)[None, :]


@triton.jit
def channel_offsets(SEGMENT: tl.constexpr):
    """Channels of a tile, (NU, E)."""
    o_u = tl.arange(0, SEGMENT.num_units)[:, None] * SEGMENT.unit
    return o_u + tl.arange(0, SEGMENT.unit)[None, :]


@triton.jit
def tile_offsets(i_block, SEGMENT: tl.constexpr):
    """Value (NB, BLOCK, 1, 1) and first channel of a unit (1, 1, NU, 1), and their mask."""
    o_p = value_offsets(i_block, SEGMENT)[:, :, None, None]
    o_u = (tl.arange(0, SEGMENT.num_units) * SEGMENT.unit)[None, None, :, None]
    return o_p, o_u, (o_p < SEGMENT.head_dim) & (o_u < SEGMENT.rank)


@triton.jit
def state_pointers(at, p_frames, byte, SEGMENT: tl.constexpr):
    """Address of bytes of a state."""
    return locate(
        at[ARENA], p_frames, byte, at[FIRST_FRAME], at[FIRST_OFFSET], at[FIRST_ROWS],
        constant(SEGMENT.rows),
    )  # fmt: skip


@triton.jit
def unit_pointers(at, p_frames, byte, SEGMENT: tl.constexpr):
    """Address of the first byte of units, which are moved in one go if they are 16 bytes."""
    p = state_pointers(at, p_frames, byte, SEGMENT)
    if SEGMENT.unit > 1:
        p = tl.multiple_of(p, [16, 16, 16, 16])
    return p


@triton.jit
def code_pointers(at, p_frames, i_m, o_p, o_u, SEGMENT: tl.constexpr):
    """Codes of a tile of head number `i_m` of a segment, (NB, BLOCK, NU, E); see `tile_offsets`."""
    element = (i_m * SEGMENT.head_dim + o_p) * SEGMENT.rank + o_u
    byte = at[CODES_START] + element * SEGMENT.size
    p = unit_pointers(at, p_frames, byte, SEGMENT)
    o_e = tl.arange(0, SEGMENT.unit)[None, None, None, :]
    if SEGMENT.code == FLOAT32:
        return p.to(tl.pointer_type(tl.float32)) + o_e
    elif SEGMENT.code == BFLOAT16:
        return p.to(tl.pointer_type(tl.bfloat16)) + o_e
    elif SEGMENT.code == FLOAT16:
        return p.to(tl.pointer_type(tl.float16)) + o_e
    elif SEGMENT.code == INT8:
        return p.to(tl.pointer_type(tl.int8)) + o_e
    else:
        return p + o_e


@triton.jit
def exponent_pointer(at, p_frames, i_m, SEGMENT: tl.constexpr):
    """The one scale byte of a head in float16."""
    return state_pointers(at, p_frames, at[SCALES_START] + i_m, SEGMENT)


@triton.jit
def scale_pointers(at, p_frames, i_m, i_block, SEGMENT: tl.constexpr):
    """Scale bytes of a tile, (NB, 1, NU, E) for int8 or (1, 1, NU, E) for float8, and their
    mask."""
    o_u = (tl.arange(0, SEGMENT.num_units) * SEGMENT.unit)[None, None, :, None]
    o_e = tl.arange(0, SEGMENT.unit)[None, None, None, :]
    mask = o_u < SEGMENT.rank
    if SEGMENT.code == INT8:
        o_b = (i_block * SEGMENT.num_blocks + tl.arange(0, SEGMENT.num_blocks))[:, None, None, None]
        row = i_m * (SEGMENT.head_dim // SEGMENT.block) + o_b
        mask = mask & (o_b < SEGMENT.head_dim // SEGMENT.block)
    else:
        row = i_m
    byte = at[SCALES_START] + row * SEGMENT.rank + o_u
    return unit_pointers(at, p_frames, byte, SEGMENT) + o_e, mask
