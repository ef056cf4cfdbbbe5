"""Rows that one launch has no room for, read in two passes, whole or in portions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout
from cacheshrink_hybrid.kernels.latents.decode import BlockUp, KeyUp, LatentRead, latent_decode
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.latents.prefill import latent_prefill

from ...checks import assert_close
from ...pools import filled_rows, row_addresses

pytest.importorskip("triton")
from cacheshrink_hybrid.kernels.latents.decode.scratch import PassSizes, Portion
from cacheshrink_hybrid.kernels.latents.decode.two_passes import latent_decode_in_two_passes

J, D, H = 2, 20, 6
LENS = [40, 0, 9]

# More channels than one launch holds: whole pieces of runs and what is left of them.
LAYOUTS = {
    "mixed": RowFormat(alignment=16).layout([(16, 16), (136, 5), (20, 8), (100, 4)]),
    "narrow": RowFormat().layout([(140, 6), (124, 2), (4, 1), (16, 3)]),
    "floats": RowLayout.of_runs([(136, Kind.E4M3), (100, Kind.FLOAT16), (30, Kind.FLOAT32)]),
    "plain": RowFormat(gains=False).layout([(260, 4), (12, 8)]),
}
# Keys of so many channels that heads share their runs, and values behind them.
APART, KEY_RANK = RowFormat(alignment=16).layout([(80, 6), (64, 3), (130, 4), (56, 8)]), 144


def _angles(slots: Tensor, device: torch.device) -> Tensor:
    return slots[:, None].to(device) * 0.7 ** torch.arange(8, device=device)


def _read(kind: str, channels: int, device: torch.device, **options: Any) -> LatentRead:
    joint = kind in ("absorb", "joint", "rotate_joint")
    key_rank = channels if joint else KEY_RANK
    ups: dict[str, Any] = {}
    if kind in ("joint", "per_head"):
        rank = key_rank // J if kind == "per_head" else key_rank
        of_slots = _angles(torch.arange(96), device)
        ups["key_up"] = KeyUp(
            weight=torch.randn(J, D, rank, device=device) / rank**0.5,
            bias=torch.randn(J, D, device=device),
            cos=of_slots.cos(),
            sin=of_slots.sin(),
            norm_weight=torch.rand(D, device=device) + 0.5 if kind == "joint" else None,
            norm_epsilon=1e-6,
            per_head=kind == "per_head",
        )
    elif kind != "absorb":
        back = -_angles(torch.arange(0, 96, 32), device)
        ups["block_up"] = BlockUp(
            weight=torch.randn(J, D, key_rank, device=device) / key_rank**0.5,
            mean=torch.randn(J, 32, D, device=device),
            cos=back.cos(),
            sin=back.sin(),
        )
    value_rank = channels if joint else channels - key_rank
    return LatentRead(key_rank=key_rank, value_rank=value_rank, scale=0.1, **ups, **options)


def _rows(name: str, kind: str, device: torch.device) -> tuple[PagedRows, Tensor, Tensor]:
    layout = APART if kind in ("per_head", "rotate") else LAYOUTS[name]
    return filled_rows(layout, LENS, device=device, outliers=False)


CASES = (
    ("mixed", "absorb", {}),
    ("plain", "absorb", {"softcap": 4.0, "window": 41}),
    ("narrow", "joint", {"window": 30}),
    ("floats", "joint", {}),
    ("mixed", "per_head", {"softcap": 4.0, "window": 41}),
    ("mixed", "rotate", {}),
    ("floats", "rotate_joint", {"softcap": 4.0}),
    ("mixed", "rotate_joint", {"window": 30}),
)


@pytest.mark.parametrize(
    ("name", "kind", "options"), CASES, ids=[f"{kind}-{name}" for name, kind, _ in CASES]
)
def test_equals_reference(
    name: str, kind: str, options: dict[str, Any], device: torch.device
) -> None:
    rows, table, lens = _rows(name, kind, device)
    read = _read(kind, rows.layout.num_channels, device, **options)
    assert not read.in_one_launch(rows.layout.num_channels, 4)
    query = torch.randn(len(LENS), 2, H, read.query_width, device=device)
    offset = torch.randn(len(LENS), 2, H, device=device) if kind == "absorb" else None
    asked: dict[str, Any] = {"read": read, "offset": offset}
    due = latent_decode(query, rows, table, lens, **asked, backend="torch")
    got = latent_decode(query, rows, table, lens, **asked, num_splits=2, backend="triton")
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])
    assert (got[0][1] == 0).all() and (got[1][1] == -torch.inf).all()


# Bytes of scratch, in those of a token, or None for a step; and what is then read at once.
PORTIONS = {
    "sequences": ("absorb", 4, (2, 2, 2)),
    "tokens": ("per_head", 1, (1, 1, 2)),
    "slots": ("rotate_joint", None, (1, 1, 1)),
}


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of padding, in the interpreter
@pytest.mark.parametrize(
    "portion", ["sequences", "tokens", pytest.param("slots", marks=pytest.mark.slow)]
)
def test_portions_make_the_whole(portion: str, device: torch.device) -> None:
    """Of chunks with padding on the left, missing frames, and fewer tokens than there are
    queries."""
    kind, tokens, most = PORTIONS[portion]
    rows, table, lens = _rows("mixed", kind, device)
    table[0, 2] = -1
    read = _read(kind, rows.layout.num_channels, device, window=30)
    new = torch.tensor([2, 0, 1], dtype=torch.int32, device=device)
    first = torch.tensor([13, 0, 0], dtype=torch.int32, device=device)
    query = torch.randn(len(LENS), 2, H, read.query_width, device=device)
    valid = torch.arange(2, device=device) < new[:, None]
    arguments = query, rows, table, lens
    due = latent_prefill(*arguments, new, read=read, first_slots=first, backend="torch")
    sizes = PassSizes.of(query, rows, table, read)
    limit = sizes.step_bytes * (1 if tokens is None else tokens * sizes.num_steps)
    assert sizes.portion(limit) == Portion(*most)
    got = latent_decode_in_two_passes(
        *arguments, read=read, offset=None, query_lens=new, first_slots=first, num_splits=None,
        scratch_bytes=limit,
    )  # fmt: skip
    assert_close(got[0][valid], due[0][valid])
    assert_close(got[1][valid], due[1][valid])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_queries(dtype: torch.dtype, device: torch.device) -> None:
    rows, table, lens = _rows("mixed", "rotate_joint", device)
    read = _read("rotate_joint", rows.layout.num_channels, device)
    query = torch.randn(len(LENS), 1, H, D, device=device).to(dtype)
    due = latent_decode(query.float(), rows, table, lens, read=read, backend="torch")
    got = latent_decode(query, rows, table, lens, read=read, backend="triton")
    assert got[0].dtype == dtype
    assert_close(got[0], due[0].to(dtype))


def test_large_queries_do_not_overflow(device: torch.device) -> None:
    rows, table, lens = _rows("mixed", "absorb", device)
    channels = rows.layout.num_channels
    read = LatentRead(key_rank=channels, value_rank=channels, scale=1e-6)
    query = torch.randn(len(LENS), 1, H, channels, device=device) * 1e6
    due = latent_decode(query, rows, table, lens, read=read, backend="torch")
    half = query.to(torch.bfloat16)
    got = latent_decode(half, rows, table, lens, read=read, backend="triton")
    assert_close(got[0], due[0].to(torch.bfloat16), factor=4)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of numpy, in the interpreter
@pytest.mark.parametrize("kind", ["absorb", "joint"])
def test_lost_tokens_spoil_those_who_see_them(kind: str, device: torch.device) -> None:
    rows, table, lens = _rows("narrow", kind, device)
    slot = table[0, 4:5].long() * rows.frame_tokens + 5  # slot 37
    rows.arena[row_addresses(rows, slot)[0, rows.layout.gain_byte]] = 255
    read = _read(kind, rows.layout.num_channels, device)
    query = torch.randn(len(LENS), 4, H, read.query_width, device=device)  # from slot 36 on
    for backend in ("torch", "triton"):
        output, _ = latent_decode(query, rows, table, lens, read=read, backend=backend)
        assert output[0, 0].isfinite().all()
        assert output[0, 1:].isnan().all()
        assert output[2].isfinite().all()


def test_sizes(device: torch.device) -> None:
    """By hand: an 8 B model at 4x, of which one sequence's scratch is 1.9 KB a slot and layer."""
    layout = RowFormat(alignment=16).layout([(240, 6), (560, 5), (720, 4), (320, 3)])
    rows = PagedRows(
        arena=torch.empty(0, dtype=torch.uint8, device=device),
        layout=layout,
        frame_bytes=64 * layout.row_bytes,
        frame_tokens=64,
    )
    angles = torch.zeros(512, 64, device=device)
    up = BlockUp(
        weight=torch.empty(8, 128, 1840, device=device),
        mean=torch.empty(8, 64, 128, device=device),
        cos=angles,
        sin=angles,
    )
    read = LatentRead(key_rank=1840, value_rank=1840, scale=1.0, block_up=up)
    query = torch.empty(4, 1, 32, 128, dtype=torch.bfloat16, device=device)
    table = torch.empty(4, 512, dtype=torch.int32, device=device)
    sizes = PassSizes.of(query, rows, table, read)
    assert (sizes.step, sizes.num_steps, sizes.num_slots) == (64, 512, 32768)
    pieces = sum(stretch.count for stretch in sizes.keys)
    assert pieces == 2 + 5 + 6 + 3
    number = sizes.dtype.itemsize
    of_block = pieces * (128 * number + 4) + 64 * 4
    assert sizes.step_bytes == 32 * (of_block + 64 * number + 8)
    assert sizes.portion(2**40) == sizes.portion(4 * 512 * sizes.step_bytes)
    assert sizes.portion(3 * 512 * sizes.step_bytes).sequences == 3
    assert sizes.portion(100 * sizes.step_bytes).steps == 100
    assert sizes.portion(1).steps == 1
