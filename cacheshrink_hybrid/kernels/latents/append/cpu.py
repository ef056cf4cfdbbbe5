"""`latent_append` compiled for CPUs."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
from torch import Tensor

from ...workers import in_parallel, num_shares
from ..cpu.row_view import coded_view, row_reading, runs_view
from ..cpu.tables import coding_tables
from ..cpu.writing import write_rows
from ..paged_rows import PagedRows

LEAST_ROWS = 32
"""Of a thread, where there are several."""


def latent_append_cpu(
    latent: Tensor,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    center: Tensor | None,
    costs: Tensor | None,
) -> None:
    """See `latent_append`."""
    layout, channels = rows.layout, rows.layout.num_channels
    x, slots = latent.detach().float().contiguous().numpy(), slot_mapping.contiguous().numpy()
    options = (
        np.zeros(channels, np.float32) if center is None else center.float().numpy(),
        np.ones(channels, np.float32) if costs is None else costs.detach().float().numpy(),
    )
    where = (
        rows.arena.numpy(),
        runs_view(layout),
        coded_view(layout),
        coding_tables(),
        row_reading(rows),
    )
    shares = num_shares(len(slots), LEAST_ROWS)
    ends = [len(slots) * share // shares for share in range(shares + 1)]
    parts = [slice(begin, end) for begin, end in pairwise(ends)]
    in_parallel([partial(write_rows, x[part], *options, slots[part], *where) for part in parts])
