"""Bases of a whole model: set up and released without loss, shared where they were shared."""

from __future__ import annotations

import copy

import pytest
import torch

from cacheshrink_hybrid.errors import ConfigError, UnsupportedModelError
from cacheshrink_hybrid.training import MLATrainer
from cacheshrink_hybrid.training.attachment import BASES, Attachment
from cacheshrink_hybrid.training.bases import latent_modules, state_mixers
from cacheshrink_hybrid.training.nested import kept_channels
from cacheshrink_hybrid.training.settings import TrainingConfig
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, logits_of, pair, random_ids

CASES = [
    ("llama", "joint", {}, 3),
    ("llama", "separate", {}, 6),
    ("llama", "xkv", {"cross_layer_group_size": 2}, 4),
    ("llama", "per_head", {}, 6),
    ("llama", "rotate", {}, 6),
    ("llama", "rotate_joint", {}, 3),
    ("llama", "decoupled_rope", {}, 6),
    ("llama-biases", "decoupled_rope", {}, 6),
    ("llama-biases", "joint", {"cache_bits": "auto"}, 3),
    ("llama", "joint", {"cache_bits": "auto", "hadamard": True}, 3),
    ("qwen3", "separate", {}, 6),
    ("granitemoehybrid", "joint", {}, 1),
    ("granitemoehybrid", "joint", {"state_ratio": 2.0}, 1),
    ("jamba", "joint", {"state_ratio": 2.0, "fisher_labels": "model"}, 1),
    ("qwen3_next", "joint", {"state_ratio": 2.0, "state_dtype": "float32"}, 3),
    ("llama", "joint", {"cache_bits": "auto", "exact_window": 4}, 3),
    ("zamba2", "joint", {}, 2),
    ("zamba2-adapters", "joint", {}, 1),
]


def test_factors_that_are_written_behind_their_version() -> None:
    """As some optimizers do, also between two evaluations."""
    model = converted("llama", "joint")
    config = TrainingConfig(loss="lm").resolved(has_original=False)
    with Attachment(model, config, calibration_ids(2)) as attached:
        before = logits_of(model, random_ids(1, 9))
        for basis in attached.bases.bases.values():
            basis.factor.data.neg_()
        after = logits_of(model, random_ids(1, 9))
        assert not torch.allclose(before, after, atol=1e-3)
        with torch.enable_grad():
            trained = model(random_ids(1, 9), use_cache=False).logits
        torch.testing.assert_close(trained.detach(), after, rtol=0, atol=1e-5)


def converted(case: str, method: str, **settings):
    return copy.deepcopy(pair(case, method, 2.0, **settings).converted)


def attach(model, **settings) -> Attachment:
    return Attachment(
        model, TrainingConfig(**settings).resolved(has_original=True), calibration_ids(2)
    )


@pytest.mark.parametrize(
    ("case", "method", "settings", "count"),
    CASES,
    ids=["-".join([c[0], c[1], *c[2]]) for c in CASES],
)
def test_model_is_the_same_before_during_and_after(case, method, settings, count) -> None:
    model = converted(case, method, **settings)
    ids = random_ids(2, 20)
    expected = logits_of(model, ids)
    tied = {id(m.k_b_proj.weight) for m in latent_modules(model).values()}
    names = list(model.state_dict())
    attachment = attach(model)
    with attachment:
        assert len(attachment.bases.bases) == count
        assert attachment.bases.orthonormality_error() < 1e-6
        during = model.train()(ids, use_cache=False).logits
        assert during.requires_grad
        scale = expected.abs().max()
        if attachment.modules and not any(m.plan.coded for m in attachment.modules.values()):
            assert (during - expected).abs().max() < 2e-4 * scale
        during.float().square().mean().backward()
        for item in attachment.parameters:
            assert item.parameter.grad is not None, item.name
            assert torch.isfinite(item.parameter.grad).all(), item.name
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trainable == {item.name for item in attachment.parameters}
    assert list(model.state_dict()) == names
    assert {id(m.k_b_proj.weight) for m in latent_modules(model).values()} == tied
    assert not hasattr(model, BASES)
    assert torch.equal(logits_of(model.eval(), ids), expected)  # no step was taken


