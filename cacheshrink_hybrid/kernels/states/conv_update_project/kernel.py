"""`conv_update_project` in Triton.

One launch for everything: the first programs of a sequence take BLOCK_C channels of the values
each, the others a group of what writes or reads the state, which they also project. The grid is
(sequence, blocks of values + groups that write + groups that read).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launch
from ...numerics import LOG2_E, TRITON_DTYPES, rounded
from ..addresses import FrameRows, locate
from .pages import ConvPages

BLOCK_C = 256


@triton.jit
def _convolved(
    o_c,
    m_c,
    p_column,
    p_weight,
    p_bias,
    p_arena,
    p_read,
    p_write,
    first_frame,
    first_offset,
    first_rows,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """silu of the convolution at channels o_c, float32; their windows are moved on."""
    held = tl.load(p_read) >= 0
    kept = tl.load(p_write) >= 0
    newest = tl.load(p_column + o_c, mask=m_c, other=0.0).to(tl.float32)
    newest = rounded(newest, DTYPE)
    z = tl.load(p_weight + o_c * (COLUMNS + 1) + COLUMNS, mask=m_c, other=0.0).to(tl.float32)
    z = z * newest.to(tl.float32)
    if p_bias is not None:
        z += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    columns = ()
    for j in tl.static_range(COLUMNS):
        byte = (o_c * COLUMNS + j) * SIZE
        p = locate(p_arena, p_read, byte, first_frame, first_offset, first_rows, ROWS)
        m_read = tl.where(held, m_c, False)
        columns = columns + (tl.load(p.to(tl.pointer_type(DTYPE)), mask=m_read, other=0.0),)
        tap = tl.load(p_weight + o_c * (COLUMNS + 1) + j, mask=m_c, other=0.0).to(tl.float32)
        z += tap * columns[j].to(tl.float32)
    # Threads that hold the same channel must all have read it before one of them moves it on.
    tl.debug_barrier()
    for j in tl.static_range(1, COLUMNS):
        byte = (o_c * COLUMNS + j - 1) * SIZE
        p = locate(p_arena, p_write, byte, first_frame, first_offset, first_rows, ROWS)
        tl.store(p.to(tl.pointer_type(DTYPE)), columns[j], mask=tl.where(kept, m_c, False))
    byte = (o_c * COLUMNS + COLUMNS - 1) * SIZE
    p = locate(p_arena, p_write, byte, first_frame, first_offset, first_rows, ROWS)
    tl.store(p.to(tl.pointer_type(DTYPE)), newest, mask=tl.where(kept, m_c, False))
    return z / (1.0 + tl.exp2(-z * LOG2_E))


@triton.jit
def conv_update_project_fwd_kernel(
    p_column,  # (B, C)
    p_weight,  # (C, W)
    p_bias,  # (C,) or None
    p_write_basis,  # (G, N, RANK) or None
    p_read_basis,
    p_values,  # (B, VALUES)
    p_write,  # (B, G, RANK or N) float32, or None
    p_read,
    p_read_table,  # (B, max_frames)
    p_write_table,
    p_arena,
    max_frames,
    first_frame,
    first_offset,
    first_rows,
    CHANNELS: tl.constexpr,
    VALUES: tl.constexpr,
    VALUES_AT: tl.constexpr,
    WRITE_AT: tl.constexpr,
    READ_AT: tl.constexpr,
    GROUPS: tl.constexpr,
    N: tl.constexpr,
    WRITE_RANK: tl.constexpr,
    READ_RANK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
    SIZE: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    i_seq = tl.program_id(0).to(tl.int64)
    i_part = tl.program_id(1)
    num_blocks = (VALUES + BLOCK - 1) // BLOCK
    p_from = p_read_table + i_seq * max_frames
    p_to = p_write_table + i_seq * max_frames
    p_x = p_column + i_seq * CHANNELS
    if i_part < num_blocks:
        o = i_part * BLOCK + tl.arange(0, BLOCK)
        values = _convolved(
            VALUES_AT + o, o < VALUES, p_x, p_weight, p_bias, p_arena, p_from, p_to,
            first_frame, first_offset, first_rows, COLUMNS, DTYPE, SIZE, ROWS,
        )  # fmt: skip
        tl.store(p_values + i_seq * VALUES + o, rounded(values, OUT), mask=o < VALUES)
    else:
        i_shared = i_part - num_blocks
        i_group = i_shared % GROUPS
        reads = i_shared >= GROUPS
        if p_write is None:
            reads = i_shared >= 0
        o_n = tl.arange(0, BLOCK_N)
        at = tl.where(reads, READ_AT, WRITE_AT) + i_group * N
        z = _convolved(
            at + o_n, o_n < N, p_x, p_weight, p_bias, p_arena, p_from, p_to,
            first_frame, first_offset, first_rows, COLUMNS, DTYPE, SIZE, ROWS,
        )  # fmt: skip
        z = tl.where(o_n < N, z, 0.0)
        if NORMALIZE:
            z = z / tl.sqrt_rn(tl.sum(z * z, 0) + 1e-6)
        if p_read is not None:
            if reads:
                _project(z, p_read_basis, p_read, i_seq, i_group, GROUPS, N, READ_RANK, BLOCK_N,
                         BLOCK_R)  # fmt: skip
        if p_write is not None:
            if not reads:
                _project(z, p_write_basis, p_write, i_seq, i_group, GROUPS, N, WRITE_RANK, BLOCK_N,
                         BLOCK_R)  # fmt: skip


@triton.jit
def _project(
    z, p_basis, p_out, i_seq, i_group, GROUPS, N, RANK, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write z (N,), or its product with a basis (N, RANK)."""
    o_n = tl.arange(0, BLOCK_N)
    p_o = p_out + (i_seq * GROUPS + i_group) * RANK
    if p_basis is None:
        tl.store(p_o + o_n, z, mask=o_n < N)
    else:
        for first in tl.static_range(0, RANK, BLOCK_R):
            o_r = first + tl.arange(0, BLOCK_R)
            p = p_basis + (i_group * N + o_n[:, None]) * RANK + o_r[None, :]
            mask = (o_n < N)[:, None] & (o_r < RANK)[None, :]
            basis = tl.load(p, mask=mask, other=0.0).to(tl.float32)
            tl.store(p_o + o_r, tl.sum(z[:, None] * basis, 0), mask=o_r < RANK)


