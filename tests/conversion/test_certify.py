"""A conversion measures itself on the text that was held out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cacheshrink_hybrid import load_mla_model, save_mla_model
from cacheshrink_hybrid.checkpoint.model_card import model_card
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.errors import CacheShrinkWarning
from cacheshrink_hybrid.evaluation.cached_forward import cached_logits
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.latents.fit.held_out import split_sequences
from cacheshrink_hybrid.model.attached_plan import plan_of, set_state_plans
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids

SETTINGS = {
    "llama": {"compression_ratio": 4.0},
    "granitemoehybrid": {
        "compression_ratio": 8.0,
        "exact_window": 4,
        "state_ratio": 2.0,
        "state_dtype": "int8",
    },
}


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(F.cross_entropy(logits[0, :-1], ids[0, 1:]))


@pytest.mark.filterwarnings("ignore:.*tokens of calibration are few")
@pytest.mark.parametrize("case", SETTINGS)
@torch.no_grad()
def test_certificate_is_the_loss_of_decoding(case: str) -> None:
    """Token by token, through the cache, on sequences that nothing was fitted to."""
    ids = calibration_ids(20, 40)
    source, model = tiny_model(case), tiny_model(case)
    plan = convert_model(model, CompressionConfig(**SETTINGS[case]), ids, self_check=False)
    held_out = split_sequences(ids)[1]
    increases = []
    for one in held_out:
        decoded = torch.cat([logits for _, logits in cached_logits(model, one, 1)], dim=1)
        increases.append(loss_of(decoded, one) - loss_of(source(one).logits, one))
    found = plan.certificate
    assert found is not None
    assert found.num_sequences == len(held_out) == 2
    assert found.num_tokens == 2 * 39
    exact = min(latent.exact_sinks + latent.exact_window for latent in plan.latents)
    assert exact and found.num_reading_coded == 2 * (39 if plan.states else 39 - exact)
    assert not found.self_check
    assert found.loss_increase == pytest.approx(sum(increases) / 2, abs=1e-6)
    assert abs(found.loss_increase) > 1e-5


@pytest.mark.filterwarnings("ignore:.*tokens of calibration are few")
def test_certificate_is_saved_and_shown(tmp_path: Path) -> None:
    model = tiny_model("llama")
    convert_model(model, CompressionConfig(), calibration_ids(10, 48))
    plan = plan_of(model)
    assert plan.certificate is not None and plan.certificate.self_check
    told = str(plan.certificate)
    assert told in plan.table(model_spec(model.config))
    assert plan.certificate.circumstances in plan.table(model_spec(model.config))
    card = model_card(model, plan)
    assert told[1:] in card and plan.certificate.circumstances in card
    save_mla_model(model, None, tmp_path)
    assert plan_of(load_mla_model(tmp_path)[0]).certificate == plan.certificate


def test_no_certificate_where_nothing_coded_is_read() -> None:
    model = tiny_model("llama")
    config = CompressionConfig(exact_sinks=8, exact_window=40)
    with pytest.warns(CacheShrinkWarning, match="nothing coded is read, as 48 tokens stay exact"):
        plan = convert_model(model, config, calibration_ids(10, 49), self_check=False)
    assert plan.certificate is None
    plan = convert_model(tiny_model("llama"), config, calibration_ids(10, 50), self_check=False)
    assert plan.certificate is not None and plan.certificate.num_reading_coded == 1


def test_no_certificate_without_held_out_text() -> None:
    model = tiny_model("llama")
    with pytest.warns(
        CacheShrinkWarning, match="of 9 sequences .* none is held out, as that takes 10"
    ):
        plan = convert_model(model, CompressionConfig(), calibration_ids(9))
    assert plan.certificate is None
    assert "measured on" not in plan.table(model_spec(model.config))


@pytest.mark.filterwarnings("ignore:.*tokens of calibration are few")
def test_other_codes_have_no_certificate() -> None:
    model = tiny_model("granitemoehybrid")
    config = CompressionConfig(**SETTINGS["granitemoehybrid"])
    convert_model(model, config, calibration_ids(10), self_check=False)
    assert plan_of(model).certificate is not None
    set_state_plans(model, plan_of(model).states)
    assert plan_of(model).certificate is None
