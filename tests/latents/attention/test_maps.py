"""Decoding computes what one pass computes, whatever the projections have become."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, VeraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transformers import PreTrainedModel

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.errors import KernelUnavailableError
from tests.dispatch import run_references
from tests.models import logits_in_pieces, logits_of, pair, prefill_then_decode, random_ids

COMPRESSED = ("kv_a_proj", "kv_proj", "k_b_proj", "v_b_proj", "dt_proj", "conv1d")
STATES = {"state_ratio": 2.0, "state_dtype": "float32", "replay_length": 1}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "absorb": ("gpt2", "joint", {}),
    "reconstruct-pairs": ("llama", "joint", {}),
    "reconstruct-norm": ("qwen3", "joint", {}),
    "per-head": ("llama", "per_head", {}),
    "rotate": ("llama", "rotate", {}),
    "exact": ("llama", "joint", {"exact_sinks": 2, "exact_window": 3, "cache_bits": "auto"}),
    "mamba1": ("jamba", "joint", STATES),
    "mamba2": ("bamba", "joint", STATES),
    "delta-net": ("qwen3_next", "joint", STATES),
}
ATTENTION = ["kv_a_proj", "k_b_proj", "v_b_proj"]
Change = Callable[[nn.Module], object]


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


def scale(layer: nn.Module) -> None:
    if type(layer) is nn.Linear:
        layer.__class__ = Scaled


class Longer(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 1.3 * weight


def add_hook(hook: Callable[[Tensor], Tensor]) -> Change:
    return lambda layer: layer.register_forward_hook(lambda _module, _args, out: hook(out))


CHANGES: dict[str, Change] = {
    "subclass": scale,
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "weight", Longer()),
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
    "hook": add_hook(lambda output: 1.2 * output + 0.3),
}
ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    "dora": LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights=False, use_dora=True),
    "loha": LoHaConfig(r=2, target_modules=ATTENTION, init_weights=False),
    "vera": VeraConfig(r=2, target_modules=["k_b_proj"], init_weights=False),
    "ia3": IA3Config(
        target_modules=["k_b_proj", "v_b_proj"], feedforward_modules=[], init_ia3_weights=False
    ),
}


def model_of(name: str) -> PreTrainedModel:
    case, method, settings = CASES[name]
    return copy.deepcopy(pair(case, method, 2.0, metric="activation", **settings).converted)


def changed(model: PreTrainedModel, change: Change) -> PreTrainedModel:
    for name, layer in list(model.named_modules()):
        if name.rpartition(".")[2] in COMPRESSED:
            change(layer)
    return model


def decoding_error(model: nn.Module, backend: str = "torch", base: Any = None) -> float:
    ids = random_ids(2, 14)
    cache = make_cache(model if base is None else base, backend=backend)  # type: ignore[arg-type]
    found = logits_in_pieces(model, ids, prefill_then_decode(14, 10), cache)
    return float((found - logits_of(model, ids)).abs().max())


def effect(model: PreTrainedModel, before: PreTrainedModel) -> float:
    ids = random_ids(2, 14)
    return float((logits_of(model, ids) - logits_of(before, ids)).abs().max())


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    run_references(monkeypatch)


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CASES)
def test_changed_projections(name: str, change: str) -> None:
    model, before = changed(model_of(name), CHANGES[change]), model_of(name)
    assert effect(model, before) > 0.05
    rounding = 2e-4 if name == "exact" else 1e-5  # a latent's code may be the next one
    assert decoding_error(model) < rounding
    if any(type(m).__name__.endswith("Conv1d") for m in model.modules()) and change != "subclass":
        with pytest.raises(KernelUnavailableError, match=r"convolution .* wrapped or has hooks"):
            decoding_error(model, "triton")
        assert decoding_error(model, "auto") < 1e-5
    else:
        assert decoding_error(model, "triton") < rounding


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        *((name, "lora") for name in CASES if name != "exact"),
        *((name, kind) for name in ("absorb", "reconstruct-pairs") for kind in list(ADAPTERS)[1:]),
    ],
)
def test_adapters(name: str, adapter: str, backend: str) -> None:
    model, before = model_of(name), model_of(name)
    torch.manual_seed(0)
    adapted = get_peft_model(model, copy.deepcopy(ADAPTERS[adapter])).eval().get_base_model()
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "hada" in parameter_name or "vera_lambda" in parameter_name:
                parameter.normal_(std=0.3)
    assert effect(adapted, before) > 1e-3
    assert decoding_error(adapted, backend) < 1e-5


@pytest.mark.parametrize("name", ["absorb", "reconstruct-pairs", "per-head", "exact"])
def test_projections_that_are_no_matrix_are_run_over_the_context(name: str) -> None:
    """Each sequence with a factor of its own, and a hook that is not linear."""

    def by_sequence(_module, args, kwargs):
        factors = torch.linspace(1, 2, len(args[0])).view(-1, *[1] * (args[0].ndim - 1))
        return (args[0] * factors,), kwargs

    for change in (
        lambda layer: layer.register_forward_pre_hook(by_sequence, with_kwargs=True),
        add_hook(torch.tanh),
    ):
        model = changed(model_of(name), change)
        assert effect(model, model_of(name)) > 0.05
        assert decoding_error(model) < (2e-4 if name == "exact" else 1e-5)


@pytest.mark.usefixtures("references")
def test_where_a_matrix_is_needed_its_lack_is_told() -> None:
    model = changed(model_of("reconstruct-pairs"), add_hook(torch.tanh))
    with pytest.raises(KernelUnavailableError, match=r"k_b_proj \(a Linear\) is not one linear"):
        decoding_error(model, "triton")


def test_adapters_per_sequence() -> None:
    model = model_of("reconstruct-pairs")
    config = LoraConfig(r=2, target_modules=["k_b_proj", "v_b_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.add_adapter("other", copy.deepcopy(config))
    adapted.eval()
    ids, names = random_ids(1, 12).repeat(2, 1), ["default", "other"]
    cache = make_cache(model)
    with torch.no_grad():
        whole = adapted(ids, use_cache=False, adapter_names=names).logits[:, -1]
        adapted(ids[:, :-1], past_key_values=cache, adapter_names=names)
        step = adapted(ids[:, -1:], past_key_values=cache, adapter_names=names).logits[:, -1]
    assert (whole[0] - whole[1]).abs().max() > 0.05
    torch.testing.assert_close(step, whole, rtol=0, atol=1e-5)


def test_dynamic_quantization_decodes_with_the_quantized_weights() -> None:
    """Equal up to the rounding of activations, which absorbed queries do not meet."""
    before = model_of("reconstruct-pairs")
    model = torch.ao.quantization.quantize_dynamic(model_of("reconstruct-pairs"), {nn.Linear})
    assert decoding_error(model) < 2 * effect(model, before)


def test_gradients_reach_adapters_while_training() -> None:
    model = model_of("reconstruct-pairs")
    config = LoraConfig(r=2, target_modules=["k_b_proj", "v_b_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config).train()
    ids = random_ids(2, 14)
    adapted(ids, labels=ids, use_cache=False).loss.backward()
    trained = [p for n, p in adapted.named_parameters() if "lora_" in n]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
