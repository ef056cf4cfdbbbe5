"""`pool_copy` in Triton: one program per piece of a frame, 16 bytes at a time."""

import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch

WORD_BYTES = 8
BLOCK_WORDS = 2048


@triton.jit
def pool_copy_fwd_kernel(
    p_source,
    p_target,
    p_source_frames,  # (n,)
    p_target_frames,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_source = tl.load(p_source_frames + tl.program_id(0)).to(tl.int64)
    i_target = tl.load(p_target_frames + tl.program_id(0)).to(tl.int64)
    if (i_source >= 0) & (i_target >= 0):
        o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        p_from = (p_source + i_source * (8 * WORDS)).to(tl.pointer_type(tl.int64))
        p_to = (p_target + i_target * (8 * WORDS)).to(tl.pointer_type(tl.int64))
        tl.store(p_to + o, tl.load(p_from + o, mask=o < WORDS, other=0), mask=o < WORDS)


def pool_copy_triton(
    source: Tensor, target: Tensor, source_frames: Tensor, target_frames: Tensor, frame_bytes: int
) -> None:
    """See `pool_copy`."""
    words = frame_bytes // WORD_BYTES
    block = min(BLOCK_WORDS, triton.next_power_of_2(words))
    launch(
        pool_copy_fwd_kernel,
        (len(source_frames), triton.cdiv(words, block)),
        num_warps=4,
        num_stages=1,
        p_source=source,
        p_target=target,
        p_source_frames=source_frames.contiguous(),
        p_target_frames=target_frames.contiguous(),
        WORDS=words,
        BLOCK=block,
    )
