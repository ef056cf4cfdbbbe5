"""Decoding from the pool: the kernel against its reference, and that against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.decode import LatentRead, latent_decode
from cacheshrink_hybrid.kernels.latents.row_reference import gather_latents

from ...cases import LAYOUTS, combined
from ...checks import assert_close
from ...pools import filled_rows, row_addresses

every_layout = pytest.mark.parametrize("name", LAYOUTS)
T = 8
RAGGED = [2 * T + 5, 0, 1, T - 1, T, T + 1, 9 * T + 3]


def _query(batch: int, tokens: int, heads: int, channels: int, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, tokens, heads, channels, generator=generator).to(dtype)


def _ranks(name: str) -> tuple[int, int]:
    """Key and value ranks that overlap, cut runs, and leave channels out on both sides."""
    channels = LAYOUTS[name].num_channels
    return (channels // 2 + 4) // 8 * 8, channels * 3 // 4 // 8 * 8


@pytest.mark.parametrize(("name", "num_splits"), combined(LAYOUTS, [1, 3]))
def test_equals_reference(name: str, num_splits: int, device: torch.device) -> None:
    rows, table, lens = filled_rows(LAYOUTS[name], RAGGED, device=device)
    key_rank, value_rank = _ranks(name)
    query = _query(len(RAGGED), 1, 5, key_rank).to(device)
    offset = torch.randn(len(RAGGED), 1, 5, device=device)
    read = LatentRead(key_rank=key_rank, value_rank=value_rank, scale=0.3)
    due = latent_decode(query, rows, table, lens, read=read, offset=offset, backend="torch")
    got = latent_decode(
        query, rows, table, lens, read=read, offset=offset, num_splits=num_splits, backend="triton"
    )
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])
    assert (got[0][1] == 0).all() and (got[1][1] == -torch.inf).all()


OPTIONS = {
    "softcap": {"softcap": 5.0},
    "window": {"window": 11},
    "everything": {"window": 20, "softcap": 8.0},
}


@pytest.mark.parametrize(("option", "num_splits", "tokens"), combined(OPTIONS, [4, 1], [3, 1]))
def test_options(option: str, num_splits: int, tokens: int, device: torch.device) -> None:
    lens = [70, 3, 0, 33]
    rows, table, context = filled_rows(LAYOUTS["mixed"], lens, device=device)
    heads = 7
    read = LatentRead(key_rank=64, value_rank=64, scale=0.1, **OPTIONS[option])
    if read.window is not None:  # frames that nobody sees any more are given back
        table[0, 1:4] = -1
    query = _query(len(lens), tokens, heads, 64).to(device)
    due = latent_decode(query, rows, table, context, read=read, backend="torch")
    got = latent_decode(
        query, rows, table, context, read=read, num_splits=num_splits, backend="triton"
    )
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_first_slots(num_splits: int, window: int | None, device: torch.device) -> None:
    """Padding on the left is not seen, whatever lies there: less than a tile, some tiles, all."""
    lens = [50, 50, 50]
    first = torch.tensor([0, 13, 49], dtype=torch.int32, device=device)
    rows, table, context = filled_rows(LAYOUTS["8"], lens, device=device)
    read = LatentRead(key_rank=48, value_rank=48, scale=0.1, window=window)
    query = _query(3, 2, 3, 48).to(device)
    options = {"read": read, "first_slots": first}
    due = latent_decode(query, rows, table, context, backend="torch", **options)
    got = latent_decode(
        query, rows, table, context, num_splits=num_splits, backend="triton", **options
    )
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])
    # The second query of the last sequence sees itself alone, the first one nothing.
    latent, _ = gather_latents(rows, table, 50)
    assert (due[0][2, 0] == 0).all()
    torch.testing.assert_close(due[0][2, 1], latent[2, 49].expand(3, -1))
    # Without its padding, a sequence gives the same.
    alone = latent[1, 13:]
    scores = query[1].cpu().float() @ alone.cpu().T * 0.1  # (tokens, heads, slots)
    slot = torch.arange(13, 50)
    position = torch.tensor([48, 49])[:, None]
    seen = slot <= position
    if window is not None:
        seen = seen & (slot > position - window)
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    torch.testing.assert_close(due[0][1].cpu(), weights @ alone.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "num_splits"), [("torch", 1), ("triton", 1), ("triton", 3)])
def test_parts_are_merged_by_their_sums(
    backend: str, num_splits: int, device: torch.device
) -> None:
    """What some slots give and what the others give make the whole: some, all, and none."""
    rows, table, context = filled_rows(LAYOUTS["mixed"], [30, 9, 20], device=device, outliers=False)
    read = LatentRead(key_rank=64, value_rank=64, scale=0.1)
    query = _query(3, 1, 3, 64).to(device)
    options = {"read": read, "backend": backend}
    whole, total = latent_decode(query, rows, table, context, **options)
    cut = torch.tensor([12, 9, 0], dtype=torch.int32, device=device)
    options["num_splits"] = num_splits
    parts = [
        latent_decode(query, rows, table, cut, **options),
        latent_decode(query, rows, table, context, first_slots=cut, **options),
    ]
    assert (parts[1][1][1] == -torch.inf).all() and (parts[0][1][2] == -torch.inf).all()
    assert_close(torch.logaddexp(parts[0][1], parts[1][1]), total)
    merged = sum(out * torch.exp(lse - total)[..., None] for out, lse in parts)
    assert_close(merged, whole)


@pytest.mark.parametrize("num_splits", [1, 2])
def test_frames_as_long_as_tiles(num_splits: int, device: torch.device) -> None:
    """A tile of 32 slots that lies in one frame is read by other means."""
    lens = [130, 64, 31]
    rows, table, context = filled_rows(LAYOUTS["mixed"], lens, device=device, frame_tokens=64)
    table[0, 1] = -1
    query = _query(3, 1, 3, 64).to(device)
    read = LatentRead(key_rank=64, value_rank=64, scale=0.1)
    due = latent_decode(query, rows, table, context, read=read, backend="torch")
    got = latent_decode(
        query, rows, table, context, read=read, num_splits=num_splits, backend="triton"
    )
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bfloat16", "mixed"])
def test_16_bit_queries(name: str, dtype: torch.dtype, device: torch.device) -> None:
    lens = [45, 20]
    rows, table, context = filled_rows(LAYOUTS[name], lens, device=device, frame_tokens=16)
    key_rank, value_rank = _ranks(name)
    query = _query(2, 1, 20, key_rank, dtype).to(device)
    read = LatentRead(key_rank=key_rank, value_rank=value_rank, scale=0.3)
    due = latent_decode(query.float(), rows, table, context, read=read, backend="torch")
    got = latent_decode(query, rows, table, context, read=read, backend="triton")
    assert got[0].dtype == dtype
    assert_close(got[0], due[0].to(dtype))


def test_large_queries_do_not_overflow(device: torch.device) -> None:
    rows, table, context = filled_rows(LAYOUTS["8"], [30], device=device)
    query = _query(1, 1, 4, 48).to(device) * 1e6
    read = LatentRead(key_rank=48, value_rank=48, scale=1e-6)
    due = latent_decode(query, rows, table, context, read=read, backend="torch")
    got = latent_decode(query.to(torch.bfloat16), rows, table, context, read=read, backend="triton")
    assert_close(got[0], due[0].to(torch.bfloat16), factor=4)


def test_lost_tokens_spoil_those_who_see_them(device: torch.device) -> None:
    rows, table, context = filled_rows(LAYOUTS["8"], [20, 20], device=device)
    slot = table[1, 1:2] * rows.frame_tokens + 3
    rows.arena[row_addresses(rows, slot)[0, rows.layout.gain_byte]] = 255
    query = _query(2, 10, 2, 48).to(device)  # queries at slots 10 to 19; slot 11 is lost
    read = LatentRead(key_rank=48, value_rank=48, scale=0.1)
    for backend in ("torch", "triton"):
        output, _ = latent_decode(query, rows, table, context, read=read, backend=backend)
        assert output[0].isfinite().all()
        assert output[1, 0].isfinite().all()
        assert output[1, 1:].isnan().all()


@every_layout
def test_reference_is_attention(name: str) -> None:
    rows, table, context = filled_rows(LAYOUTS[name], [21], device=torch.device("cpu"))
    latent, has_frame = gather_latents(rows, table, 21)
    assert has_frame.all()
    rank = LAYOUTS[name].num_channels
    query = _query(1, 2, 3, rank)
    read = LatentRead(key_rank=rank, value_rank=rank, scale=0.2)
    got, lse = latent_decode(query, rows, table, context, read=read, backend="torch")
    mask = torch.ones(2, 21, dtype=torch.bool).tril(19)
    kv = latent[:, None].expand(1, 3, 21, rank)
    due = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), kv, kv, attn_mask=mask, scale=0.2
    )
    torch.testing.assert_close(got.transpose(1, 2), due, rtol=1e-5, atol=1e-5)
    scores = 0.2 * torch.matmul(query.transpose(1, 2), kv.transpose(2, 3))
    due_lse = scores.masked_fill(~mask, -torch.inf).logsumexp(-1).transpose(1, 2)
    torch.testing.assert_close(lse, due_lse)


def test_bad_arguments(device: torch.device) -> None:
    rows, table, context = filled_rows(LAYOUTS["8"], [9], device=device)
    query = _query(1, 1, 2, 48).to(device)
    read = LatentRead(key_rank=48, value_rank=16, scale=1.0)
    with pytest.raises(ConfigError, match="due is 48"):
        latent_decode(query[..., :40], rows, table, context, read=read)
    with pytest.raises(ConfigError, match="due is int32"):
        latent_decode(query, rows, table.long(), context, read=read)
    with pytest.raises(ConfigError, match="num_splits=0"):
        latent_decode(query, rows, table, context, read=read, num_splits=0)
    with pytest.raises(ConfigError, match=r"window=0.*softcap=-1"):
        LatentRead(key_rank=1, value_rank=1, scale=1.0, window=0, softcap=-1.0)
    with pytest.raises(ConfigError, match="pass the 48 channels"):
        wide = LatentRead(key_rank=48, value_rank=64, scale=1.0)
        latent_decode(query, rows, table, context, read=wide)
