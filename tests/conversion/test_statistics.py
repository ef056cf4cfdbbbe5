"""Statistics that conversions share, and tokens that are left out of them."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid import CompressionConfig, convert_model
from cacheshrink_hybrid.conversion.statistics import SharedStatistics, model_statistics
from cacheshrink_hybrid.errors import ConfigError
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, random_ids

CONFIG = CompressionConfig(exact_sinks=2)
COUNT, LENGTH = 6, 24


@pytest.mark.filterwarnings("ignore:.*tokens of calibration are few")
def test_tokens_that_stay_exact_are_left_out() -> None:
    model = tiny_model("llama")
    ids = calibration_ids(COUNT, LENGTH)
    whole = model_statistics(model, CompressionConfig(exact_sinks=0), ids)
    without = model_statistics(model, CONFIG, ids)
    assert (whole.sinks, without.sinks) == ((0, 0, 0), (2, 2, 2))
    for one, other in zip(whole.latents, without.latents, strict=True):
        assert one.num_tokens == COUNT * LENGTH
        assert other.num_tokens == COUNT * (LENGTH - 2)
    other_starts = [torch.cat([random_ids(1, 2, seed=7), one[:, 2:]], dim=1) for one in ids]
    moved = model_statistics(model, CONFIG, other_starts)
    first = [statistics.latents[0].mean for statistics in (without, moved)]
    torch.testing.assert_close(*first)  # of the first layer, which nothing of these tokens reaches


@pytest.mark.filterwarnings("ignore:.*tokens of calibration are few")
@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("short", [1, 2])
def test_nothing_is_predicted_on_sequences_that_are_exact_or_one_token(
    sinks: int, short: int
) -> None:
    ids = calibration_ids(20, LENGTH)
    config = CompressionConfig(exact_sinks=sinks)
    told = model_statistics(tiny_model("llama"), config, [*ids[:-1], ids[-1][:, :short]]).held_out
    assert told is not None
    lengths = [LENGTH, short] if short > max(1, sinks) else [LENGTH]
    assert [one.shape[1] for one in told.sequences] == lengths
    assert torch.tensor(told.losses).isfinite().all()
    ids[9::10] = [one[:, :1] for one in ids[9::10]]
    plan = convert_model(tiny_model("llama"), config, ids, self_check=False)
    assert plan.held_out_loss is None
    assert plan.certificate is None


@pytest.mark.filterwarnings("ignore:.*tokens of calibration are few")
def test_statistics_serve_conversions_with_these_sinks() -> None:
    model = tiny_model("llama")
    statistics = model_statistics(model, CONFIG, calibration_ids())
    with pytest.raises(ConfigError, match=r"leave out the first 2 tokens .* exact_sinks=3; take"):
        convert_model(model, CompressionConfig(exact_sinks=3), statistics=statistics)
    convert_model(model, CONFIG, statistics=statistics)


@pytest.mark.filterwarnings("ignore:.*tokens of calibration are few")
def test_shared_statistics_are_taken_once_for_each_number_of_sinks() -> None:
    model = tiny_model("gemma2")  # of whose layers the second alone has no sliding window
    shared = SharedStatistics(model, CompressionConfig(metric="activation"), calibration_ids())
    configs = [
        CompressionConfig(metric="activation", **settings)
        for settings in (
            {"exact_sinks": 2},
            {"exact_sinks": 2, "compression_ratio": 8.0},
            {"cache_bits": 16},
            {"exact_sinks": 0},
            {"compression_ratio": 1.0},
        )
    ]
    found = [shared.serving(config) for config in configs]
    assert [id(x) for x in found] == [id(found[i]) for i in (0, 0, 2, 2, 2)]
    assert (found[0].sinks, found[2].sinks) == ((0, 2, 0), (0, 0, 0))
    for config, statistics in zip(configs, found, strict=True):
        convert_model(tiny_model("gemma2"), config, statistics=statistics)