def conv_update_project_triton(
    column: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pages: ConvPages,
    read_table: Tensor,
    write_table: Tensor,
    order: tuple[str, ...],
    groups: int,
    group_size: int,
    write_basis: Tensor | None,
    read_basis: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `conv_update_project`."""
    B, C = column.shape
    shared = groups * group_size
    sizes = {"values": C - (len(order) - 1) * shared, "write": shared, "read": shared}
    starts = {name: sum(sizes[n] for n in order[:i]) for i, name in enumerate(order)}
    ranks = [group_size if basis is None else basis.shape[2] for basis in (write_basis, read_basis)]
    values = column.new_empty(B, sizes["values"])
    write, read = (
        column.new_empty(B, groups, rank, dtype=torch.float32) if name in order else None
        for name, rank in zip(("write", "read"), ranks, strict=True)
    )
    block_n = triton.next_power_of_2(max(group_size, 1))
    place = pages.place
    launch(
        conv_update_project_fwd_kernel,
        (B, triton.cdiv(sizes["values"], BLOCK_C) + (len(order) - 1) * groups),
        num_warps=4,
        num_stages=1,
        p_column=column.contiguous(),
        p_weight=weight.contiguous(),
        p_bias=bias,
        p_write_basis=None if write_basis is None else write_basis.contiguous(),
        p_read_basis=None if read_basis is None else read_basis.contiguous(),
        p_values=values,
        p_write=write,
        p_read=read,
        p_read_table=read_table,
        p_write_table=write_table,
        p_arena=pages.arena,
        max_frames=read_table.shape[1],
        first_frame=place.first_frame,
        first_offset=place.first_offset,
        first_rows=place.first_rows,
        CHANNELS=C,
        VALUES=sizes["values"],
        VALUES_AT=starts["values"],
        WRITE_AT=starts.get("write", 0),
        READ_AT=starts.get("read", 0),
        GROUPS=max(1, groups),  # without groups nobody asks, as with N
        N=max(1, group_size),
        WRITE_RANK=ranks[0],
        READ_RANK=ranks[1],
        NORMALIZE=normalize,
        COLUMNS=pages.columns,
        DTYPE=TRITON_DTYPES[pages.dtype],
        SIZE=pages.dtype.itemsize,
        OUT=TRITON_DTYPES[column.dtype],
        ROWS=FrameRows.of(place, pages.frame_bytes),
        BLOCK=BLOCK_C,
        BLOCK_N=block_n,
        BLOCK_R=max(16, min(triton.next_power_of_2(max(ranks)), 8192 // block_n)),
    )
    return values, write, read
