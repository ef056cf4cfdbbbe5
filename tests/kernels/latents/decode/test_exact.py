"""Rows of recent and first tokens are read in the place of coded ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.row_format import RowFormat
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.decode import ExactPages, KeyUp, LatentRead, latent_decode
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.latents.row_reference import gather_latents
from tests.kernels.pools import empty_rows, filled_rows, frame_tables, slots_of

LENS = [3, 1, 41, 18, 9, 0]
FIRSTS = [0, 0, 5, 2, 8, 0]
RUNS = [(8, 8), (16, 4)]
R, KEY_RANK, VALUE_RANK, H, J, D = 24, 16, 24, 4, 2, 12
SINKS, WINDOW = 3, 5


def exact_rows(latents: list[Tensor], frame_tokens: int, seed: int) -> tuple[PagedRows, Tensor]:
    """Rows of 16 bits of these latents (tokens, R) of each sequence, and their table."""
    layout = RowFormat().layout([(channels, 16) for channels, _ in RUNS])
    lens = [len(latent) for latent in latents]
    num_frames = sum(-(-n // frame_tokens) for n in lens) + 4
    device = latents[0].device
    rows = empty_rows(layout, device=device, num_frames=num_frames, frame_tokens=frame_tokens)
    table = frame_tables(lens, frame_tokens, num_frames=num_frames, seed=seed).to(device)
    slots = slots_of(table, lens, frame_tokens).to(device)
    latent_append(torch.cat(latents), rows, slots, backend="torch")
    return rows, table


def in_one_arena(*parts: PagedRows) -> list[PagedRows]:
    """The same rows in arenas that begin alike: kernels get one arena for all."""
    arena = torch.cat([part.arena for part in parts])
    return [replace(part, arena=arena) for part in parts]


def cases(device: torch.device, num_new: int, *, sinks: int, window: int, rebuilt: bool):
    """Queries, coded rows with their table and lengths, exact pages, and how to read them."""
    layout = RowFormat().layout(RUNS)
    rows, table, lens = filled_rows(layout, LENS, device=device, outliers=False)
    generator = torch.Generator().manual_seed(3)
    latents = [torch.randn(n, R, generator=generator).to(device) for n in LENS]
    recent, recent_table = exact_rows(latents, 3, seed=4)
    firsts = [x[at : at + SINKS] for x, at in zip(latents, FIRSTS, strict=True)]
    first, first_table = exact_rows(firsts, 4, seed=5)
    # Frames that left the window are gone.
    for b, n in enumerate(LENS):
        recent_table[b, : max(0, n - num_new + 1 - window) // 3] = -1
    width = D if rebuilt else KEY_RANK
    query = torch.randn(len(LENS), num_new, H, width, generator=generator).to(device)
    key_up = None
    if rebuilt:
        angles = torch.arange(max(LENS))[:, None] * 0.5 ** torch.arange(D // 2)
        key_up = KeyUp(
            weight=torch.randn(J, D, KEY_RANK, generator=generator).to(device),
            bias=torch.randn(J, D, generator=generator).to(device),
            cos=angles.cos().to(device),
            sin=angles.sin().to(device),
        )
    read = LatentRead(
        key_rank=KEY_RANK,
        value_rank=VALUE_RANK,
        scale=0.3,
        exact_window=window,
        exact_sinks=sinks,
        key_up=key_up,
    )
    shifted = rows.num_frames, rows.num_frames + recent.num_frames
    same = recent.frame_bytes == first.frame_bytes == rows.frame_bytes
    assert same, (recent.frame_bytes, first.frame_bytes, rows.frame_bytes)
    rows, recent, first = in_one_arena(rows, recent, first)
    recent_table = torch.where(recent_table < 0, -1, recent_table + shifted[0]).int()
    first_table = torch.where(first_table < 0, -1, first_table + shifted[1]).int()
    exact = ExactPages(
        recent=recent if window else None,
        recent_table=recent_table if window else None,
        first=first if sinks else None,
        first_table=first_table if sinks else None,
    )
    first_slots = torch.tensor(FIRSTS, dtype=torch.int32, device=device)
    return query, rows, table, lens, exact, read, first_slots, latents


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize(("sinks", "window"), [(SINKS, WINDOW), (0, WINDOW), (SINKS, 0)])
def test_each_query_reads_what_it_is_due(
    device: torch.device, backend: str, num_new: int, rebuilt: bool, sinks: int, window: int
) -> None:
    """As if a row of each query's own had all tokens in the form in which it reads them."""
    made = cases(device, num_new, sinks=sinks, window=window, rebuilt=rebuilt)
    query, rows, table, lens, exact, read, first_slots, latents = made
    found, total = latent_decode(
        query,
        rows,
        table,
        lens,
        read=read,
        exact=exact,
        first_slots=first_slots,
        backend=backend,
        num_splits=3,
    )
    coded, _ = gather_latents(rows, table, max(LENS))
    plain = replace(read, exact_window=0, exact_sinks=0)
    for b, (n, first) in enumerate(zip(LENS, FIRSTS, strict=True)):
        for t in range(num_new):
            slot = n - num_new + t
            if slot < first:
                assert (found[b, t] == 0).all()
                continue
            form = coded[b, : slot + 1].clone()
            for s in range(slot + 1):
                if slot - s < window or first <= s < first + sinks:
                    form[s] = latents[b][s].half().float()
            wide, wide_table = exact_rows_of(form)
            due, due_total = latent_decode(
                query[b : b + 1, t : t + 1],
                wide,
                wide_table,
                lens[b : b + 1] - num_new + t + 1,
                read=plain,
                first_slots=first_slots[b : b + 1],
                backend="torch",
            )
            torch.testing.assert_close(found[b, t], due[0, 0], atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(total[b, t], due_total[0, 0], atol=1e-4, rtol=1e-4)


def exact_rows_of(latent: Tensor) -> tuple[PagedRows, Tensor]:
    """The same latents (tokens, R) in rows that lose nothing."""
    from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout

    layout = RowLayout.of_runs([(R, Kind.FLOAT32)])
    num_frames = -(-len(latent) // 8) + 4
    rows = empty_rows(layout, device=latent.device, num_frames=num_frames)
    table = frame_tables([len(latent)], 8, num_frames=num_frames).to(latent.device)
    slots = slots_of(table, [len(latent)], 8).to(latent.device)
    latent_append(latent, rows, slots, backend="torch")
    return rows, table


def test_what_is_to_be_read_is_given(device: torch.device) -> None:
    made = cases(device, 1, sinks=SINKS, window=WINDOW, rebuilt=False)
    query, rows, table, lens, exact, read, _, _ = made
    with pytest.raises(ConfigError, match="exact rows of recent tokens are given, and 0 are to be"):
        other = replace(read, exact_window=0)
        latent_decode(query, rows, table, lens, read=other, exact=exact)
    with pytest.raises(ConfigError, match="first tokens are not given, and 3 are to be read"):
        missing = replace(exact, first=None, first_table=None)
        latent_decode(query, rows, table, lens, read=read, exact=missing)
    with pytest.raises(ConfigError, match="must be less than window=5"):
        replace(read, window=5, exact_sinks=0)
    with pytest.raises(ConfigError, match="sinks leave a sliding window"):
        replace(read, window=50)
