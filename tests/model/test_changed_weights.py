"""Decoding sees weights that were changed after a first decode, however they were changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacheshrink_hybrid import make_cache
from tests.dispatch import run_references
from tests.models import logits_in_pieces, logits_of, pair, prefill_then_decode, random_ids

STATES = {"state_ratio": 2.0, "state_dtype": "float32", "replay_length": 1}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "absorb": ("gpt2", "joint", {}),
    "reconstruct": ("llama", "joint", {}),
    "per-head": ("llama", "per_head", {}),
    "norm": ("qwen3", "joint", {}),
    "norm-of-1-plus-weight": ("gemma3_text", "joint", {}),
    "folded-multipliers": ("falcon_h1", "joint", {**STATES, "state_method": "prune"}),
    "delta-net": ("qwen3_next", "joint", STATES),
}


def _shrunk(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor * 0.9 for name, tensor in model.state_dict().items()}


def write_data(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def exchange_data(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


@torch.no_grad()
def step(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.9)


def gains(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.mul_(1.5)


def frequencies(model: PreTrainedModel) -> None:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.mul_(0.9)


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "data written": write_data,
    "data exchanged": exchange_data,
    "optimizer": step,
    "gains": gains,
    "frequencies": frequencies,
    "load_state_dict": lambda model: model.load_state_dict(_shrunk(model)),
    "assigned": lambda model: model.load_state_dict(_shrunk(model), assign=True),
    "to(dtype)": lambda model: model.to(torch.bfloat16).to(torch.float32),
}


def decoding_error(model: PreTrainedModel, backend: str) -> float:
    ids = random_ids(2, 12)
    cache = make_cache(model, backend=backend)  # type: ignore[arg-type]
    found = logits_in_pieces(model, ids, prefill_then_decode(12, 10), cache)
    return float((found - logits_of(model, ids)).abs().max())


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CASES)
def test_changed_weights(
    name: str, change: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_references(monkeypatch)
    case, method, settings = CASES[name]
    source = pair(case, method, 2.0, metric="activation", **settings).converted
    model = copy.deepcopy(source)
    assert decoding_error(model, backend) < 1e-5
    CHANGES[change](model)
    assert decoding_error(model, backend) < 1e-5
    assert decoding_error(copy.deepcopy(model), backend) < 1e-5
    write_data(model)
    assert decoding_error(model, backend) < 1e-5
