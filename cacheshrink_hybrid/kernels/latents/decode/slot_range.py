"""Device functions that say which queries a program of `latent_decode` holds, which slots they see,
and where those lie."""

import triton
import triton.language as tl

from ...numerics import LOG2_E


@triton.jit
def query_rows(
    p_context_lens,
    p_query_lens,
    p_first_slots,
    i_seq,
    first_row,
    num_tokens,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Rows of a program: token-major, and within a token the GROUP heads that read the same keys.

    Returns:
        Token and member of the group of each row, and whether it is one, (M,); slots of the
        sequence, how many of them are new, and the first one that is seen.
    """
    o_m = first_row + tl.arange(0, BLOCK_M)
    i_token = o_m // GROUP
    m_m = i_token < num_tokens
    context = tl.load(p_context_lens + i_seq)
    new = context * 0 + num_tokens
    if p_query_lens is not None:
        new = tl.load(p_query_lens + i_seq)
        m_m = m_m & (i_token < new)
    first_seen = context * 0
    if p_first_slots is not None:
        first_seen = tl.load(p_first_slots + i_seq)
    return i_token, o_m % GROUP, m_m, context, new, first_seen


@triton.jit
def block_range(
    context,
    new,
    first_seen,
    first_row,
    i_split,
    num_splits,
    max_slots,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Blocks [start, stop) of slots that some row of a program sees, those of this split.

    Args:
        context, new: slots of the sequence, and how many of them are new.
        first_seen: slots before are seen by nobody.
        first_row: of the program.

    Returns:
        start, stop, and the slots [first, last) that rows of the program see.
    """
    last_token = tl.minimum((first_row + BLOCK_M - 1) // GROUP, new - 1)
    last = tl.maximum(tl.minimum(context - new + last_token + 1, max_slots), 0)
    first = first_seen
    if WINDOW > 0:
        oldest = context - new + first_row // GROUP
        first = tl.maximum(oldest - WINDOW + 1, first_seen)
    first_block = first // BLOCK_N
    num_blocks = tl.maximum(tl.cdiv(last, BLOCK_N) - first_block, 0)
    per_split = tl.cdiv(num_blocks, num_splits)
    start = i_split * per_split
    stop = tl.minimum(start + per_split, num_blocks)
    return first_block + start, first_block + stop, first, last


@triton.jit
def row_pointers(
    p_arena,
    p_frames,
    block,
    m_n,
    layer_offset,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """First byte of the row of each slot of a block, and which of the slots `m_n` have a frame."""
    o_block = tl.arange(0, BLOCK_N)
    o_n = block * BLOCK_N + o_block
    if ROWS.frame_tokens % BLOCK_N == 0:
        # A tile lies in one frame, whose number the whole program shares.
        first_slot = block * BLOCK_N
        frame = tl.load(p_frames + first_slot // ROWS.frame_tokens)
        m_n = tl.where(frame >= 0, m_n, False)
        o_byte = tl.maximum(frame, 0).to(tl.int64) * ROWS.frame_bytes + layer_offset
        p_tile = p_arena + o_byte + (first_slot % ROWS.frame_tokens) * ROWS.row_bytes
        return p_tile + o_block * ROWS.row_bytes, m_n
    else:
        frame = tl.load(p_frames + o_n // ROWS.frame_tokens, mask=m_n, other=-1)
        m_n = m_n & (frame >= 0)
        o_byte = tl.maximum(frame, 0).to(tl.int64) * ROWS.frame_bytes + layer_offset
        return p_arena + o_byte + (o_n % ROWS.frame_tokens) * ROWS.row_bytes, m_n


@triton.jit
def seen_scores(s, m_n, o_n, position, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr):
    """Scores (M, N) of the slots `o_n` as powers of two, -inf where a query does not see."""
    if SOFTCAP > 0:
        s = SOFTCAP - 2.0 * SOFTCAP / (tl.exp2(s * (2.0 * LOG2_E / SOFTCAP)) + 1.0)
    seen = m_n[None, :] & (o_n[None, :] <= position[:, None])
    if WINDOW > 0:
        seen = seen & (o_n[None, :] > position[:, None] - WINDOW)
    return tl.where(seen, s * LOG2_E, -float("inf"))
