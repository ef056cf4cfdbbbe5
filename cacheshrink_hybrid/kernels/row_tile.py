"""Device functions that read tiles of rows. Used by every kernel that reads latents.

A *piece* is a run, or a part of one, whose number of channels is padded to a power of two, because
tiles of Triton are. A tile of a piece holds numbers in units of the piece: values without the
token's gain, and for uniform8 counted in steps, so that codes become exact float16 numbers without
arithmetic. Gains multiply scores and probabilities, units multiply queries and results: nothing is
spent per stored element.
"""

from collections.abc import Iterator
from itertools import pairwise

import triton
import triton.language as tl

from .numerics import float8_value
from .row_layout import (
    ESCAPED_LEVELS,
    FIRST_ESCAPED,
    FIRST_LEVELS2,
    LOST,
    UNIFORM_CLIP,
    UNIFORM_STEP,
    Kind,
    RowLayout,
    RowRun,
)

FLOAT16 = tl.constexpr(int(Kind.FLOAT16))
BFLOAT16 = tl.constexpr(int(Kind.BFLOAT16))
E4M3 = tl.constexpr(int(Kind.E4M3))
E5M2 = tl.constexpr(int(Kind.E5M2))
UNIFORM8 = tl.constexpr(int(Kind.UNIFORM8))
LEVELS4 = tl.constexpr(int(Kind.LEVELS4))
LEVELS2 = tl.constexpr(int(Kind.LEVELS2))

LEVELS2_TABLE = tl.constexpr(FIRST_LEVELS2)
CLIP = tl.constexpr(UNIFORM_CLIP)
STEP = tl.constexpr(UNIFORM_STEP)
FINE = tl.constexpr(FIRST_ESCAPED)
COARSE = tl.constexpr(ESCAPED_LEVELS)
LOST_CODE = tl.constexpr(LOST)

# A piece, as a tuple of plain numbers, which is what a kernel can take as a constant.
KIND, WIDTH, VALID, BYTE, HEAD, CODED, UNIT = map(tl.constexpr, range(7))
IS_KEY, KEY_CHANNEL, KEY_INDEX = map(tl.constexpr, range(7, 10))
IS_VALUE, VALUE_CHANNEL, VALUE_INDEX = map(tl.constexpr, range(10, 13))

MIN_WIDTH = 16  # tl.dot multiplies no less
MAX_WIDTH = 128


def pieces_of(
    layout: RowLayout, *, keys: tuple[int, int], values: tuple[int, int]
) -> tuple[tuple, ...]:
    """Pieces of the channels that serve as keys, values, or both.

    Args:
        layout: what a row holds.
        keys: first channel of the keys, and the one behind the last.
        values: the same of the values.

    Returns:
        A tuple per piece: kind, width, channels that are not padding, first byte, whether it begins
        with the head channel, whether gains apply, unit; then for keys, and for values: whether it
        is read as such, its first channel among them, and its index among their pieces.
    """
    cuts = sorted({*keys, *values})
    pieces: list[tuple] = []
    counts = {"keys": 0, "values": 0}
    for first, last in pairwise(cuts):
        is_key = keys[0] <= first < keys[1]
        is_value = values[0] <= first < values[1]
        if not is_key and not is_value:
            continue
        for run in layout.between(first, last):
            for channel, byte, width, valid in _powers_of_two(run):
                pieces.append(
                    (
                        int(run.kind),
                        width,
                        valid,
                        byte,
                        channel == layout.head_channel,
                        run.kind.coded,
                        run.kind.unit,
                        is_key,
                        channel - keys[0],
                        counts["keys"],
                        is_value,
                        channel - values[0],
                        counts["values"],
                    )
                )
                counts["keys"] += is_key
                counts["values"] += is_value
    return tuple(pieces)


def _powers_of_two(run: RowRun) -> Iterator[tuple[int, int, int, int]]:
    """(first channel, first byte, width, channels that are not padding) of the pieces of a run."""
    done = 0
    while done < run.channels:
        left = run.channels - done
        width = MAX_WIDTH
        while width > max(left, MIN_WIDTH):
            width //= 2
        valid = min(width, left)
        yield run.first_channel + done, run.first_byte + done * run.kind.bits // 8, width, valid
        done += valid


@triton.jit
def load_head(p_row, m_row, HEAD_BYTE: tl.constexpr):
    """Head byte, gain, and 0 or NaN for tokens that are kept or lost, each (N,)."""
    head = tl.load(p_row + HEAD_BYTE, mask=m_row, other=0).to(tl.int32)
    exponent = tl.maximum(head - FINE + COARSE, 0) // COARSE
    gain = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    return head, gain, tl.where(head == LOST_CODE, float("nan"), 0.0)


