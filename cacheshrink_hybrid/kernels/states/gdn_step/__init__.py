"""One step of the gated delta rule on states in the pool."""

from __future__ import annotations

from torch import Tensor

from ...backend import Backend, uses_triton
from ...checks import check_shapes
from ..pages import StatePages, check_state_tables, num_groups

__all__ = ["gdn_step"]


def gdn_step(
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
    *,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
    backend: Backend = "auto",
) -> Tensor:
    """Take one token of each sequence into its state, and read it.

        S' = exp(log_decay) S,    S = S' + beta (value - S' key) key^T,    y = S query

    per value head, values by keys; value heads share keys and queries by groups. Keys and queries
    come normalised and, for a reduced state, projected; projected keys are not normalised again.

    Args:
        key, query: (B, G, width), width the largest rank.
        value: (B, M, P).
        log_decay: at most 0, (B, M).
        beta: (B, M).
        pages, read_table, write_table: as in `ssd_step`.

    Returns:
        y (B, M, P), in value's type.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.

    Reference: Yang et al., Gated Delta Networks (arXiv 2412.06464), section 3.
    """
    B, M, P = len(value), pages.format.num_heads, pages.format.head_dim
    groups = num_groups(key, M)
    check_state_tables(pages.num_frames, B, read_table, write_table)
    check_shapes(
        value=(value, (B, M, P)),
        key=(key, (B, groups, pages.format.width)),
        query=(query, (B, groups, pages.format.width)),
        log_decay=(log_decay, (B, M)),
        beta=(beta, (B, M)),
    )
    arguments = (key, value, log_decay, beta, query, pages, read_table, write_table)
    if uses_triton(backend, pages.arena, *arguments):
        from .kernel import gdn_step_triton

        return gdn_step_triton(*arguments)
    from .reference import gdn_step_reference

    return gdn_step_reference(*arguments)
