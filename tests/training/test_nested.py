"""Cutting a model to its first channels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.checkpoint.load import load_mla_model
from cacheshrink_hybrid.checkpoint.save import save_mla_model
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.model.attached_plan import attach_certificate, plan_of
from cacheshrink_hybrid.training import MLATrainer, cut_ranks
from cacheshrink_hybrid.training.attachment import Attachment
from cacheshrink_hybrid.training.nested import kept_channels
from cacheshrink_hybrid.training.settings import TrainingConfig
from tests.models import calibration_ids, logits_in_pieces, logits_of, pair, random_ids
from tests.training.students import CERTIFICATE

CASES = [
    ("llama", "joint", {}),
    ("llama", "separate", {}),
    ("llama", "per_head", {}),
    ("llama", "xkv", {"cross_layer_group_size": 2}),
    ("llama-head-dim", "joint", {"cache_bits": "auto"}),
    ("llama-head-dim", "separate", {"cache_bits": "auto"}),
    ("llama-head-dim", "per_head", {"cache_bits": "auto"}),
    ("llama-head-dim", "rotate", {"cache_bits": "auto"}),
    ("llama", "rotate_joint", {}),
    ("zamba2-adapters", "joint", {}),
]


@pytest.mark.parametrize(("case", "method", "settings"), CASES, ids=str)
def test_cut_model_is_what_training_saw(case: str, method: str, settings: dict, tmp_path: Path):
    model = copy.deepcopy(pair(case, method, 2.0, **settings).converted)
    bytes_before = plan_of(model).bytes_per_token
    ids = random_ids(2, 18)
    with Attachment(
        model, TrainingConfig().resolved(has_original=True), calibration_ids(1)
    ) as attachment:
        attachment.bases.kept_share = 0.5
        masked = model.train()(ids, use_cache=False).logits.detach()
    whole = logits_of(model.eval(), ids)
    cut_ranks(model, 0.5)
    found = logits_of(model, ids)
    scale = whole.abs().max()
    assert (whole - masked).abs().max() > 1e-3 * scale
    # The gains of shorter rows are chosen by fewer channels.
    tolerance = 5e-2 if plan_of(model).latents[0].coded else 5e-4
    assert (found - masked).abs().max() < tolerance * scale
    assert plan_of(model).bytes_per_token < 0.75 * bytes_before
    # It decodes, saves and loads like any other.
    pieces = logits_in_pieces(model, ids, [10] + [1] * 8, make_cache(model))
    assert (pieces - found).abs().max() < 5e-4 * scale
    save_mla_model(model, None, tmp_path / "cut")
    again, _ = load_mla_model(tmp_path / "cut")
    assert torch.equal(logits_of(again, ids), found)


@pytest.mark.parametrize("method", ["joint", "separate"])
def test_first_channels_of_bytes_are_those_worth_most(method: str) -> None:
    model = pair("llama-head-dim", method, 4.0, cache_bits=8).converted
    for module in (m for m in model.modules() if isinstance(m, LatentAttention)):
        keys = module.k_b_proj.weight.square().sum(0)
        assert module.plan.runs[0].bits == 8
        half = len(keys) // 2
        assert float(keys[:half].mean()) > float(keys[half:].mean())


def test_cut_models_have_no_certificate() -> None:
    model = copy.deepcopy(pair("llama", "joint", 2.0).converted)
    attach_certificate(model, CERTIFICATE)
    cut_ranks(model, 0.5)
    assert plan_of(model).certificate is None


def test_whole_share_changes_nothing() -> None:
    model = copy.deepcopy(pair("llama", "joint", 2.0).converted)
    plan, expected = plan_of(model), logits_of(model, random_ids(1, 8))
    cut_ranks(model, 1.0)
    assert plan_of(model) == plan
    assert torch.equal(logits_of(model, random_ids(1, 8)), expected)


@pytest.mark.slow
def test_training_with_nested_ranks_serves_the_smaller_model() -> None:
    """The cut model is better after training that saw it than after training that did not."""
    texts = [random_ids(1, 24, seed=i)[0] for i in range(4)]
    found = {}
    for ranks in ((1.0,), (1.0, 0.5)):
        model = copy.deepcopy(pair("llama", "joint", 2.0).converted)
        trainer = MLATrainer(
            model, None, nested_ranks=ranks, max_steps=40, warmup_steps=0, learning_rate_scale=2
        )
        trainer.train(texts)
        cut_ranks(model, 0.5)
        found[ranks] = MLATrainer(model, None, max_steps=1, learning_rate_scale=1e-9).train(texts)
    nested, plain = found[(1.0, 0.5)], found[(1.0,)]
    assert nested["perplexity_before"] < plain["perplexity_before"]


@pytest.mark.parametrize(
    ("channels", "share", "coded", "kept"),
    [(10, 0.5, False, 5), (10, 0.01, False, 1), (24, 0.5, True, 16), (24, 0.01, True, 8)],
)
def test_kept_channels(channels: int, share: float, coded: bool, kept: int) -> None:
    assert kept_channels(channels, share, coded) == kept


def test_bad_share() -> None:
    model = pair("llama", "joint", 2.0).converted
    with pytest.raises(ConfigError, match="share=0"):
        cut_ranks(model, 0)
