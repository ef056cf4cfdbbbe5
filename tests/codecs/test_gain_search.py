"""The gain of a row: near the best of all, by the weighted error of the row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowCodec, gain_search
from cacheshrink_hybrid.codecs.gain_search import GainSearch, rounded_levels
from cacheshrink_hybrid.codecs.gains import LARGEST_CODE, UNIT_CODE, gain_table

RUNS = {
    "1": ((64, 1),),
    "2": ((16, 2),),
    "4": ((32, 4),),
    "6": ((128, 6),),
    "8": ((24, 8),),
    "mixed": ((8, 8), (16, 6), (32, 5), (4, 16), (32, 3), (16, 2)),
}


def _search(runs: tuple[tuple[int, int], ...]) -> GainSearch:
    return GainSearch([run for run in RowCodec(runs).runs if run.kind.coded])


def _errors(search: GainSearch, latent: Tensor, costs: Tensor) -> Tensor:
    """Weighted errors (gains, N) of rows with every gain there is."""
    gains = gain_table(latent.device)[: LARGEST_CODE + 1, None, None]
    errors = torch.zeros(len(gains), len(latent))
    for run in search.runs:
        part = latent[:, run.at_channel]
        difference = rounded_levels(part / gains, run.bits) * gains - part
        errors += difference.square() @ costs[run.at_channel]
    return errors


def _heavy_tailed(*shape: int) -> Tensor:
    """Student's t of 3 degrees of freedom, over tokens of all sizes."""
    torch.manual_seed(0)
    latent = torch.distributions.StudentT(3.0).sample(shape)
    return latent * torch.logspace(-1.5, 2, shape[0])[:, None]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("normal", [False, True])
def test_about_as_good_as_the_best_of_all_gains(name: str, normal: bool) -> None:
    search = _search(RUNS[name])
    channels = sum(count for count, _ in RUNS[name])
    latent = torch.randn(100, channels) if normal else _heavy_tailed(100, channels)
    costs = torch.logspace(0, -2, channels)
    errors = _errors(search, latent, costs)
    codes = search.codes(latent, costs)
    found, best = errors.gather(0, codes[None])[0], errors.amin(dim=0)
    assert (found / best).mean() < 1.01
    if not normal:
        assert found.sum() < 0.9 * errors[UNIT_CODE].sum()


def test_costs_say_which_channels_count() -> None:
    """A channel that costs nothing has no part in it, however far out; without costs it has."""
    search = _search(((32, 4),))
    latent = torch.randn(1, 32)
    costs = torch.ones(32)
    costs[3] = 0.0
    far = latent.clone()
    far[0, 3] = 30.0
    assert search.codes(far, costs) < UNIT_CODE + 8
    assert search.codes(far, None) > UNIT_CODE + 8
    assert torch.equal(search.codes(latent, None), search.codes(latent, torch.ones(32)))


def test_between_equals_the_smallest_gain_is_taken() -> None:
    search = _search(((8, 4),))
    assert search.codes(torch.zeros(2, 8), None).tolist() == [0, 0]
    single = torch.zeros(1, 8)
    assert search.codes(single, torch.zeros(8)) == 0


def test_what_passes_all_gains() -> None:
    search = _search(((8, 4),))
    latent = torch.full((1, 8), 1e7)
    assert search.codes(latent, None) == LARGEST_CODE
    assert search.codes(latent * 1e-14, None) == 0


def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    search, latent = _search(RUNS["mixed"]), _heavy_tailed(50, 108)
    whole = search.codes(latent, None)
    monkeypatch.setattr(gain_search, "AT_ONCE", 7000)
    assert torch.equal(search.codes(latent, None), whole)
