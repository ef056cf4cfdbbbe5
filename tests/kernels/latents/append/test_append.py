"""Appending: the kernel writes the rows that reference and codec write, and nothing else."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs import RowCodec, RowFormat
from cacheshrink_hybrid.codecs.levels import levels_of
from cacheshrink_hybrid.errors import ConfigError, KernelUnavailableError
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.row_reference import decode_rows

from ...cases import LAYOUTS, combined
from ...checks import assert_same_rows
from ...pools import empty_rows, random_latents, row_addresses

every_layout = pytest.mark.parametrize("name", LAYOUTS)


@pytest.mark.parametrize(("name", "dtype"), combined(LAYOUTS, [torch.float32, torch.bfloat16]))
def test_rows_are_those_of_the_reference(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Lost tokens, tiny and huge ones, one beyond the largest gain, and one of zeros; nothing else
    is written."""
    layout = LAYOUTS[name]
    latent = random_latents(12, layout.num_channels).to(device, dtype)
    center = torch.linspace(-1, 1, layout.num_channels, device=device)
    centered = latent.float() - center
    centered[3, 1] = torch.nan
    centered[4, -1] = -torch.inf
    centered[5] *= 1e4
    centered[6] = 0.0
    centered[8] *= 1e-3
    latent = (centered + center).to(dtype)
    costs = torch.logspace(0, -3, layout.num_channels, device=device)
    slots = torch.randperm(4 * 8, device=device)[:12]
    slots[7] = slots[10] = -1
    kept = slots >= 0
    found = {}
    for backend in ("triton", "torch"):
        rows = empty_rows(layout, device=device, num_frames=4, poison=0xA5)
        latent_append(latent, rows, slots, center=center, costs=costs, backend=backend)
        at = row_addresses(rows, slots[kept])
        found[backend] = rows.arena[at]
        rows.arena[at] = 0xA5
        assert (rows.arena == 0xA5).all()
    centered = latent.float() - center
    assert_same_rows(found["triton"], found["torch"], centered[kept], layout, costs)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_any_number_of_tokens(count: int, device: torch.device) -> None:
    """None, one, and one less, as many, and one more than a program takes."""
    layout, arenas = LAYOUTS["8"], []
    latent = random_latents(count, layout.num_channels).to(device)
    slots = torch.randperm(8, device=device)[:count]
    for backend in ("triton", "torch"):
        rows = empty_rows(layout, device=device, num_frames=1)
        latent_append(latent, rows, slots, backend=backend)
        arenas.append(rows.arena)
    assert torch.equal(*arenas)
    assert (arenas[0] != 0xFF).any() == (count > 0)


@every_layout
def test_reading_back(name: str, device: torch.device) -> None:
    layout = LAYOUTS[name]
    latent = random_latents(8, layout.num_channels, outliers=False).clamp(-2.7, 2.7).to(device)
    coded = any(run.kind.coded for run in layout.runs)
    tells_lost = layout.gain_byte is not None or not coded
    latent[2] = torch.nan
    rows = empty_rows(layout, device=device, num_frames=1, layer_offset=0)
    latent_append(latent, rows, torch.arange(8, device=device), backend="triton")
    stored = rows.arena[: 8 * layout.row_bytes].view(8, -1)
    read = decode_rows(stored, layout)
    assert read[2].isnan().all() == tells_lost
    kept = torch.arange(8, device=device) != 2
    error = (read - latent)[kept].abs()
    for run in layout.runs:
        bound = {32: 1e-7, 16: 0.011, 8: 0.26}.get(run.bits)
        if bound is None:  # the widest cell, and what lies beyond the outermost level
            levels = levels_of(run.bits)
            bound = 1.3 * max(float(levels.diff().max()) / 2, 2.7 - float(levels[-1]))
        assert error[:, run.at_channel].max() < bound


@pytest.mark.parametrize(
    ("gains", "runs"),
    [
        (True, ((16, 16), (40, 8), (30, 6), (8, 4), (16, 2))),
        (True, ((24, 5), (17, 3), (8, 1))),
        (False, ((16, 2), (16, 8), (33, 5))),
    ],
)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_rows_are_those_of_the_codec(
    gains: bool, runs: tuple[tuple[int, int], ...], backend: Backend, device: torch.device
) -> None:
    codec = RowCodec(runs, RowFormat(gains=gains))
    layout = codec.layout
    latent = random_latents(20, layout.num_channels).to(device)
    latent[7] = torch.nan
    costs = torch.linspace(0.1, 1, layout.num_channels, device=device)
    rows = empty_rows(layout, device=device, num_frames=3)
    slots = torch.arange(20, device=device)
    latent_append(latent, rows, slots, costs=costs, backend=backend)
    stored = rows.arena[row_addresses(rows, slots)]
    assert_same_rows(stored, codec.encode(latent, costs), latent, layout, costs)
    due = codec.decode(stored, torch.float32)
    torch.testing.assert_close(decode_rows(stored, layout), due, equal_nan=True)


def test_bad_arguments(device: torch.device) -> None:
    layout = LAYOUTS["float16"]
    rows = empty_rows(layout, device=device, num_frames=2)
    before = rows.arena.clone()
    good = torch.zeros(3, 48, device=device)
    slots = torch.arange(3, device=device)
    with pytest.raises(ConfigError, match=r"due is floating point \(N, 48\)"):
        latent_append(good[:, :40], rows, slots)
    with pytest.raises(ConfigError, match="slot_mapping"):
        latent_append(good, rows, slots.int())
    with pytest.raises(ConfigError, match=r"costs has shape \(40,\)"):
        latent_append(good, rows, slots, costs=torch.ones(40, device=device))
    with pytest.raises(ConfigError, match="backend='cuda' is unknown"):
        latent_append(good, rows, slots, backend="cuda")
    assert torch.equal(rows.arena, before)
    with pytest.raises(ConfigError, match=r"do not lie at multiples of 4 bytes: .* layer_offset=2"):
        empty_rows(LAYOUTS["float32"], device=device, num_frames=2, layer_offset=2)
    with pytest.raises(ConfigError, match="do not fit a frame"):
        type(rows)(arena=rows.arena, layout=layout, frame_bytes=256, frame_tokens=8)


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = empty_rows(LAYOUTS["float16"], device=torch.device("cpu"), num_frames=2)
    monkeypatch.setattr("cacheshrink_hybrid.kernels.backend._interpreting", lambda: False)
    latent, slots = torch.zeros(1, 48), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET=1"):
        latent_append(latent, rows, slots, backend="triton")
    latent_append(latent, rows, slots, backend="auto")
