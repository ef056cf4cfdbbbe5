"""Settings are checked as a whole."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.training.settings import EXTRAS, TrainingConfig


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"loss": "mse"}, "loss='mse' is unknown; choose one of lm"),
        ({"reconstruction_alpha": 1.5}, "at least 0 and at most 1"),
        ({"distillation_temperature": 0}, "distillation_temperature=0 must be a number above 0"),
        ({"euclidean_lr": -1e-3}, "euclidean_lr"),
        ({"learning_rate_scale": float("nan")}, "learning_rate_scale=nan"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number >= 1"),
        ({"batch_size": True}, "batch_size=True"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"max_length": 1}, "max_length=1"),
        ({"extras": ("heads",)}, "choose from norms, queries, outputs"),
        ({"extras": "norms"}, "extras='norms'"),
        ({"nested_ranks": (0.5, 1.5)}, "shares above 0 and up to 1"),
        ({"early_stopping_patience": 2}, "needs eval_steps"),
        ({"loss": "local", "extras": ("norms",)}, "not trained by loss='local'"),
        ({"warmup": 3}, "unknown settings warmup; known are loss"),
        ({"bf16": "yes"}, "bf16='yes'"),
        ({"batch_size": 0, "seed": -1}, "batch_size=0 .*; seed=-1"),
    ],
    ids=str,
)
def test_fault(settings: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TrainingConfig.from_dict(settings)


def test_round_trip() -> None:
    config = TrainingConfig(extras=("norms",), nested_ranks=(1.0, 0.5), max_steps=3)
    assert TrainingConfig.from_dict(config.to_dict()) == config
    assert TrainingConfig.from_dict({"extras": ["norms"]}).extras == ("norms",)


def test_extras_are_all_unless_the_loss_cannot_see_them() -> None:
    assert TrainingConfig(loss="lm").resolved(has_original=True).extras == EXTRAS
    assert TrainingConfig(loss="local").resolved(has_original=True).extras == ()
    assert TrainingConfig(extras=()).resolved(has_original=True).extras == ()
