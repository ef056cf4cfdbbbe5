"""Rows of many tokens are coded as the codec does, whoever does it."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs import RowCodec, RowFormat
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.kernels.latents.append import cpu as compiled_append
from cacheshrink_hybrid.latents.attention import row_coding
from cacheshrink_hybrid.latents.attention.cached_layer import CachedLayer
from cacheshrink_hybrid.latents.attention.row_coding import coded_rows
from tests.kernels.checks import assert_same_rows
from tests.kernels.pools import random_latents

pytest.importorskip("numba")
MIXED = ((16, 8), (40, 6), (24, 5), (24, 3), (8, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1, 1), (2, 33), (3, 70)])
def test_rows_of_both_are_the_same(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    codec = RowCodec(MIXED, RowFormat(alignment=16))
    count = int(torch.tensor(shape).prod())
    latent = random_latents(count, codec.num_channels).to(dtype)
    if count > 4:
        latent[3, 5] = torch.nan
    costs = torch.logspace(0, -3, codec.num_channels)
    given = latent.view(*shape, codec.num_channels)
    with torch.no_grad():
        due, found = (coded_rows(codec, given, costs, by) for by in ("torch", "cpu"))
    assert found.shape == due.shape == (*shape, codec.row_bytes)
    flat = (rows.view(count, codec.row_bytes) for rows in (found, due))
    assert_same_rows(*flat, latent, codec.layout, costs)


@torch.no_grad()
def test_shares_of_threads_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is left out or written twice, also where shares are unequal."""
    codec = RowCodec(MIXED, RowFormat())
    latent = random_latents(101, codec.num_channels)
    whole, taken = coded_rows(codec, latent, None, "cpu"), []

    def in_order(tasks) -> None:
        for task in tasks:
            taken.append(len(task.args[0]))
            task()

    monkeypatch.setattr(compiled_append, "num_shares", lambda amount, least: amount // least)
    monkeypatch.setattr(compiled_append, "in_parallel", in_order)
    assert torch.equal(coded_rows(codec, latent, None, "cpu"), whole)
    assert len(taken) == 3
    assert sum(taken) == 101


@torch.no_grad()
def test_rows_of_floats_are_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = RowCodec(((8, 16),), RowFormat(gains=False))
    latent = random_latents(5, 8)
    due = codec.encode(latent)
    monkeypatch.setattr(row_coding, "latent_append", None)
    assert torch.equal(coded_rows(codec, latent, None, "cpu"), due)


def test_where_gradients_are_taken_torch_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = RowCodec(MIXED, RowFormat())
    latent = random_latents(5, codec.num_channels).requires_grad_()
    due = codec.encode(latent.detach())
    monkeypatch.setattr(row_coding, "latent_append", None)
    assert torch.equal(coded_rows(codec, latent, None, "cpu"), due)


@torch.no_grad()
def test_the_backend_of_a_cache_tells_who_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt in a cache of `generate()`, and without one."""
    from cacheshrink_hybrid import convert_to_mla

    with torch.enable_grad():
        model, tokenizer = convert_to_mla(
            model_path(), compression_ratio=4.0, num_calibration_samples=2, dtype="float32"
        )
    ids = tokenizer("Return True if the", return_tensors="pt").input_ids
    asked: list[str] = []
    real = row_coding.latent_append

    def append(*arguments, **options) -> None:
        asked.append(options["backend"])
        real(*arguments, **options)

    monkeypatch.setattr(row_coding, "latent_append", append)
    for backend, coded in (("auto", True), ("cpu", True), ("torch", False)):
        asked.clear()
        model.kernel_backend = backend
        model.generate(ids, max_new_tokens=1, do_sample=False)
        assert bool(asked) == coded, backend
    asked.clear()
    model(ids, use_cache=False)
    assert asked
    host = torch.device("cpu")
    assert CachedLayer(None, 0).coding_on(host) == "cpu"
    assert CachedLayer(None, 0).coding_on(torch.device("meta")) == "torch"
