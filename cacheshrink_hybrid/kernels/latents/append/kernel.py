"""`latent_append` in Triton.

One program codes BLOCK_T tokens: their gains are found over the coded pieces, which it holds; then
it writes the bytes, piece by piece. Channels that share a byte are loaded apart, so that packing
moves nothing between threads.
"""

import triton
import triton.language as tl
from torch import Tensor

from ....codecs import gains
from ....codecs.levels import step_tables
from ...launch import launch
from ...numerics import constant, float8_code, rounded
from ..paged_rows import PagedRows
from ..pieces import FramedRows, pieces_of
from ..row_tile import E4M3, E5M2, FIRST_GAIN, FLOAT16, FLOAT32
from .gain_search import codes_of, gain_codes

LOST = tl.constexpr(gains.LOST)


@triton.jit
def _channels(p_x, p_center, m_t, o_c, m_c):
    """Centred channels (T, channels), float32, zero where masked."""
    x = tl.load(p_x[:, None] + o_c[None, :], mask=m_t[:, None] & m_c[None, :], other=0.0)
    x = x.to(tl.float32)
    if p_center is not None:
        x = x - tl.load(p_center + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    return x


@triton.jit
def _clipped(x, LIMIT: tl.constexpr):
    x = tl.where(x > LIMIT, LIMIT, x)
    return tl.where(x < -LIMIT, -LIMIT, x)


@triton.jit
def _write_plane(
    p_x,
    p_center,
    p_row,
    p_steps,
    m_t,
    kept,
    gain,
    SHIFT: tl.constexpr,
    PIECE: tl.constexpr,
    PLANE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write a plane of a coded piece: the bits of its codes from SHIFT on."""
    PER_BYTE: tl.constexpr = 8 // PLANE.bits
    N: tl.constexpr = PIECE.width // PER_BYTE
    o = tl.arange(0, N)
    byte = tl.zeros([BLOCK_T, N], tl.int32)
    for j in tl.static_range(PER_BYTE):
        o_c = o * PER_BYTE + j
        m_c = o_c < PIECE.valid
        x = _channels(p_x, p_center, m_t, o_c, m_c)
        x = tl.div_rn(tl.where(kept[:, None], x, 0.0), gain[:, None])
        number = (codes_of(x, p_steps, PIECE) >> SHIFT) & (2**PLANE.bits - 1)
        byte = byte | tl.where(m_c[None, :], number << (PLANE.bits * j), 0)
    m_out = m_t[:, None] & (o < PLANE.num_bytes)[None, :]
    tl.store(p_row[:, None] + (PLANE.first_byte + o)[None, :], byte.to(tl.uint8), mask=m_out)


@triton.jit
def _write_floats(p_x, p_center, p_row, m_t, kept, PIECE: tl.constexpr, EVEN: tl.constexpr):
    """Write a piece of floats; NaN throughout for lost tokens."""
    p_out = p_row + PIECE.planes[0].first_byte
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
    p_costs,  # (R,) or None
    p_slots,  # (N,)
    p_arena,
    p_tables,
    p_steps,
    num_tokens,
    layer_offset,
    CHANNELS: tl.constexpr,
    PIECES: tl.constexpr,
    CODED: tl.constexpr,
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
    for i in tl.static_range(len(PIECES)):
        o_c = PIECES[i].key_channel + tl.arange(0, PIECES[i].width)
        m_c = tl.arange(0, PIECES[i].width) < PIECES[i].valid
        x = _channels(p_x, p_center, m_t, o_c, m_c)
        lost = tl.maximum(lost, tl.max((x - x != 0.0).to(tl.int32), 1))
    kept = lost == 0

    gain = tl.full([BLOCK_T], 1.0, tl.float32)
    if ROWS.gain_byte >= 0:
        tiles = ()
        weights = ()
        for i in tl.static_range(len(CODED)):
            o_c = CODED[i].key_channel + tl.arange(0, CODED[i].width)
            m_c = tl.arange(0, CODED[i].width) < CODED[i].valid
            x = _channels(p_x, p_center, m_t, o_c, m_c)
            tiles = tiles + (tl.where(kept[:, None], x, 0.0),)
            weight = m_c.to(tl.float32)
            if p_costs is not None:
                weight = tl.load(p_costs + o_c, mask=m_c, other=0.0).to(tl.float32)
            weights = weights + (weight,)
        code = gain_codes(tiles, weights, p_tables, p_steps, CODED, BLOCK_T)
        gain = tl.load(p_tables + FIRST_GAIN + code)
        tl.store(p_row + ROWS.gain_byte, tl.where(kept, code, LOST).to(tl.uint8), mask=m_t)

    for i in tl.static_range(len(PIECES)):
        p_piece = p_x + PIECES[i].key_channel
        p_mean = p_center
        if p_center is not None:
            p_mean = p_center + PIECES[i].key_channel
        if PIECES[i].coded:
            for j in tl.static_range(len(PIECES[i].planes)):
                _write_plane(
                    p_piece,
                    p_mean,
                    p_row,
                    p_steps,
                    m_t,
                    kept,
                    gain,
                    j * PIECES[i].planes[0].bits,
                    constant(PIECES[i]),
                    constant(PIECES[i].planes[j]),
                    BLOCK_T,
                )
        else:
            _write_floats(p_piece, p_mean, p_row, m_t, kept, constant(PIECES[i]), ROWS.even)
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
    costs: Tensor | None,
) -> None:
    """See `latent_append`."""
    layout, tables = rows.layout, rows.tables
    channels = layout.num_channels
    pieces = pieces_of(layout, keys=(0, channels), values=(0, channels))
    block_t = 4
    launch(
        latent_append_fwd_kernel,
        (triton.cdiv(latent.shape[0], block_t),),
        num_warps=4,
        num_stages=1,
        p_latent=latent.contiguous(),
        p_center=center,
        p_costs=costs,
        p_slots=slot_mapping.contiguous(),
        p_arena=rows.arena,
        p_tables=tables,
        p_steps=None if tables is None else step_tables(rows.arena.device),
        num_tokens=latent.shape[0],
        layer_offset=rows.layer_offset,
        CHANNELS=channels,
        PIECES=pieces,
        CODED=tuple(piece for piece in pieces if piece.coded),
        END=layout.after_gain,
        ROWS=FramedRows.of(rows),
        BLOCK_T=block_t,
    )
