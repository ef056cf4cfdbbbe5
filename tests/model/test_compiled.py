"""Compiled models with few-bit latents: one graph, about as large as the source's, same results."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import CompileConfig, PreTrainedModel

from cacheshrink_hybrid import HybridCache
from cacheshrink_hybrid.model.attached_plan import plan_of
from tests.models import logits_of, pair, random_ids
from tests.tolerances import assert_same_computation

FEW_BITS = {"ratio": 8.0, "cache_bits": "auto"}
IDS = random_ids(1, 14)
EXACT = {"exact_sinks": 2, "exact_window": 4}
ROTATED = {"method": "rotate_joint"}
LARGEST_GRAPH = 1.5
LARGEST_WITH_MORE = 3.0
"""Steps of a converted model's graph for each one of its source's: compiling takes its time in
proportion."""


def counting(steps: list[int]) -> Callable:
    """A backend that runs graphs as they are, and notes how many steps each has."""

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable:
        steps.append(len(graph.graph.nodes))
        return graph.forward

    return backend


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()


def few_bit_model(**settings) -> PreTrainedModel:
    model = copy.deepcopy(pair("llama", **FEW_BITS, **settings).converted)
    widths = {run.bits for latent in plan_of(model).latents for run in latent.runs}
    assert {2, 3, 4, 6} <= widths
    return model


@pytest.mark.slow
def test_one_pass() -> None:
    steps: list[int] = []
    for model in (pair("llama").source, few_bit_model()):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=counting(steps), fullgraph=True)
        with torch.no_grad():
            logits = compiled(input_ids=IDS, use_cache=False).logits
        assert_same_computation(logits, logits_of(model, IDS))
    assert len(steps) == 2, "one graph each"
    assert steps[1] < LARGEST_GRAPH * steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, EXACT, ROTATED], ids=["coded", "exact", "rotated"])
def test_generate(settings: dict[str, Any]) -> None:
    steps: list[int] = []
    for original in (pair("llama").source, few_bit_model(**settings)):
        model, backend = copy.deepcopy(original), counting(steps)
        config = CompileConfig(backend=backend, fullgraph=True, mode=None)  # type: ignore[arg-type]
        config._compile_all_devices = True
        wish = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
        made = model.generate(IDS, **wish, compile_config=config)
        assert torch.equal(made, model.generate(IDS, **wish, disable_compile=True))
    assert len(steps) == 2, "one graph each"
    assert steps[1] < (LARGEST_WITH_MORE if settings else LARGEST_GRAPH) * steps[0]


@pytest.mark.slow
def test_a_cache_made_of_a_config_alone() -> None:
    """It is told what is stored, also where the model is compiled."""
    model = pair("llama", "auto", ratio=4.0, metric="activation", cache_bits="auto").converted
    ids = random_ids(1, 12)
    compiled = torch.compile(model, backend="eager")
    actual = compiled(ids, past_key_values=HybridCache(model.config)).logits
    assert_same_computation(actual, model(ids, past_key_values=HybridCache(model.config)).logits)


@pytest.mark.slow
def test_training_step() -> None:
    """Through AOTAutograd, whose backward graph passes the codes straight through."""
    model = few_bit_model().train()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    due = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if name in due:
            assert_same_computation(parameter.grad, due[name])


@pytest.mark.parametrize(
    "settings", [{}, EXACT, {"cache_bits": 4}], ids=["coded", "exact", "one run"]
)
def test_exported(settings: dict[str, int]) -> None:
    model = copy.deepcopy(pair("llama", **{**FEW_BITS, **settings}).converted).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(input_ids=ids, use_cache=False).logits

    exported = torch.export.export(Logits(), (IDS,))
    with torch.no_grad():
        assert_same_computation(exported.module()(IDS), logits_of(model, IDS))
        # Eager tables are not the tracer's stand-ins.
        assert_same_computation(logits_of(model, IDS), exported.module()(IDS))
