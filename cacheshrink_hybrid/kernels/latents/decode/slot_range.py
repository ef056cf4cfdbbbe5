"""Device functions that say which slots a program of `latent_decode` reads, and where they lie."""

import triton
import triton.language as tl


@triton.jit
def block_range(
    context,
    new,
    first_seen,
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

    Returns:
        start, stop, and the slots [first, last) that rows of the program see.
    """
    first_row = tl.program_id(2) * BLOCK_M
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
    first_slot,
    m_n,
    layer_offset,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """First byte of the row of each of BLOCK_N slots from `first_slot` on, a multiple of that, and
    which of the slots `m_n`, none of them before slot 0, have a frame."""
    o_block = tl.arange(0, BLOCK_N)
    o_n = first_slot + o_block
    if ROWS.frame_tokens % BLOCK_N == 0:
        # A tile lies in one frame, whose number the whole program shares.
        frame = tl.load(p_frames + tl.maximum(first_slot, 0) // ROWS.frame_tokens)
        m_n = tl.where(frame >= 0, m_n, False)
        o_byte = tl.maximum(frame, 0).to(tl.int64) * ROWS.frame_bytes + layer_offset
        p_tile = p_arena + o_byte + (first_slot % ROWS.frame_tokens) * ROWS.row_bytes
        return p_tile + o_block * ROWS.row_bytes, m_n
    else:
        frame = tl.load(p_frames + o_n // ROWS.frame_tokens, mask=m_n, other=-1)
        m_n = m_n & (frame >= 0)
        o_byte = tl.maximum(frame, 0).to(tl.int64) * ROWS.frame_bytes + layer_offset
        return p_arena + o_byte + (o_n % ROWS.frame_tokens) * ROWS.row_bytes, m_n
