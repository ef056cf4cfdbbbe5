"""Weights are known again by their contents; a certificate goes with those it was measured on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid import load_mla_model, plan_of, save_mla_model
from cacheshrink_hybrid.checkpoint.saved_weights import saved_weights, weights_fingerprint
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.errors import CacheShrinkWarning
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids

OTHER_WEIGHTS = "the certificate was measured on, so it is left out"


@pytest.fixture
def certified() -> PreTrainedModel:
    model = tiny_model("llama")
    convert_model(model, CompressionConfig(), calibration_ids(10, 48), self_check=False)
    assert plan_of(model).certificate is not None
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
def test_any_change_is_seen(dtype: torch.dtype) -> None:
    weights = {"a": torch.arange(12).view(3, 4).to(dtype), "b": torch.ones(1).to(dtype)}
    found = weights_fingerprint(weights)
    assert weights_fingerprint(dict(reversed(weights.items()))) == found
    assert weights_fingerprint({"a": weights["a"].T.contiguous().T, "b": weights["b"]}) == found
    changed = weights["a"].clone()
    changed[2, 1] += 1
    for other in (
        {**weights, "a": changed},
        {**weights, "a": weights["a"].view(4, 3)},
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"]},
        {**weights, "b": weights["b"].to(torch.float16)},
    ):
        assert weights_fingerprint(other) != found


def test_weights_that_are_not_at_hand() -> None:
    assert weights_fingerprint({"a": torch.ones(2), "b": torch.ones(2, device="meta")}) is None


def test_certificate_stays_with_its_weights(certified: PreTrainedModel, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheShrinkWarning)
        save_mla_model(certified, None, tmp_path / "first")
        loaded, _ = load_mla_model(tmp_path / "first")
        assert weights_fingerprint(saved_weights(loaded)) == plan_of(loaded).certificate.weights
        save_mla_model(loaded, None, tmp_path / "second", max_shard_size="50KB")
    assert plan_of(load_mla_model(tmp_path / "second")[0]).certificate is not None
    assert "Measured on 1 held-out sequence," in (tmp_path / "second/README.md").read_text()


def trained(model: PreTrainedModel) -> None:
    """One step by torch alone, which knows nothing of certificates."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    ids = calibration_ids(1)[0]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "trained": trained,
    "narrower": lambda model: model.to(torch.bfloat16),
    "one number": lambda model: model.lm_head.weight.data[0, 0].add_(1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_have_no_certificate(
    change: str, certified: PreTrainedModel, tmp_path: Path
) -> None:
    save_mla_model(certified, None, tmp_path)
    CHANGES[change](certified)
    with pytest.warns(CacheShrinkWarning, match=OTHER_WEIGHTS):
        save_mla_model(certified, None, tmp_path)
    assert json.loads((tmp_path / "cacheshrink_plan.json").read_text())["certificate"] is None
    assert "Measured on" not in (tmp_path / "README.md").read_text()
