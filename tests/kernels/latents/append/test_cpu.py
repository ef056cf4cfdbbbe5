"""Appending by functions compiled for the CPU: the bytes of the reference, and nothing else."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.kernels.latents.append import latent_append

from ...cases import LAYOUTS
from ...checks import assert_same_rows
from ...pools import empty_rows, random_latents, row_addresses

pytest.importorskip("numba")
HOST = torch.device("cpu")
COUNT = 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_are_those_of_the_reference(name: str, dtype: torch.dtype) -> None:
    """Lost tokens, tiny and huge ones, one beyond the largest gain, and one of zeros."""
    layout = LAYOUTS[name]
    center = torch.linspace(-1, 1, layout.num_channels)
    latent = random_latents(COUNT, layout.num_channels).to(dtype)
    centered = latent.float() - center
    centered[3, 1] = torch.nan
    centered[4, -1] = -torch.inf
    centered[5] *= 1e4
    centered[6] = 0.0
    centered[8] *= 1e-3
    centered[9] *= 1e-6
    latent = (centered + center).to(dtype)
    slots = torch.randperm(8 * 10)[:COUNT]
    slots[7] = slots[11] = -1
    kept = slots >= 0
    for costs in (None, torch.logspace(0, -3, layout.num_channels)):
        found = {}
        for backend in ("cpu", "torch"):
            rows = empty_rows(layout, device=HOST, num_frames=10, poison=0xA5)
            latent_append(latent, rows, slots, center=center, costs=costs, backend=backend)
            at = row_addresses(rows, slots[kept])
            found[backend] = rows.arena[at]
            rows.arena[at] = 0xA5
            assert (rows.arena == 0xA5).all()
        differing = (found["cpu"] != found["torch"]).any(dim=1)
        assert differing.sum() <= 1  # gains that are as good as each other are rare
        due = (latent.float() - center)[kept]
        assert_same_rows(found["cpu"], found["torch"], due, layout, costs)


@pytest.mark.parametrize("count", [0, 1])
def test_few_tokens(count: int) -> None:
    layout, arenas = LAYOUTS["8"], []
    latent, slots = random_latents(count, layout.num_channels), torch.arange(count)
    for backend in ("cpu", "torch"):
        rows = empty_rows(layout, device=HOST, num_frames=1)
        latent_append(latent, rows, slots, backend=backend)
        arenas.append(rows.arena)
    assert torch.equal(*arenas)