@pytest.mark.parametrize("case", ["granitemoehybrid", "qwen3_next"])
def test_state_projections_train(case: str) -> None:
    """Mamba-2's two, Gated DeltaNet's reading one and its basis, which stays orthonormal."""
    model = converted(case, "joint", state_ratio=2.0, state_dtype="float32")
    mixers = state_mixers(model)
    first = {name: mixer.state_write.clone() for name, mixer in mixers.items()}
    reads = {name: mixer.state_read.clone() for name, mixer in mixers.items()}
    texts = [random_ids(1, 20, seed=i)[0] for i in range(4)]
    trainer = MLATrainer(model, None, max_steps=10, warmup_steps=0, learning_rate_scale=2.0)
    stats = trainer.train(texts)
    assert mixers
    assert stats["perplexity_after"] < stats["perplexity_before"]
    for name, mixer in mixers.items():
        assert (mixer.state_write - first[name]).abs().max() > 1e-3
        assert (mixer.state_read - reads[name]).abs().max() > 1e-3
        assert not mixer.state_write.requires_grad
        if case == "qwen3_next":
            gram = mixer.state_write.mT @ mixer.state_write
            kept = gram.diagonal(dim1=1, dim2=2) > 0.5  # groups of lower rank have empty channels
            assert (gram - torch.diag_embed(kept.float())).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["joint", "per_head", "rotate_joint", "xkv", "decoupled_rope"])
def test_moved_bases_arrive_in_the_weights(method: str) -> None:
    """What trained is what is exported, and evaluation in between sees it too."""
    model = converted("llama", method)
    ids = random_ids(2, 20)
    first = logits_of(model, ids)
    attachment = attach(model)
    with attachment, torch.no_grad():
        for basis in attachment.bases.bases.values():
            moved = basis.factor + 0.3 * torch.randn_like(basis.factor)
            basis.factor.copy_(basis.factor.manifold.projx(moved))
        with torch.enable_grad():
            trained = model(ids, use_cache=False).logits.detach()
        evaluated = logits_of(model, ids)
    released = logits_of(model, ids)
    assert (trained - first).abs().max() > 0.01 * first.abs().max()
    torch.testing.assert_close(evaluated, trained, atol=1e-4, rtol=1e-4)
    assert torch.equal(released, evaluated)


def test_first_channels_only() -> None:
    """Nested ranks: what is masked has no effect and no gradient."""
    model = converted("llama", "joint")
    attachment = attach(model)
    with attachment:
        attachment.bases.kept_share = 0.5
        ids = random_ids(1, 20)
        half = model(ids, use_cache=False).logits
        half.square().sum().backward()
        for module in attachment.modules.values():
            kept = round(module.plan.kv_lora_rank * 0.5)
            gradient = module.kv_a_proj.weight.grad
            assert gradient[:kept].abs().max() > 0
            assert gradient[kept:].abs().max() == 0


def test_rotary_keys_have_no_nested_ranks() -> None:
    """Their channels turn at frequencies of their own, none of which stands for the others."""
    model = converted("llama", "decoupled_rope")
    attachment = attach(model)
    with attachment:
        attachment.bases.kept_share = 0.5
        model(random_ids(1, 20), use_cache=False).logits.square().sum().backward()
        for module in attachment.modules.values():
            gradient = module.kv_a_proj.weight.grad.abs().amax(dim=1)
            turns, rank = module.plan.qk_rope_head_dim, module.plan.kv_lora_rank
            kept = turns + kept_channels(rank - turns, 0.5, coded=False)
            assert (gradient[:kept] > 0).all()
            assert (gradient[kept:] == 0).all()


def test_extras_train_too() -> None:
    model = converted("llama", "joint")
    with attach(model, extras=("norms", "queries", "outputs")) as attachment:
        names = {item.name for item in attachment.parameters}
        assert "model.norm.weight" in names
        assert "model.layers.0.self_attn.q_proj.weight" in names
        assert "model.layers.0.self_attn.o_proj.weight" in names
        assert not any("mlp" in name or "embed" in name for name in names)


def test_bfloat16_weights_train_in_single_precision_and_return() -> None:
    model = converted("llama", "joint").bfloat16()
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    with attach(model) as attachment:
        assert {item.parameter.dtype for item in attachment.parameters} == {torch.float32}
    assert {n: p.dtype for n, p in model.named_parameters()} == dtypes


def test_second_attachment() -> None:
    model = converted("llama", "joint")
    with attach(model), pytest.raises(ConfigError, match="being trained already"):
        attach(model)


def test_source_model() -> None:
    with pytest.raises(UnsupportedModelError, match="no latent attention to train"):
        latent_modules(tiny_model("llama"))
