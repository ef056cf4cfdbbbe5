"""Keys that are stored rotated by their place in a block: queries are absorbed block by block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.decode import BlockUp, KeyUp, LatentRead, latent_decode

from ...cases import combined
from ...checks import assert_close
from ...pools import empty_rows, filled_rows, frame_tables, slots_of

J = 2
LENS = [45, 0, 8, 33]

# Layout, key rank, value rank, head dim, rotated channels, slots of a block.
CASES = {
    "mixed": (
        RowFormat(alignment=16).layout([(16, 16), (32, 8), (16, 6), (16, 1), (24, 4)]),
        80, 24, 16, 16, 16,
    ),
    # Channels that are not rotated, and values that are made of the keys' channels as well.
    "joint": (RowFormat().layout([(4, 5), (12, 3), (40, 8), (24, 6)]), 80, 80, 20, 8, 32),
    "float8": (RowLayout.of_runs([(72, Kind.E4M3)]), 40, 32, 32, 16, 64),
}  # fmt: skip


def _angles(slots: Tensor, rotary_dim: int) -> Tensor:
    return slots[:, None] * 0.7 ** torch.arange(rotary_dim // 2, device=slots.device)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """x (..., n, D) with its first pairs of channels rotated by angles (n, pairs)."""
    half = angles.shape[1]
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag, x[..., 2 * half :]], dim=-1)


def _block_up(weight: Tensor, mean: Tensor, rotary_dim: int, block_slots: int) -> BlockUp:
    """Of a weight (J, D, Rk) and a mean (J, D)."""
    place = torch.arange(block_slots, device=mean.device)
    table = _turned(mean[:, None].expand(-1, block_slots, -1), _angles(place, rotary_dim))
    back = -_angles(torch.arange(0, 64, block_slots, device=mean.device), rotary_dim)
    return BlockUp(weight=weight, mean=table, cos=back.cos(), sin=back.sin())


def _read(name: str, device: torch.device, **options) -> LatentRead:
    _, key_rank, value_rank, head_dim, rotated, block_slots = CASES[name]
    weight = torch.randn(J, head_dim, key_rank, device=device) / head_dim**0.5
    mean = torch.randn(J, head_dim, device=device)
    return LatentRead(
        key_rank=key_rank,
        value_rank=value_rank,
        scale=key_rank**-0.5,
        block_up=_block_up(weight, mean, rotated, block_slots),
        **options,
    )


@pytest.mark.parametrize(("name", "num_splits"), combined(CASES, [1, 2]))
def test_compiled_equals_reference(name: str, num_splits: int) -> None:
    """Also where blocks end within what is decoded at once, and frames are missing."""
    pytest.importorskip("numba")
    layout, _, _, head_dim, _, _ = CASES[name]
    host = torch.device("cpu")
    lens = [*LENS, 61]
    rows, table, context = filled_rows(layout, lens, device=host, outliers=False)
    table[-1, 2] = -1
    read = _read(name, host, softcap=4.0, window=50)
    query = torch.randn(len(lens), 2, 3 * J, head_dim)
    due = latent_decode(query, rows, table, context, read=read, backend="torch")
    got = latent_decode(
        query, rows, table, context, read=read, num_splits=num_splits, backend="cpu"
    )
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])


@pytest.mark.parametrize(("name", "num_splits"), combined(CASES, [1, 2]))
def test_equals_reference(name: str, num_splits: int, device: torch.device) -> None:
    layout, _, _, head_dim, _, _ = CASES[name]
    rows, table, context = filled_rows(layout, LENS, device=device, outliers=False)
    read = _read(name, device, softcap=4.0, window=30)
    query = torch.randn(len(LENS), 2, 3 * J, head_dim, device=device)
    due = latent_decode(query, rows, table, context, read=read, backend="torch")
    got = latent_decode(
        query, rows, table, context, read=read, num_splits=num_splits, backend="triton"
    )
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_queries(dtype: torch.dtype, device: torch.device) -> None:
    layout, _, _, head_dim, _, _ = CASES["joint"]
    rows, table, context = filled_rows(layout, LENS, device=device, outliers=False)
    read = _read("joint", device)
    query = torch.randn(len(LENS), 1, 4 * J, head_dim, device=device).to(dtype)
    due = latent_decode(query.float(), rows, table, context, read=read, backend="torch")
    got = latent_decode(query, rows, table, context, read=read, backend="triton")
    assert_close(got[0], due[0].to(dtype))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("block_slots", [16, 64])
def test_is_attention_with_rotated_keys(
    block_slots: int, backend: str, device: torch.device
) -> None:
    """What is stored stands for R_j (k - m), at place j of its block; the rest is the mean."""
    num_tokens, head_dim, rotary_dim, kept = 41, 12, 8, 10
    mean, values = torch.randn(J, head_dim) + 2, torch.randn(num_tokens, 16)
    stored, weight = torch.randn(num_tokens, kept), torch.randn(J, head_dim, kept) / 3
    slot = torch.arange(num_tokens)
    of_block = torch.einsum("jdr,sr->jsd", weight, stored)
    centred = _turned(of_block, -_angles(slot % block_slots, rotary_dim))
    keys = _turned(centred + mean[:, None], _angles(slot, rotary_dim))
    latent = torch.cat([stored, values], dim=1).to(device)
    layout = RowLayout.of_runs([(kept + 16, Kind.FLOAT32)])
    rows = empty_rows(layout, device=device, num_frames=8)
    table = frame_tables([num_tokens], 8, num_frames=8)
    latent_append(latent, rows, slots_of(table, [num_tokens], 8).to(device), backend="torch")
    query = torch.randn(J, head_dim)
    got, _ = latent_decode(
        query[None, None].to(device),
        rows,
        table.to(device),
        torch.tensor([num_tokens], dtype=torch.int32, device=device),
        read=LatentRead(
            key_rank=kept,
            value_rank=16,
            scale=0.3,
            block_up=_block_up(weight.to(device), mean.to(device), rotary_dim, block_slots),
        ),
        backend=backend,
    )
    scores = torch.einsum("jd,jsd->js", query, keys)
    due = torch.softmax(0.3 * scores, dim=-1) @ values
    torch.testing.assert_close(got[0, 0].cpu(), due, rtol=1e-4, atol=1e-4)


def test_bad_arguments(device: torch.device) -> None:
    layout, key_rank, value_rank, head_dim, _, _ = CASES["mixed"]
    rows, table, context = filled_rows(layout, [9], device=device)
    read = _read("mixed", device)
    query = torch.randn(1, 1, J, key_rank, device=device)
    with pytest.raises(ConfigError, match=f"query has {key_rank} channels; due is 16"):
        latent_decode(query, rows, table, context, read=read)
    query = torch.randn(1, 1, 3, head_dim, device=device)
    with pytest.raises(ConfigError, match="3 query heads on 2 key heads"):
        latent_decode(query, rows, table, context, read=read)
    with pytest.raises(ConfigError, match="keys have a bias or a mean"):
        offset = torch.zeros(1, 1, 3, device=device)
        latent_decode(query, rows, table, context, read=read, offset=offset)
    up = read.block_up
    assert up is not None
    sizes = {"value_rank": value_rank, "scale": 1.0}
    with pytest.raises(ConfigError, match="key_rank=41, but block_up reads 80 channels"):
        LatentRead(key_rank=41, block_up=up, **sizes)
    key_up = KeyUp(weight=torch.zeros(J, head_dim, 80), bias=torch.zeros(J, head_dim))
    with pytest.raises(ConfigError, match="block_up of keys that are not"):
        LatentRead(key_rank=80, block_up=up, key_up=key_up, **sizes)
    for changes, fault in (
        ({"mean": up.mean[:, :12]}, "mean is of 12 slots; due is a power of two"),
        ({"weight": up.weight[:1]}, r"weight of \(J, D\)=\(1, 16\) does not fit a mean of \(2, 16"),
        ({"weight": up.weight[0]}, "weight is 2-d"),
        ({"sin": up.sin[:1]}, "cos and sin are not both"),
        ({"mean": up.mean[..., :12]}, r"16 rotated channels in keys of 12"),
    ):
        with pytest.raises(ConfigError, match=fault):
            replace(up, **changes)
