"""Mamba-2 without writing the state at every token: recent inputs are kept and replayed."""

from __future__ import annotations

from torch import Tensor

from ...backend import Backend, uses_triton
from ...checks import check_shapes
from ..pages import StatePages, num_groups
from ..replay_ring import ReplayRing, check_ring

__all__ = ["ReplayRing", "ssd_replay_flush", "ssd_replay_read"]


def ssd_replay_read(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    *,
    pages: StatePages,
    ring: ReplayRing,
    table: Tensor,
    num_pending: Tensor,
    backend: Backend = "auto",
) -> Tensor:
    """Put one token of each sequence into its ring, and read the state that results.

        y = exp(c_n) S read + sum_(j <= n) exp(c_n - c_j) dt_j (write_j . read) x_j

    with c_j = A (dt_0 + .. + dt_j), S the stored state, and n = num_pending the place of the token.
    The stored state is read and stays as it is. Inputs count as the ring stores them, so that
    reading and flushing agree. The caller adds one to `num_pending`. A token that finds the ring
    full is read and not kept; give it to `ssd_replay_flush` as `newest`.

    Args:
        x, dt, A, write, read: as in `ssd_step`.
        pages: where the layer's states lie.
        ring: where inputs lie, in the same frames.
        table: frames of each sequence's state, (B, frames), int32; a first frame of -1 reads as no
            state and no inputs, and is not written.
        num_pending: inputs in each ring, (B,), int32, at most ring.length.

    Returns:
        y (B, M, P), in x's type.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.
    """
    B, M, P = len(x), pages.format.num_heads, pages.format.head_dim
    groups = num_groups(write, M)
    check_ring(pages, ring, B, table, table, num_pending)
    check_shapes(
        x=(x, (B, M, P)),
        dt=(dt, (B, M)),
        A=(A, (M,)),
        write=(write, (B, ring.groups, pages.format.width)),
        read=(read, (B, groups, pages.format.width)),
    )
    arguments = (x, dt, A, write, read, pages, ring, table, num_pending)
    if uses_triton(backend, pages.arena, *arguments):
        from .kernel import ssd_replay_read_triton

        return ssd_replay_read_triton(*arguments)
    from .reference import ssd_replay_read_reference

    return ssd_replay_read_reference(*arguments)


def ssd_replay_flush(
    A: Tensor,
    *,
    pages: StatePages,
    ring: ReplayRing,
    read_table: Tensor,
    write_table: Tensor,
    num_pending: Tensor,
    newest: tuple[Tensor, Tensor, Tensor] | None = None,
    backend: Backend = "auto",
) -> None:
    """Take the inputs of each ring, and one more, into the state, and write it.

        S <- exp(c_(n-1)) S + sum_(j < n) exp(c_(n-1) - c_j) dt_j x_j write_j^T

    States and rings are read through one table, states written through another. Sequences whose
    write table begins with -1 stay as they are, which is how the caller chooses whom to flush; it
    sets their `num_pending` to 0.

    Args:
        A: negative decay rates, (M,).
        pages, ring, num_pending: as in `ssd_replay_read`; num_pending at most ring.length.
        read_table, write_table: as in `ssd_step`.
        newest: x (B, M, P), dt (B, M) and write (B, G, width) of one more input behind those in the
            ring; None for none.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.
    """
    check_ring(pages, ring, len(num_pending), read_table, write_table, num_pending)
    num_groups(A.new_empty(0, ring.groups, 0), pages.format.num_heads)
    B, M = len(num_pending), pages.format.num_heads
    x, dt, write = newest or (None, None, None)
    check_shapes(
        A=(A, (M,)),
        x=(x, (B, M, pages.format.head_dim)),
        dt=(dt, (B, M)),
        write=(write, (B, ring.groups, pages.format.width)),
    )
    arguments = (A, pages, ring, read_table, write_table, num_pending, newest)
    if uses_triton(backend, pages.arena, x, dt, write, *arguments):
        from .kernel import ssd_replay_flush_triton

        ssd_replay_flush_triton(*arguments)
    else:
        from .reference import ssd_replay_flush_reference

        ssd_replay_flush_reference(*arguments)
