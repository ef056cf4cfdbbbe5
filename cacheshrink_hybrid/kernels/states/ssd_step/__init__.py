"""One step of Mamba-2's recurrence on states in the pool."""

from __future__ import annotations

from torch import Tensor

from ...backend import Backend, uses_triton
from ..pages import StatePages, check_shapes, check_state_tables, num_groups

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
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Take one token of each sequence into its state, and read it.

        S = exp(dt A) S + dt x write^T,    y = S read + D x

    The state is read through one table and written through another, coded anew; y is that of the
    state before coding. Heads share `write` and `read` by groups; a head of rank r uses their first
    r channels. With a reduced state these are B and C in its basis.

    Args:
        x: (B, M, P).
        dt: step sizes, (B, M): after softplus, or before it if `dt_bias` is given.
        A: negative decay rates, (M,).
        write, read: (B, G, width), width the largest rank.
        pages: where the layer's states lie.
        read_table, write_table: frames of each sequence's state, (B, frames), int32. A first frame
            of -1 reads as zeros, and is not written. They may be the same.
        D: skip connection, (M,); None for none.
        dt_bias: added to dt before its softplus, (M,); None if dt is a step size already.

    Returns:
        y (B, M, P), in x's type.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.

    Reference: Dao and Gu, Transformers are SSMs (arXiv 2405.21060), section 6.
    """
    B, M, P = len(x), pages.num_heads, pages.head_dim
    groups = num_groups(write, M)
    check_state_tables(pages, B, read_table, write_table)
    check_shapes(
        x=(x, (B, M, P)),
        dt=(dt, (B, M)),
        A=(A, (M,)),
        write=(write, (B, groups, pages.width)),
        read=(read, (B, groups, pages.width)),
        D=(D, (M,)),
        dt_bias=(dt_bias, (M,)),
    )
    arguments = (x, dt, A, write, read, pages, read_table, write_table, D, dt_bias)
    tensors = (x, dt, A, write, read, pages.arena, read_table, write_table, D, dt_bias)
    if uses_triton(backend, *tensors):
        from .kernel import ssd_step_triton

        return ssd_step_triton(*arguments)
    from .reference import ssd_step_reference

    return ssd_step_reference(*arguments)
