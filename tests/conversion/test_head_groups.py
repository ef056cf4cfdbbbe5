"""Models whose groups of heads have latents of their own compute and save like others."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid import load_mla_model, save_mla_model
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.refusals import check_convertible
from cacheshrink_hybrid.errors import NotSupportedError, PlanError
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.training import MLATrainer, cut_ranks
from cacheshrink_hybrid.training.attachment import Attachment
from cacheshrink_hybrid.training.settings import TrainingConfig
from tests.families.tiny_configs import tiny_model
from tests.models import (
    calibration_ids,
    converted_copy,
    logits_in_pieces,
    logits_of,
    pair,
    random_ids,
)
from tests.tolerances import assert_same_logits

METHODS = ("joint", "separate", "per_head", "rotate", "rotate_joint", "auto")
CODED = {"ratio": 3.0, "cache_bits": "auto"}


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma2"])
def test_full_rank_is_exact(case: str) -> None:
    found = pair(case, head_groups=2)
    ids = random_ids(2, 20)
    assert_same_logits(logits_of(found.converted, ids), logits_of(found.source, ids))


@pytest.mark.parametrize("method", METHODS)
def test_coded_models_decode_save_and_load(method: str, tmp_path: Path) -> None:
    found = pair("llama", method, **CODED, head_groups=2)
    ids = random_ids(2, 20)
    due = logits_of(found.converted, ids)
    assert_same_logits(logits_in_pieces(found.converted, ids, [12, 1, 1, 6]), due)
    save_mla_model(found.converted, None, tmp_path)
    loaded, _ = load_mla_model(tmp_path)
    assert plan_of(loaded) == found.plan
    assert torch.equal(logits_of(loaded, ids), due)


@pytest.mark.parametrize("method", METHODS)
def test_channels_reach_heads_of_their_group_only(method: str) -> None:
    found = pair("llama", method, **CODED, head_groups=2)
    modules = [m for m in found.converted.modules() if isinstance(m, LatentAttention)]
    assert modules
    for module in modules:
        plan, like = module.plan, module.v_b_proj.weight
        other = [c for c in plan.part_channels(1, 2) if c >= plan.kv_lora_rank - plan.value_rank]
        values, _ = module.head.value_up.matrix(like)
        first = values[: len(values) // 2]
        assert not first[..., [c - (plan.kv_lora_rank - plan.value_rank) for c in other]].any()
        keys, _ = module.head.key_up.matrix(like)
        if not plan.kind.per_head:
            other = [c for c in plan.part_channels(1, 2) if c < plan.key_rank]
            assert not keys[: len(keys) // 2][..., other].any()


@pytest.mark.parametrize("method", METHODS)
def test_the_ratio_counts_what_devices_hold(method: str) -> None:
    plan = pair("llama", method, **CODED, head_groups=2).plan
    assert plan.head_groups == 2
    assert 0.8 < 2 * plan.bytes_on_each(2) * 3.0 / plan.source_bytes_per_token <= 1.0
    assert plan.bytes_per_token <= 2 * plan.bytes_on_each(2)
    assert plan.bytes_on_each(1) == plan.bytes_per_token
    assert plan.bytes_on_each(4) == plan.bytes_per_token  # whole rows


def test_the_plan_tells_of_groups() -> None:
    found = pair("llama", **CODED, head_groups=2)
    told = found.plan.table(model_spec(found.source.config))
    assert "2 groups of heads have latents of their own" in told
    assert f"a token takes {found.plan.bytes_on_each(2)} bytes" in told
    plain = pair("llama", **CODED)
    assert "groups of heads" not in plain.plan.table(model_spec(plain.source.config))


def test_heads_that_cannot_be_divided_are_refused_before_text_is_read() -> None:
    config, source = CompressionConfig(head_groups=3), pair("llama").source
    with pytest.raises(PlanError, match="head_groups=3 does not divide the 2 key heads"):
        check_convertible(model_spec(source.config), config)
    with pytest.raises(PlanError, match="head_groups=2 does not divide the 1 key heads"):
        check_convertible(
            model_spec(tiny_model("deepseek_v3").config), CompressionConfig(head_groups=2)
        )
    with pytest.raises(PlanError, match="head_groups=3 does not divide the 2 key heads"):
        converted_copy(pair("llama").source, 2.0, head_groups=3)


def test_training_and_cutting_are_refused() -> None:
    model = copy.deepcopy(pair("llama", head_groups=2, **CODED).converted)
    words = "does not keep apart the latents of 2 groups of heads; convert with head_groups=1"
    with pytest.raises(NotSupportedError, match=f"MLATrainer {words}"):
        MLATrainer(model, None)
    with pytest.raises(NotSupportedError, match=f"training {words}"):
        Attachment(model, TrainingConfig().resolved(has_original=False), calibration_ids(1))
    with pytest.raises(NotSupportedError, match=f"cutting ranks {words}"):
        cut_ranks(model, 0.5)
