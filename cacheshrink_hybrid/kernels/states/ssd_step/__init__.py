"""One step of Mamba-2's recurrence on states in the pool."""

from __future__ import annotations

from torch import Tensor

from ...backend import Backend, uses_triton
from ...checks import check_shapes
from ..pages import StatePages, check_state_tables, num_groups

__all__ = ["ssd_step"]


def ssd_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    *,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
    backend: Backend = "auto",
) -> Tensor:
    """Take one token of each sequence into its state, and read it.

        S = exp(dt A) S + dt x write^T,    y = S read

    The state is read through one table and written through another, coded anew; y is that of the
    state before coding. Heads share `write` and `read` by groups; a head of rank r uses their first
    r channels. With a reduced state these are B and C in its basis.

    Args:
        x: (B, M, P).
        dt: step sizes after softplus, (B, M).
        A: negative decay rates, (M,).
        write, read: (B, G, width), width the largest rank.
        pages: where the layer's states lie.
        read_table, write_table: frames of each sequence's state, (B, frames), int32. A first frame
            of -1 reads as zeros, and is not written. They may be the same.

    Returns:
        y (B, M, P), in x's type.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.

    Reference: Dao and Gu, Transformers are SSMs (arXiv 2405.21060), section 6.
    """
    B, M, P = len(x), pages.format.num_heads, pages.format.head_dim
    groups = num_groups(write, M)
    check_state_tables(pages.num_frames, B, read_table, write_table)
    check_shapes(
        x=(x, (B, M, P)),
        dt=(dt, (B, M)),
        A=(A, (M,)),
        write=(write, (B, groups, pages.format.width)),
        read=(read, (B, groups, pages.format.width)),
    )
    arguments = (x, dt, A, write, read, pages, read_table, write_table)
    if uses_triton(backend, pages.arena, *arguments):
        from .kernel import ssd_step_triton

        return ssd_step_triton(*arguments)
    from .reference import ssd_step_reference

    return ssd_step_reference(*arguments)
