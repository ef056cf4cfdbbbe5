"""Training from texts to statistics, on tiny models."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from cacheshrink_hybrid import export_deepseek
from cacheshrink_hybrid.errors import (
    CalibrationError,
    ConfigError,
    TrainingError,
    UnsupportedModelError,
)
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.model.attached_plan import attach_certificate, plan_of
from cacheshrink_hybrid.model.original_model import compression_disabled
from cacheshrink_hybrid.training import MLATrainer
from cacheshrink_hybrid.training.attachment import BASES, Attachment
from cacheshrink_hybrid.training.data import collate
from cacheshrink_hybrid.training.objective import Objective
from cacheshrink_hybrid.training.output import COMPLETE_NAME, last_checkpoint
from cacheshrink_hybrid.training.settings import TrainingConfig
from cacheshrink_hybrid.training.targets import Original
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, logits_of, pair, random_ids, unchanged
from tests.tolerances import assert_same_logits
from tests.training.students import CERTIFICATE, dataset, losses, student, train

LOSSES = ("lm", "reconstruction", "distillation", "local")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bits", [16, "auto"], ids=str)
def test_training_helps(loss: str, bits) -> None:
    model = student(cache_bits=bits)
    stats = train(model, loss=loss, max_steps=20, learning_rate_scale=1, warmup_steps=0)
    found = losses(stats)
    assert sum(found[-5:]) < sum(found[:5])
    assert stats["steps"] == 20
    assert stats["orthonormality_error"] < 1e-6
    assert stats["tokens"] > 0
    assert stats["peak_memory_bytes"] > 0
    assert not model.training
    if loss == "lm":
        assert stats["perplexity_after"] < stats["perplexity_before"]


@pytest.mark.parametrize("loss", LOSSES[1:])
@pytest.mark.parametrize(
    ("case", "method"),
    [
        ("llama", "joint"),
        ("falcon_h1", "joint"),
        ("falcon_h1", "rotate_joint"),
        ("zamba2-adapters", "joint"),
        ("gpt2", "joint"),
        ("llama", "decoupled_rope"),
        ("deepseek_v3", "joint"),
        ("gemma3n_text", "joint"),
    ],
)
def test_lossless_model_has_nothing_to_learn_from_its_original(
    loss: str, case: str, method: str
) -> None:
    """At full rank the reconstruction, distillation and local losses are zero but for the lm."""
    if (loss, method) == ("reconstruction", "decoupled_rope"):
        pytest.skip("is refused, see below")
    model = student(case, 1.0, method)
    config = TrainingConfig(loss=loss, reconstruction_alpha=1.0, distillation_alpha=1.0)
    config = config.resolved(has_original=True)
    batch = collate([{"input_ids": ids} for ids in dataset(2)])
    attachment = Attachment(model, config, calibration_ids(2))
    with attachment:
        original = Original(model, None)
        objective = Objective(config, original, attachment.metrics_by_layer())
        _without_dropout(model.train())
        value = objective(model, batch["input_ids"], batch["labels"])
    assert abs(float(value.detach())) < 1e-3


@pytest.mark.parametrize("loss", ["lm", "distillation", "local"])
def test_decoupled_keys_are_trained(loss: str, tmp_path: Path) -> None:
    """Their rotary part as well as the rest; and what comes out is a DeepSeek checkpoint still."""
    model = student(method="decoupled_rope", cache_bits=16)
    layer = model.model.layers[0].self_attn
    turns, old = layer.plan.qk_rope_head_dim, layer.k_b_proj.weight.detach().clone()
    stats = train(model, loss=loss, max_steps=20, learning_rate_scale=1, warmup_steps=0)
    found = losses(stats)
    assert sum(found[-5:]) < sum(found[:5])
    assert stats["orthonormality_error"] < 1e-6
    moved = (layer.k_b_proj.weight - old).abs()
    assert moved[:, :turns].max() > 1e-4 and moved[:, turns:].max() > 1e-4
    biases = (layer.kv_a_proj.bias, layer.k_b_proj.bias, layer.v_b_proj.bias)
    assert not any(bias.any() for bias in biases if bias is not None)  # engines leave them out
    export_deepseek(model, tmp_path)
    ids = dataset(1)[0][None]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_logits(logits_of(stock, ids), logits_of(model, ids))


def test_decoupled_keys_are_not_rebuilt() -> None:
    model = student(method="decoupled_rope", cache_bits=16)
    with pytest.raises(ConfigError, match="loss='reconstruction' compares keys"):
        MLATrainer(model, None, loss="reconstruction")


def test_rotated_keys_are_trained() -> None:
    """Their encoder behind the rotation, and their basis, by what errors of rotated keys cost."""
    model = student(method="rotate_joint", cache_bits="auto")
    layer = model.model.layers[0].self_attn
    before = [p.detach().clone() for p in (layer.kv_a_proj.weight, layer.k_b_proj.weight)]
    kept = [p.detach().clone() for p in (layer.kv_proj.weight, layer.kv_mean)]
    stats = train(model, loss="reconstruction", max_steps=20, learning_rate_scale=1, warmup_steps=0)
    found = losses(stats)
    assert sum(found[-5:]) < sum(found[:5])
    layer = model.model.layers[0].self_attn
    for old, new in zip(before, (layer.kv_a_proj.weight, layer.k_b_proj.weight), strict=True):
        assert (old - new).abs().max() > 1e-4
    for old, new in zip(kept, (layer.kv_proj.weight, layer.kv_mean), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(
    ("case", "queries", "kept"),
    [
        ("deepseek_v3", ("q_a_proj", "q_b_proj"), ("kv_a_proj_with_mqa", "kv_b_proj")),
        ("gemma4_text", ("q_proj",), ("k_proj", "v_proj", "k_norm")),
        ("gemma3n_text", ("q_proj",), ("k_proj", "v_proj", "k_norm")),
    ],
)
def test_latents_of_what_norms_give_are_trained(
    case: str, queries: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    """What is made of them, and the source's projections of queries where these are to train."""
    model = student(case, cache_bits="auto")
    layer = model.model.layers[0].self_attn
    trained = ("kv_a_proj", "k_b_proj", "v_b_proj", *queries, "o_proj")
    before = {name: getattr(layer, name).weight.detach().clone() for name in (*trained, *kept)}
    extras = ("queries", "outputs")
    stats = train(model, max_steps=20, learning_rate_scale=1, warmup_steps=0, extras=extras)
    found = losses(stats)
    assert sum(found[-5:]) < sum(found[:5])
    assert stats["orthonormality_error"] < 1e-6
    moved = {
        name for name, old in before.items() if not torch.equal(getattr(layer, name).weight, old)
    }
    assert moved == {*trained}


