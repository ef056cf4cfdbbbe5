"""`latent_append` in Triton.

One program codes BLOCK_T tokens: a first pass over the pieces finds their gains, a second one
writes the bytes. Channels that share a byte are loaded apart, so that packing moves nothing between
threads.
"""

import triton
import triton.language as tl
from torch import Tensor

from ....codecs import levels
from ...launch import launch
from ...numerics import constant, float8_code, rounded
from ..paged_rows import PagedRows
from ..row_tile import (
    E4M3,
    E5M2,
    FIRST_LEVELS2,
    FLOAT16,
    FLOAT32,
    HEAD_ESCAPED_LEVELS,
    HEAD_LEVELS,
    HEAD_NAN,
    LEVELS4,
    UNIFORM8,
    UNIFORM_CLIP,
    FramedRows,
    pieces_of,
)

HEAD_GAINS = tl.constexpr(levels.HEAD_GAINS)


@triton.jit
def _channels(p_x, p_center, m_t, o_c, m_c):
    """Centred channels (T, channels), float32, zero where masked."""
    x = tl.load(p_x[:, None] + o_c[None, :], mask=m_t[:, None] & m_c[None, :], other=0.0)
    x = x.to(tl.float32)
    if p_center is not None:
        x = x - tl.load(p_center + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    return x


@triton.jit
def _position(x):
    """Place of x between -4.5 and 4.5, 0 to 1."""
    return tl.div_rn(x, 2.0 * UNIFORM_CLIP) + 0.5


@triton.jit
def _level_codes(x, p_levels, BITS: tl.constexpr):
    """Index of the nearest of 2**BITS levels."""
    code = tl.zeros(x.shape, tl.int32)
    for i in tl.static_range(2**BITS - 1):
        edge = 0.5 * (tl.load(p_levels + i) + tl.load(p_levels + i + 1))
        code += (x > edge).to(tl.int32)
    return code


@triton.jit
def _clipped(x, LIMIT: tl.constexpr):
    x = tl.where(x > LIMIT, LIMIT, x)
    return tl.where(x < -LIMIT, -LIMIT, x)


@triton.jit
def _write_codes(
    p_x, p_center, p_out, p_levels, m_t, kept, inverse, PIECE: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Write a coded piece, but for the head byte; the first channel, divided by the gain, (T,)."""
    PER_BYTE: tl.constexpr = 4 if PIECE.kind > LEVELS4 else 2 if PIECE.kind == LEVELS4 else 1
    N: tl.constexpr = PIECE.width // PER_BYTE
    o = tl.arange(0, N)
    m_c = o < PIECE.valid // PER_BYTE
    m_out = m_t[:, None] & m_c[None, :]
    first = tl.zeros([BLOCK_T], tl.float32)
    byte = tl.zeros([BLOCK_T, N], tl.int32)
    for j in tl.static_range(PER_BYTE):
        x = _channels(p_x, p_center, m_t, o * PER_BYTE + j, m_c)
        x = tl.where(kept[:, None], x, 0.0) * inverse[:, None]
        if PIECE.kind == UNIFORM8:
            code = tl.floor(_position(x) * 256)
            byte = tl.maximum(tl.minimum(code, 255.0), 0.0).to(tl.int32)
            if PIECE.head:
                first = tl.sum(tl.where((o == 0)[None, :], x, 0.0), 1)
                m_out = m_out & (o > 0)[None, :]
        elif PIECE.kind == LEVELS4:
            byte = byte | (_level_codes(x, p_levels, 4) << (4 * j))
        else:
            byte = byte | (_level_codes(x, p_levels + FIRST_LEVELS2, 2) << (2 * j))
    tl.store(p_out[:, None] + o[None, :], byte.to(tl.uint8), mask=m_out)
    return first


@triton.jit
def _write_floats(p_x, p_center, p_out, m_t, kept, PIECE: tl.constexpr, EVEN: tl.constexpr):
    """Write a piece of floats; NaN throughout for lost tokens."""
    o = tl.arange(0, PIECE.width)
    m_c = o < PIECE.valid
    m_out = m_t[:, None] & m_c[None, :]
    x = _channels(p_x, p_center, m_t, o, m_c)
    x = tl.where(kept[:, None], x, float("nan"))
    if PIECE.kind == FLOAT32:
        word = tl.where(x == x, x.to(tl.uint32, bitcast=True), 0x7FC00000)
        p_word = p_out.to(tl.pointer_type(tl.uint32))
        tl.store(p_word[:, None] + o[None, :], word.to(tl.uint32), mask=m_out)
    elif PIECE.kind == E4M3:
        tl.store(p_out[:, None] + o[None, :], float8_code(_clipped(x, 448.0), 3, -6), mask=m_out)
    elif PIECE.kind == E5M2:
        tl.store(p_out[:, None] + o[None, :], float8_code(_clipped(x, 57344.0), 2, -14), mask=m_out)
    else:
        if PIECE.kind == FLOAT16:
            half = _clipped(x, 65504.0).to(tl.float16)
            word = tl.where(x == x, half.to(tl.uint16, bitcast=True), 0x7E00)
        else:
            half = rounded(_clipped(x, 3.3895313892515355e38), tl.bfloat16)
            word = tl.where(x == x, half.to(tl.uint16, bitcast=True), 0x7FC0)
        word = word.to(tl.uint16)
        if EVEN:
            p_half = p_out.to(tl.pointer_type(tl.uint16))
            tl.store(p_half[:, None] + o[None, :], word, mask=m_out)
        else:
            p_half = p_out[:, None] + 2 * o[None, :]
            tl.store(p_half, (word & 0xFF).to(tl.uint8), mask=m_out)
            tl.store(p_half + 1, (word >> 8).to(tl.uint8), mask=m_out)


@triton.jit
def latent_append_fwd_kernel(
    p_latent,  # (N, R)
    p_center,  # (R,) or None
    p_reach,  # (R,) or None
    p_slots,  # (N,)
    p_arena,
    p_levels,
    num_tokens,
    layer_offset,
    CHANNELS: tl.constexpr,
    PIECES: tl.constexpr,
    END: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < num_tokens
    slot = tl.load(p_slots + o_t, mask=m_t, other=-1)
    m_t = m_t & (slot >= 0)
    o_byte = (slot // ROWS.frame_tokens) * ROWS.frame_bytes + layer_offset
    o_byte += (slot % ROWS.frame_tokens) * ROWS.row_bytes
    p_row = p_arena + tl.where(m_t, o_byte, 0)
    p_x = p_latent + o_t.to(tl.int64) * CHANNELS

    lost = tl.zeros([BLOCK_T], tl.int32)
    largest = tl.zeros([BLOCK_T], tl.float32)
    for i in tl.static_range(len(PIECES)):
        o_c = PIECES[i].key_channel + tl.arange(0, PIECES[i].width)
        m_c = tl.arange(0, PIECES[i].width) < PIECES[i].valid
        x = _channels(p_x, p_center, m_t, o_c, m_c)
        lost = tl.maximum(lost, tl.max((x - x != 0.0).to(tl.int32), 1))
        if PIECES[i].coded and ROWS.head_byte >= 0:
            magnitude = tl.abs(x)
            if p_reach is not None:
                limit = tl.load(p_reach + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
                beyond = magnitude > limit
            else:
                beyond = magnitude > UNIFORM_CLIP
            largest = tl.maximum(largest, tl.max(tl.where(beyond, magnitude, 0.0), 1))
    kept = lost == 0
    largest = tl.div_rn(tl.where(kept, largest, 0.0), UNIFORM_CLIP)
    exponent = tl.zeros([BLOCK_T], tl.int32)
    for i in tl.static_range(HEAD_GAINS):
        exponent += (largest > 2**i).to(tl.int32)
    inverse = ((127 - exponent) << 23).to(tl.float32, bitcast=True)

    head_value = tl.zeros([BLOCK_T], tl.float32)
    for i in tl.static_range(len(PIECES)):
        p_piece = p_x + PIECES[i].key_channel
        p_mean = p_center
        if p_center is not None:
            p_mean = p_center + PIECES[i].key_channel
        p_out = p_row + PIECES[i].byte
        if PIECES[i].coded:
            first = _write_codes(
                p_piece, p_mean, p_out, p_levels, m_t, kept, inverse, constant(PIECES[i]), BLOCK_T
            )
            if PIECES[i].head:
                head_value = first
        else:
            _write_floats(p_piece, p_mean, p_out, m_t, kept, constant(PIECES[i]), ROWS.even)
    if ROWS.head_byte >= 0:
        place = tl.maximum(tl.minimum(_position(head_value), 1.0), 0.0)
        fine = tl.minimum(tl.floor(place * HEAD_LEVELS), HEAD_LEVELS - 1.0).to(tl.int32)
        coarse = tl.floor(place * HEAD_ESCAPED_LEVELS)
        coarse = tl.minimum(coarse, HEAD_ESCAPED_LEVELS - 1.0).to(tl.int32)
        escaped = (exponent - 1) * HEAD_ESCAPED_LEVELS + HEAD_LEVELS + coarse
        head = tl.where(kept, tl.where(exponent > 0, escaped, fine), HEAD_NAN)
        tl.store(p_row + ROWS.head_byte, head.to(tl.uint8), mask=m_t)
    if ROWS.row_bytes > END:
        o = tl.arange(0, 16)
        m_out = m_t[:, None] & (o < ROWS.row_bytes - END)[None, :]
        tl.store(p_row[:, None] + END + o[None, :], tl.zeros([BLOCK_T, 16], tl.uint8), mask=m_out)


def latent_append_triton(
    latent: Tensor,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    center: Tensor | None,
    reach: Tensor | None,
) -> None:
    """See `latent_append`."""
    layout = rows.layout
    channels = layout.num_channels
    block_t = 4
    launch(
        latent_append_fwd_kernel,
        (triton.cdiv(latent.shape[0], block_t),),
        num_warps=2,
        num_stages=1,
        p_latent=latent.contiguous(),
        p_center=center,
        p_reach=reach,
        p_slots=slot_mapping.contiguous(),
        p_arena=rows.arena,
        p_levels=rows.levels,
        num_tokens=latent.shape[0],
        layer_offset=rows.layer_offset,
        CHANNELS=channels,
        PIECES=pieces_of(layout, keys=(0, channels), values=(0, channels)),
        END=layout.after_scales,
        ROWS=FramedRows.of(rows),
        BLOCK_T=block_t,
    )