@triton.jit
def head_unit(head):
    """Value of the head channel, divided by gain and step, float32."""
    fine = (head.to(tl.float32) + 0.5) * (2.0 * CLIP / FINE)
    coarse = (((head - FINE) & (COARSE - 1)).to(tl.float32) + 0.5) * (2.0 * CLIP / COARSE)
    return (tl.where(head < FINE, fine, coarse) - CLIP) * (1.0 / STEP)


@triton.jit
def load_bytes(p_row, m_row, FIRST: tl.constexpr, WIDTH: tl.constexpr, VALID: tl.constexpr):
    """Bytes [FIRST, FIRST + WIDTH) of each row, (N, WIDTH), zero from VALID on."""
    o_byte = tl.arange(0, WIDTH)
    p = p_row[:, None] + (FIRST + o_byte)[None, :]
    if VALID < WIDTH:
        return tl.load(p, mask=m_row[:, None] & (o_byte < VALID)[None, :], other=0)
    return tl.load(p, mask=m_row[:, None], other=0)


@triton.jit
def load_halves(
    p_row,
    m_row,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    VALID: tl.constexpr,
    EVEN: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """16-bit numbers from byte FIRST of each row, (N, WIDTH), zero from VALID on."""
    if EVEN:
        # Loaded as what they are, they go from shared memory to the matrix unit as they are.
        o = tl.arange(0, WIDTH)
        p = (p_row + FIRST).to(tl.pointer_type(DTYPE))[:, None] + o[None, :]
        if VALID < WIDTH:
            return tl.load(p, mask=m_row[:, None] & (o < VALID)[None, :], other=0.0)
        return tl.load(p, mask=m_row[:, None], other=0.0)
    pairs = load_bytes(p_row, m_row, FIRST, 2 * WIDTH, 2 * VALID)
    low, high = tl.split(tl.reshape(pairs, [pairs.shape[0], WIDTH, 2]))
    return (low.to(tl.uint16) | (high.to(tl.uint16) << 8)).to(DTYPE, bitcast=True)


@triton.jit
def load_piece(
    p_row,
    m_row,
    head,
    p_levels,
    holds_head,
    PIECE: tl.constexpr,
    EVEN: tl.constexpr,
    NATIVE_FLOAT8: tl.constexpr,
    DOT: tl.constexpr,
):
    """Tile (N, WIDTH) of a piece, in its units.

    Args:
        p_row: first byte of each row, (N,).
        m_row: rows to read; others give zeros or what a zero byte stands for.
        head: head bytes, (N,), read where the piece begins with the head channel.
        p_levels: tables of `row_levels`.
        holds_head: whether the head channel is really in this piece (it is not where the same piece
            is read for another head).
    """
    W: tl.constexpr = PIECE[WIDTH]
    if PIECE[KIND] == FLOAT16:
        return load_halves(p_row, m_row, PIECE[BYTE], W, PIECE[VALID], EVEN, tl.float16).to(DOT)
    elif PIECE[KIND] == BFLOAT16:
        x = load_halves(p_row, m_row, PIECE[BYTE], W, PIECE[VALID], EVEN, tl.bfloat16)
        if tl.bfloat16 == DOT:
            return x
        else:
            return x.to(tl.float32).to(DOT)
    elif PIECE[KIND] == E5M2:
        code = load_bytes(p_row, m_row, PIECE[BYTE], W, PIECE[VALID])
        return (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(DOT)
    elif PIECE[KIND] == E4M3:
        code = load_bytes(p_row, m_row, PIECE[BYTE], W, PIECE[VALID])
        return float8_value(code, NATIVE_FLOAT8).to(DOT)
    elif PIECE[KIND] == UNIFORM8:
        code = load_bytes(p_row, m_row, PIECE[BYTE], W, PIECE[VALID])
        # 0x6400 is 1024 as a float16, whose last bit then counts 1; both differences are exact.
        x = (code.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True).to(DOT) - 1024.0 - 127.5
        if PIECE[HEAD]:
            unit = head_unit(head).to(DOT)
            first = (tl.arange(0, W) == 0)[None, :] & holds_head
            x = tl.where(first, unit[:, None], x)
        return x
    elif PIECE[KIND] == LEVELS4:
        code = load_bytes(p_row, m_row, PIECE[BYTE], W // 2, PIECE[VALID] // 2).to(tl.int32)
        code = tl.reshape(tl.join(code & 15, code >> 4), [code.shape[0], W])
        return tl.load(p_levels + code).to(DOT)
    else:
        code = load_bytes(p_row, m_row, PIECE[BYTE], W // 4, PIECE[VALID] // 4).to(tl.int32)
        code = tl.reshape(tl.join(code & 15, code >> 4), [code.shape[0], W // 2])
        code = tl.reshape(tl.join(code & 3, code >> 2), [code.shape[0], W])
        return tl.load(p_levels + LEVELS2_TABLE + code).to(DOT)