def test_queries_and_outputs_of_layers_that_read_others_are_trained() -> None:
    model = student("gemma3n_text", cache_bits="auto")
    reading = model.model.layers[3].self_attn
    before = {name: p.detach().clone() for name, p in reading.named_parameters()}
    train(model, max_steps=3, learning_rate_scale=1, warmup_steps=0, extras=("queries", "outputs"))
    moved = {name for name, p in reading.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {
        f"{name}.{part}" for name in ("q_proj", "o_proj") for part in ("weight", "bias")
    }


def _without_dropout(model) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, LatentAttention):
            module.dropout = 0.0


def test_targets_come_from_the_original_and_carry_no_gradient() -> None:
    """Keys and values are compared with those of the original's own pass, not with the student's
    inputs projected."""
    model = student()
    ids = random_ids(2, 12)
    source = pair("llama", "joint", 4.0, store_original_weights=True).source
    seen = {}
    for index, layer in enumerate(source.model.layers):
        attention = layer.self_attn
        for name in ("k_proj", "v_proj"):
            getattr(attention, name).register_forward_hook(
                lambda _m, _a, out, key=(index, name): seen.__setitem__(key, out)
            )
    logits = logits_of(source, ids)
    for layer in source.model.layers:
        for name in ("k_proj", "v_proj"):
            getattr(layer.self_attn, name)._forward_hooks.clear()
    original = Original(model, None)
    targets = original.key_values(ids)
    assert len(targets) == len(source.model.layers)
    for index, target in targets.items():
        expected = torch.cat([seen[index, "k_proj"], seen[index, "v_proj"]], dim=-1)
        torch.testing.assert_close(target, expected)
        assert not target.requires_grad
    torch.testing.assert_close(original.logits(ids), logits)


def test_the_original_stays_while_extras_train() -> None:
    """Also after training, and after another one, which learns from it again."""
    model = student()
    ids = random_ids(1, 12)
    with compression_disabled(model):
        expected = logits_of(model, ids)
    config = TrainingConfig(extras=("norms",)).resolved(has_original=True)
    norm = model.model.norm.weight
    first = norm.detach().clone()
    for factor in (2.0, 3.0):
        with Attachment(model, config, calibration_ids(1)) as attachment:
            original = Original(model, None)
            with torch.no_grad():
                norm.mul_(factor)
            assert norm in {item.parameter for item in attachment.parameters}
            torch.testing.assert_close(original.logits(ids), expected)
    assert torch.equal(norm, 6 * first)
    twin = copy.deepcopy(model)
    with compression_disabled(twin):
        torch.testing.assert_close(logits_of(twin, ids), expected)


@pytest.mark.slow
def test_loss_is_distillation_where_the_original_is_at_hand() -> None:
    assert train(student())["settings"]["loss"] == "distillation"
    assert train(student(store_original_weights=False))["settings"]["loss"] == "lm"


