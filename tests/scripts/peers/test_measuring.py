"""Losses in pairs, and bytes on a line."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from scripts.benchmark import GateError
from scripts.peers.measuring import compared, held_at, measured, spread_windows
from scripts.peers.method import CacheReading, Held
from scripts.peers.quantized_cache import held_states
from tests.models import random_ids
from tests.scripts.peers.small_llama import small_llama


def begin() -> CacheReading:
    model = small_llama()
    return CacheReading(model, DynamicCache(config=model.config), held_states)


@pytest.mark.parametrize("chunk_length", [4, 16])
def test_every_token_but_the_first_is_scored_once(chunk_length: int) -> None:
    windows = list(random_ids(2, 32))
    record = measured(begin, windows, chunk_length)
    with torch.inference_mode():
        for ids, loss in zip(windows, record["losses"], strict=True):
            logits = small_llama()(ids[None]).logits[0]
            expected = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:])
            assert loss == pytest.approx(expected.item(), rel=1e-6)
    per_token = 5 * 2 * 32 * 2
    assert {n: held["at_16bit"] for n, held in record["held"].items()} == {
        "16": 16 * per_token,
        "32": 32 * per_token,
    }


def test_windows_are_spread_over_the_text() -> None:
    windows = spread_windows(range(1000), 4, 10)
    assert [int(window[0]) for window in windows] == [0, 250, 500, 750]
    assert all(torch.equal(window, torch.arange(10) + window[0]) for window in windows)


def record(*losses: float) -> dict:
    held = {"512": {"here": 600, "at_16bit": 560, "exact": 48}}
    held["1024"] = {"here": 1112, "at_16bit": 1072, "exact": 48}
    return {"losses": list(losses), "held": held}


def test_the_error_is_that_of_paired_differences() -> None:
    found = compared(record(3.01, 5.03), record(3.0, 5.0))
    growth = math.exp(0.02)
    assert found["increase_percent"] == pytest.approx(100 * (growth - 1))
    # Differences 0.01 and 0.03: standard deviation 0.01 * sqrt(2), of the mean of two 0.01.
    assert found["standard_error"] == pytest.approx(100 * growth * 0.01)
    assert found["perplexity"] == pytest.approx(math.exp(4.02))
    assert compared(record(3.0), record(3.0))["standard_error"] is None


def test_bytes_per_token_at_other_lengths() -> None:
    found = compared(record(3.0), record(3.0))
    assert held_at(record()["held"], 8192) == Held(here=8280, at_16bit=8240, exact=48)
    assert found["bytes_per_token"]["1024"] == 1072 / 1024
    assert found["bytes_per_token"]["8192"] == 8240 / 8192
    assert found["exact_bytes_per_token"]["8192"] == 48 / 8192


class Recorder:
    """Takes tokens in and gives even logits."""

    def __init__(self) -> None:
        self.fed: list[int] = []

    def feed(self, ids: Tensor) -> Tensor:
        self.fed.append(len(ids))
        return torch.zeros(len(ids), 96)

    def held(self) -> Held:
        return Held(here=sum(self.fed), at_16bit=sum(self.fed))


def test_a_cache_that_holds_nothing_is_no_result() -> None:
    class Forgetful(Recorder):
        def held(self) -> Held:
            return Held(here=0, at_16bit=0)

    with pytest.raises(GateError, match="holds nothing"):
        measured(Forgetful, list(random_ids(1, 16)), 8)


def test_windows_are_fed_in_chunks() -> None:
    readings: list[Recorder] = []

    def begin() -> Recorder:
        readings.append(Recorder())
        return readings[-1]

    found = measured(begin, list(random_ids(2, 32)), 8)
    assert [reading.fed for reading in readings] == [[8, 8, 8, 8]] * 2
    assert found["losses"] == pytest.approx([math.log(96)] * 2)
