"""Exercises that a model can do are kept, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cacheshrink_hybrid.calibration.answered import answered
from cacheshrink_hybrid.calibration.text import calibration_exercises, calibration_sequences
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.demo import model_path
from tests.families.tiny_configs import tiny_model

TEXTS = ["Some plain words that stand between, one after the other. " * 8]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The shipped one, which remembers."""
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


def test_what_a_model_recalls_is_kept(model: PreTrainedModel, tokenizer) -> None:
    exercises = calibration_exercises(tokenizer, TEXTS, 4, max_length=500)
    assert answered(model, exercises) == exercises


def test_nothing_is_dropped_out_meanwhile(model: PreTrainedModel, tokenizer) -> None:
    """Whatever mode the model is in, which stays."""
    exercises = calibration_exercises(tokenizer, TEXTS, 2, max_length=500)
    layer = model.get_decoder().layers[1]
    layer.register_forward_pre_hook(
        lambda module, args: None if not module.training else pytest.fail("in training mode")
    )
    model.train()
    layer.mamba.eval()
    assert answered(model, exercises) == exercises
    assert model.training
    assert not layer.mamba.training
    model.eval()


def test_what_was_never_shown_is_not(model: PreTrainedModel, tokenizer) -> None:
    (exercise,) = calibration_exercises(tokenizer, TEXTS, 1, max_length=500)
    shift = len(tokenizer) // 2
    asked = set(exercise.answer_positions)
    other = tuple(
        (token + shift) % len(tokenizer) if i in asked else token
        for i, token in enumerate(exercise.token_ids)
    )
    assert answered(model, [replace(exercise, token_ids=other)]) == []


def test_exercises_that_ask_nothing_are_not(model: PreTrainedModel, tokenizer) -> None:
    (exercise,) = calibration_exercises(tokenizer, TEXTS, 1, max_length=20)
    assert exercise.answer_positions == ()
    assert answered(model, [exercise]) == []


def test_a_model_without_memory_gets_no_exercises_unless_a_number_is_named(tokenizer) -> None:
    untrained = tiny_model("llama", vocab_size=len(tokenizer))
    for settings, expected in ({}, 0), ({"num_recall_samples": 3}, 3):
        config = CompressionConfig(**settings)
        found = calibration_sequences(tokenizer, TEXTS, config, model=untrained)
        assert (len(found.texts), len(found.exercises)) == (1, expected)
