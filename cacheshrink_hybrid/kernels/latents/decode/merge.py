"""Merging what the splits of a sequence have found, by their log-sum-exp, in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launch
from ...numerics import LOG2_E, TRITON_DTYPES, rounded


@triton.jit
def latent_merge_fwd_kernel(
    p_part,  # (rows, splits, RV) float32
    p_part_lse,  # (rows, splits), base 2
    p_out,  # (rows, RV)
    p_lse,  # (rows,), natural
    num_splits,
    VALUE_WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BLOCK_SPLITS)
    lse = tl.load(p_part_lse + o_row * num_splits + o_s, mask=o_s < num_splits, other=-float("inf"))
    largest = tl.max(lse, 0)
    base = tl.where(largest == -float("inf"), 0.0, largest)
    # Splits that saw nothing wrote no mean; a lost token is NaN, which is not -inf.
    weight = tl.where(lse != -float("inf"), tl.exp2(lse - base), 0.0)
    norm = tl.sum(weight, 0)
    norm = tl.where(norm == 0.0, 1.0, norm)
    if tl.program_id(1) == 0:
        tl.store(p_lse + o_row, (largest + tl.log2(norm)) / LOG2_E)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = p_part + (o_row * num_splits + o_s[:, None]) * VALUE_WIDTH + o_c[None, :]
    mask = (lse != -float("inf"))[:, None] & (o_c < VALUE_WIDTH)[None, :]
    part = tl.load(p, mask=mask, other=0.0)
    mean = tl.sum(part * weight[:, None], 0) / norm
    tl.store(p_out + o_row * VALUE_WIDTH + o_c, rounded(mean, OUT), mask=o_c < VALUE_WIDTH)


def merge_splits(part: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor) -> None:
    """Write the output (B, T, H, RV) and the log-sum-exp (B, T, H) of all splits.

    Args:
        part: mean of each split, (B, T, H, splits, RV) float32.
        part_lse: its log-sum-exp in base 2, (B, T, H, splits); -inf for splits that saw nothing.
    """
    B, T, H, width = out.shape
    num_splits = part.shape[3]
    block_splits = triton.next_power_of_2(num_splits)
    most = max(16, 4096 // block_splits)  # of more numbers, threads run out of registers
    block_c = min(64, most, max(16, triton.next_power_of_2(width)))
    launch(
        latent_merge_fwd_kernel,
        (B * T * H, triton.cdiv(width, block_c)),
        num_warps=2,
        num_stages=1,
        p_part=part,
        p_part_lse=part_lse,
        p_out=out,
        p_lse=lse,
        num_splits=num_splits,
        VALUE_WIDTH=width,
        OUT=TRITON_DTYPES[out.dtype],
        BLOCK_SPLITS=block_splits,
        BLOCK_C=block_c,
    )
