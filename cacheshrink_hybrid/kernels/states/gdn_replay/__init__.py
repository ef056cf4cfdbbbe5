"""The gated delta rule without writing the state at every token: recent inputs are kept and
replayed."""

from __future__ import annotations

from torch import Tensor

from ...backend import Backend, uses_triton
from ...checks import check_shapes
from ..pages import StatePages, num_groups
from ..replay_ring import DeltaRing, check_ring

__all__ = ["DeltaRing", "gdn_replay_step"]


def gdn_replay_step(
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
    *,
    pages: StatePages,
    ring: DeltaRing,
    table: Tensor,
    num_pending: Tensor,
    backend: Backend = "auto",
) -> Tensor:
    """Take one token of each sequence in, and read the state that results.

        S' = exp(log_decay) S,    S = S' + beta (value - S' key) key^T,    y = S query

    over the inputs in the ring, oldest first, then the token. A token that finds room in the ring
    is kept there, and the stored state stays as it is; one that finds the ring full goes with all
    of the ring into the state, which is coded anew. Inputs count as the ring stores them. The
    caller counts `num_pending` on, from ring.length to 0.

    Args:
        key, value, log_decay, beta, query: as in `gdn_step`.
        pages, ring, table, num_pending: as in `ssd_replay_read`.

    Returns:
        y (B, M, P), in value's type.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.
    """
    B, M, P = len(value), pages.format.num_heads, pages.format.head_dim
    groups = num_groups(key, M)
    check_ring(pages, ring, B, table, table, num_pending)
    check_shapes(
        value=(value, (B, M, P)),
        key=(key, (B, ring.groups, pages.format.width)),
        query=(query, (B, groups, pages.format.width)),
        log_decay=(log_decay, (B, M)),
        beta=(beta, (B, M)),
    )
    arguments = (key, value, log_decay, beta, query, pages, ring, table, num_pending)
    if uses_triton(backend, pages.arena, *arguments):
        from .kernel import gdn_replay_step_triton

        return gdn_replay_step_triton(*arguments)
    from .reference import gdn_replay_step_reference

    return gdn_replay_step_reference(*arguments)
