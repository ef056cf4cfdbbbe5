"""`latent_append` compiled for CPUs."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..cpu.row_view import coded_view, row_reading, runs_view
from ..cpu.tables import coding_tables
from ..cpu.writing import write_rows
from ..paged_rows import PagedRows


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
    write_rows(
        latent.detach().float().contiguous().numpy(),
        np.zeros(channels, np.float32) if center is None else center.float().numpy(),
        np.ones(channels, np.float32) if costs is None else costs.detach().float().numpy(),
        slot_mapping.contiguous().numpy(),
        rows.arena.numpy(),
        runs_view(layout),
        coded_view(layout),
        coding_tables(),
        row_reading(rows),
    )