@pytest.mark.slow
def test_accumulation_equals_a_larger_batch_and_drops_nothing() -> None:
    """Five sequences of unequal lengths: 4 + 1, as 2 + 2 and 1, give the same steps."""
    texts = [ids[: 16 - 2 * i] for i, ids in enumerate(dataset(5))]
    settings = dict(max_steps=None, num_epochs=2, texts=texts, learning_rate_scale=1.0)
    large = train(student(), batch_size=4, **settings)
    small = train(student(), batch_size=2, gradient_accumulation_steps=2, **settings)
    assert large["steps"] == small["steps"] == 4
    assert losses(small) == pytest.approx(losses(large), rel=1e-4)
    assert small["tokens"] == large["tokens"] == 2 * sum(len(ids) - 1 for ids in texts)


@pytest.mark.slow
def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Bit for bit, from the last checkpoint that is whole."""
    settings = dict(save_steps=2, save_total_limit=3, max_steps=6, nested_ranks=(1.0, 0.5))
    reference = student(cache_bits="auto")
    expected = train(reference, output_dir=tmp_path / "whole", **settings)

    class Killed(Exception):
        pass

    model = student(cache_bits="auto")
    forward = type(model).forward
    calls = 0

    def dies(self, *args, **kwargs):
        nonlocal calls
        calls += self.training and torch.is_grad_enabled()
        if calls > 4:
            raise Killed
        return forward(self, *args, **kwargs)

    model.forward = dies.__get__(model)
    with pytest.raises(Killed):
        train(model, output_dir=tmp_path / "killed", **settings)
    torn = tmp_path / "killed" / "checkpoint-4" / COMPLETE_NAME
    torn.unlink()  # as if it had been killed while it wrote this one
    assert last_checkpoint(tmp_path / "killed").name == "checkpoint-2"
    resumed = student(cache_bits="auto")
    stats = train(resumed, output_dir=tmp_path / "killed", resume_from_checkpoint=True, **settings)
    assert losses(stats) == losses(expected)
    for (name, a), b in zip(
        reference.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing() -> None:
    for loss in ("lm", "reconstruction"):
        plain = train(student(), loss=loss)
        lean = train(student(), loss=loss, gradient_checkpointing=True)
        assert losses(lean) == pytest.approx(losses(plain), rel=1e-5)


def test_early_stop_keeps_the_best(tmp_path: Path) -> None:
    """Steps that only do harm are stopped, and the weights of the best evaluation come back."""
    model = student()
    stats = train(
        model,
        output_dir=tmp_path,
        max_steps=20,
        eval_steps=1,
        save_steps=1,
        early_stopping_patience=2,
        learning_rate_scale=100,
        warmup_steps=0,
    )
    assert stats["steps"] < 20
    found = [r["eval_perplexity"] for r in stats["losses"] if "eval_perplexity" in r]
    assert stats["perplexity_after"] == pytest.approx(min(found), rel=1e-4)


HARMFUL = {"learning_rate_scale": 100, "warmup_steps": 0, "max_steps": 4, "batch_size": 2}


@pytest.mark.parametrize("eval_steps", [None, 2])
def test_training_that_harms_leaves_the_best_weights(eval_steps: int | None) -> None:
    """Those from before training are among them; their perplexity is what is reported."""
    model = student()
    before = copy.deepcopy(model.state_dict())
    texts = dataset()
    trainer = MLATrainer(model, None, eval_steps=eval_steps, **HARMFUL)
    stats = trainer.train(texts, eval_dataset=texts[:4])
    assert stats["perplexity_last"] > stats["perplexity_before"]
    assert stats["perplexity_after"] == stats["perplexity_before"]
    assert (stats["kept_step"], stats["steps"]) == (0, 4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-6)


def test_last_weights_are_kept_where_that_is_asked_for() -> None:
    texts = dataset()
    trainer = MLATrainer(student(), None, keep_best=False, **HARMFUL)
    stats = trainer.train(texts, eval_dataset=texts[:4])
    assert stats["perplexity_after"] == stats["perplexity_last"] > stats["perplexity_before"]
    assert stats["kept_step"] == 4


def test_log_lines_name_their_learning_rates() -> None:
    (record, *_) = [r for r in train(student())["losses"] if "loss" in r]
    assert {"lr_bases", "lr_others", "grad_norm"} <= set(record)
    assert "learning_rate" not in record


def test_settings_in_one_record() -> None:
    model = student()
    trainer = MLATrainer(model, None, config=TrainingConfig(loss="lm", max_steps=2))
    assert trainer.config == MLATrainer(model, None, loss="lm", max_steps=2).config


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((TrainingConfig(),), "settings as a whole go by name"),
        ({"config": {"max_steps": 2}}, "config is a dict; give a TrainingConfig"),
        ({"config": TrainingConfig(), "max_steps": 2}, "max_steps and config both give settings"),
        ({"config": TrainingConfig(), "use_distillation": True}, "loss and config both"),
        ((1e-5, TrainingConfig()), "riemannian_lr is a TrainingConfig, and settings are numbers"),
        ({"metric": nn.Linear(2, 2)}, "metric is a Linear, and settings are numbers and names"),
    ],
    ids=["third", "dict", "both", "loss too", "fourth", "object"],
)
def test_misplaced_settings(arguments: tuple | dict, match: str) -> None:
    """What is wrong is said in a line; no record of settings is printed."""
    positional = arguments if isinstance(arguments, tuple) else ()
    named = arguments if isinstance(arguments, dict) else {}
    with pytest.raises(ConfigError, match=match) as caught:
        MLATrainer(student(), None, *positional, **named)
    assert len(str(caught.value)) < 200


def test_unconstrained() -> None:
    stats = train(student(), constrained=False)
    assert stats["orthonormality_error"] is None


@pytest.mark.slow
def test_teacher_of_its_own() -> None:
    """A teacher model teaches the same as the source weights that were kept."""
    kept = train(student(), use_distillation=True)
    teacher = copy.deepcopy(tiny_model("llama"))
    bare = student(store_original_weights=False)
    taught = train(bare, use_distillation=True, teacher_model=teacher)
    assert losses(taught) == pytest.approx(losses(kept), rel=1e-4)


def test_nan_stops_before_it_does_harm() -> None:
    model = student()
    attach_certificate(model, CERTIFICATE)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad = model.model.layers[1].mlp.down_proj
    calls = 0  # six to measure the metric, then one per step

    def spoil(_module, _args, output):
        nonlocal calls
        calls += output.requires_grad
        return output * torch.nan if calls > 8 and output.requires_grad else output

    handle = bad.register_forward_hook(spoil)
    with pytest.raises(TrainingError, match=r"gradients of training_bases.*at step \d"):
        train(model, max_steps=10, warmup_steps=0)
    handle.remove()
    assert not hasattr(model, BASES)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert any(not torch.equal(weights[n], t) for n, t in model.state_dict().items())
    assert plan_of(model).certificate is None


def test_trained_models_have_no_certificate() -> None:
    model = student()
    attach_certificate(model, CERTIFICATE)
    train(model, loss="lm", max_steps=1)
    assert plan_of(model).certificate is None


def test_weights_that_are_no_numbers() -> None:
    """Found while the metric is measured; nothing is left changed."""
    model = student().half()
    with torch.no_grad():
        model.model.layers[0].self_attn.v_b_proj.weight[0, 0] = torch.nan
    dtypes = {n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(CalibrationError, match="not finite"):
        train(model)
    assert {n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()} == dtypes
    assert not hasattr(model, BASES)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (dict(use_distillation=True, use_reconstruction_loss=True), "two losses; choose one"),
        (dict(use_distillation=True, loss="lm"), "both choose the loss"),
        (dict(momentum=0.9), "unknown settings momentum"),
        (dict(save_steps=5), "need output_dir"),
        (dict(teacher_model="source", loss="lm"), "teacher_model is not used by loss='lm'"),
        (dict(use_distillation=True, teacher_model="other"), "vocabulary of 50 tokens"),
        (dict(use_distillation=True, teacher_model="self"), "the model itself"),
    ],
    ids=["both", "twice", "unknown", "no output", "idle teacher", "vocabulary", "self"],
)
def test_bad_settings(settings: dict, match: str) -> None:
    model = pair("llama", "joint", 4.0, store_original_weights=True).converted
    teachers = {
        "source": lambda: tiny_model("llama"),
        "self": lambda: model,
        "other": lambda: _with_vocabulary(50),
    }
    if isinstance(settings.get("teacher_model"), str):
        settings = settings | {"teacher_model": teachers[settings["teacher_model"]]()}
    with unchanged(model), pytest.raises(ConfigError, match=match):
        MLATrainer(model, None, **settings)


def _with_vocabulary(size: int):
    model = copy.deepcopy(tiny_model("llama"))
    model.resize_token_embeddings(size)
    return model


def test_no_original_to_learn_from() -> None:
    model = pair("llama", "joint", 4.0).converted
    with pytest.raises(UnsupportedModelError, match="store_original_weights=True"):
        MLATrainer(model, None, use_distillation=True)


def test_source_model() -> None:
    with pytest.raises(UnsupportedModelError, match="not converted"):
        MLATrainer(tiny_model("llama"), None)


def test_foreign_tokens() -> None:
    with pytest.raises(ConfigError, match="token 960, but the model's vocabulary has 96"):
        train(student(), texts=[torch.tensor([3, 960, 4])])
