"""One step of Mamba-1's recurrence on states in the pool."""

from __future__ import annotations

from torch import Tensor

from ...backend import Backend, uses_triton
from ...checks import check_shapes
from ..pages import StatePages, check_state_tables

__all__ = ["mamba1_step"]


def mamba1_step(
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

        h[p, n] = exp(dt[p] A[p, n]) h[p, n] + dt[p] x[p] write[n],    y = h read

    per head, with a decay of its own for every element.

    Args:
        x: (B, M, P).
        dt: step sizes after softplus, (B, M, P).
        A: negative decay rates, (M, P, width), width the largest rank.
        write, read: B and C, (B, M, width).
        pages, read_table, write_table: as in `ssd_step`.

    Returns:
        y (B, M, P), in x's type.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`; also for heads whose scale depends on more elements
            than a program can hold (codes float16 and float8).

    Reference: Gu and Dao, Mamba (arXiv 2312.00752), algorithm 2.
    """
    B, M, P = len(x), pages.format.num_heads, pages.format.head_dim
    check_state_tables(pages.num_frames, B, read_table, write_table)
    check_shapes(
        x=(x, (B, M, P)),
        dt=(dt, (B, M, P)),
        A=(A, (M, P, pages.format.width)),
        write=(write, (B, M, pages.format.width)),
        read=(read, (B, M, pages.format.width)),
    )
    arguments = (x, dt, A, write, read, pages, read_table, write_table)
    if uses_triton(backend, pages.arena, *arguments):
        from .kernel import mamba1_step_triton

        return mamba1_step_triton(*arguments)
    from .reference import mamba1_step_reference

    return mamba1_step_reference(*arguments)
