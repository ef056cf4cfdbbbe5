"""How many tokens stay exact: by default where that fits, and as asked for."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.conversion.exact_counts import ExactCounts, counts_beside, exact_counts
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.families import model_spec
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids


@pytest.mark.parametrize(
    ("settings", "positions", "sliding_window", "due"),
    [
        ({}, None, None, (4, 32)),
        ({}, 8192, None, (4, 32)),
        ({}, 64, None, (4, 4)),
        ({}, 128, None, (4, 12)),
        ({}, 8, None, (0, 1)),
        ({}, 4, None, (0, 0)),
        ({"max_calibration_length": 32}, None, None, (2, 2)),
        ({"budget_bytes": 10**6, "context_length": 64}, None, None, (4, 4)),
        ({}, 8192, 4096, (0, 32)),
        ({}, 8192, 128, (0, 16)),
        ({}, 8192, 7, (0, 0)),
        ({"exact_sinks": 1}, None, None, (1, 32)),
        ({"exact_sinks": 0}, 64, None, (0, 8)),
        ({"exact_window": 64}, None, None, (4, 64)),
        ({"exact_window": 64, "exact_sinks": 9}, 128, 100, (0, 64)),
        ({"cache_bits": 16}, None, None, (0, 0)),
        ({"cache_bits": "fp16"}, None, None, (0, 0)),
        ({"cache_bits": "fp8"}, None, None, (4, 32)),
        ({"compression_ratio": 1.0}, None, None, (0, 0)),
    ],
    ids=str,
)
def test_counts(
    settings: dict, positions: int | None, sliding_window: int | None, due: ExactCounts
) -> None:
    assert exact_counts(CompressionConfig(**settings), positions, sliding_window) == due


@pytest.mark.parametrize(
    ("runs", "settings", "due"),
    [
        (((8, 16), (4, 2)), {}, (4, 32)),
        (((12, 16),), {}, (0, 0)),
        (((12, 16),), {"exact_sinks": 2}, (2, 0)),
        (((12, 16),), {"exact_window": 5}, (0, 5)),
    ],
    ids=str,
)
def test_counts_beside_rows(runs: tuple, settings: dict, due: ExactCounts) -> None:
    config = CompressionConfig(**settings)
    assert counts_beside(runs, exact_counts(config, None, None), config) == due


def test_a_roomy_budget_keeps_nothing_twice() -> None:
    model = tiny_model("llama")
    config = CompressionConfig(budget_bytes=10**6, context_length=64, metric="activation")
    plan = convert_model(model, config, calibration_ids())
    assert {run.bits for latent in plan.latents for run in latent.runs} == {16}
    assert not plan.exact_bytes(1024)


def test_layers_get_what_they_can_read() -> None:
    model = tiny_model("gemma2", max_position_embeddings=512, sliding_window=80)
    plan = convert_model(model, CompressionConfig(metric="activation"), calibration_ids())
    found = {
        latent.layer_ids[0]: (latent.exact_sinks, latent.exact_window) for latent in plan.latents
    }
    windows = [model.config.layer_types[idx] == "sliding_attention" for idx in sorted(found)]
    assert [found[idx] for idx in sorted(found)] == [(0, 10) if w else (4, 32) for w in windows]
    assert any(windows) and not all(windows)
    spec = model_spec(model.config)
    rows = {latent.layer_ids[0]: latent.exact_row_bytes for latent in plan.latents}
    added = sum(rows[idx] * sum(found[idx]) for idx in found)
    assert plan.exact_bytes(1024) == plan.exact_bytes(32768) == added
    assert (
        "the first 4 and the last 32 tokens are exact as well: "
        f"{plan.bytes_per_token} bytes per token without them, with them "
        f"{plan.bytes_per_token + added / 1024:.0f} at 1k"
    ) in plan.table(spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exact_sinks": -1}, "exact_sinks=-1"),
        ({"exact_window": 2.5}, "exact_window=2.5"),
        ({"exact_window": 4, "cache_bits": 16}, "exact_window=4 keeps tokens from being coded"),
        ({"exact_sinks": 4, "exact_window": 0}, "exact_sinks=4 has no layer to stay exact in"),
        ({"exact_window": 500}, "^exact_window=500 keeps all of this model's 256 positions"),
        ({"exact_window": 8}, "exact_window=8 covers the sliding window of 8 tokens of layer 0"),
    ],
    ids=str,
)
def test_nonsense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert_model(tiny_model("mistral-window"), CompressionConfig(**settings), iter(()))
