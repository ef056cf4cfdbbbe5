"""Gradients of converted models: those of the source where nothing is coded, straight through the
codes where something is; in training and in evaluation, with caches and without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.errors import KernelUnavailableError
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_of, pair, random_ids
from tests.tolerances import assert_same_computation, assert_same_logits, largest_difference

# RoPE, no RoPE, a softcap and windows, windows alone, states beside attention of all three kinds.
CASES = ("llama", "gpt2", "gemma2", "mistral-window", "granitemoehybrid", "jamba", "qwen3_next")
CODED = {"ratio": 3.0, "cache_bits": "auto", "fisher_labels": "model"}
STATES = {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 3}
IDS = random_ids(2, 15)
SPLIT = 9
ALIKE = 0.85
"""Least cosine of a gradient with that of a model without codes, whose latents and states are not
cut either."""
CACHES = ("none", "default", "made", "dynamic", "static")


def coded(case: str, **settings) -> PreTrainedModel:
    """A copy with coded latents, and coded states if it has some."""
    has_states = case in ("granitemoehybrid", "jamba", "qwen3_next")
    made = pair(case, **CODED, **(STATES if has_states else {}), **settings).converted
    return copy.deepcopy(made)


def given_cache(model: PreTrainedModel, kind: str) -> dict[str, Cache | bool]:
    if kind in ("none", "default"):
        return {"use_cache": kind == "default"}
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=20)
    else:
        cache = make_cache(model) if kind == "made" else DynamicCache(config=model.config)
    return {cache_argument(model.forward): cache}


def fed(model: PreTrainedModel, ids: Tensor, cache: Cache) -> Tensor:
    """Logits of a pass through a cache."""
    return model(ids, **{cache_argument(model.forward): cache}).logits


def embeddings(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.get_input_embeddings()(ids).detach().requires_grad_(True)


def input_gradient(model: PreTrainedModel, kind: str, split: int = 0) -> Tensor:
    """Of a sum over the last logits with respect to the embeddings from `split` on; what comes
    before is in the cache already."""
    given = given_cache(model, kind)
    if split:
        with torch.no_grad():
            model(IDS[:, :split], **given)
    inputs = embeddings(model, IDS[:, split:])
    weight = torch.linspace(-1, 1, model.config.vocab_size)
    (model(inputs_embeds=inputs, **given).logits[:, -1] * weight).sum().backward()
    assert inputs.grad is not None
    return inputs.grad


def weight_gradients(model: PreTrainedModel, kind: str) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)  # of dropout
    model(IDS, labels=IDS, **given_cache(model, kind)).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["none", "default", "made"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_coded_is_the_source(case: str, kind: str) -> None:
    made = pair(case)
    due = input_gradient(made.source, "none")
    assert_same_logits(input_gradient(made.converted, kind), due)


@pytest.mark.parametrize("num_new", [6, 1])
@pytest.mark.parametrize("kind", ["made", "dynamic"])
@pytest.mark.parametrize("case", CASES[:4])
def test_new_tokens_behind_a_history(case: str, kind: str, num_new: int) -> None:
    """Which was stored without gradients, as by an earlier call."""
    made, split = pair(case), IDS.shape[1] - num_new
    due = input_gradient(made.source, "dynamic", split)
    assert_same_logits(input_gradient(made.converted, kind, split), due)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("case", CASES)
def test_codes_let_gradients_pass_in_evaluation(case: str, kind: str) -> None:
    due = input_gradient(pair(case).source, "none")
    found = input_gradient(coded(case).eval(), kind)
    assert torch.cosine_similarity(found.flatten(), due.flatten(), dim=0) > ALIKE
    split = IDS.shape[1] - 6
    if kind in ("made", "static"):
        behind = input_gradient(coded(case).eval(), kind, split)
        due = input_gradient(pair(case).converted, "made", split)
        assert torch.cosine_similarity(behind.flatten(), due.flatten(), dim=0) > ALIKE


@pytest.mark.parametrize("kind", ["default", "made", "dynamic"])
@pytest.mark.parametrize("case", CASES)
def test_training_with_a_cache_is_training_without(case: str, kind: str) -> None:
    model = coded(case).train()
    due, found = weight_gradients(model, "none"), weight_gradients(model, kind)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert found.keys() == due.keys()
    assert trainable - found.keys() <= {n for n in trainable if "experts" in n}  # not chosen
    for name, gradient in found.items():
        assert_same_computation(gradient, due[name])


@pytest.mark.parametrize("training", [True, False])
def test_exact_tokens(training: bool) -> None:
    """Logits are those without gradients, which pass exact tokens and coded ones alike."""
    model = coded("llama", exact_sinks=2, exact_window=4).train(training)
    due = input_gradient(pair("llama").source, "none")
    for kind in ("none", "made"):
        found = input_gradient(model, kind)
        assert torch.cosine_similarity(found.flatten(), due.flatten(), dim=0) > ALIKE
        if not training:
            # torch multiplies in another order where gradients are taken: the rows are the same.
            logits = model(IDS, use_cache=False).logits.detach()
            assert largest_difference(logits, logits_of(model, IDS)) < 3e-5
    behind = input_gradient(model.eval(), "made", SPLIT)
    due = input_gradient(pair("llama").converted, "made", SPLIT)
    assert torch.cosine_similarity(behind.flatten(), due.flatten(), dim=0) > ALIKE


@pytest.mark.parametrize("counts", [(2, 0), (0, 4)])
@pytest.mark.parametrize("kind", ["none", "dynamic", "made"])
def test_what_makes_exact_tokens_learns(counts: tuple[int, int], kind: str) -> None:
    """Sinks and the window each pass gradients to the projection of their keys and values."""
    sinks, window = counts
    model = coded("llama", exact_sinks=sinks, exact_window=window)
    model(IDS, labels=IDS, **given_cache(model, kind)).loss.backward()
    for module in model.modules():
        if isinstance(module, LatentAttention):
            assert module.kv_proj is not None
            assert module.kv_proj.weight.grad is not None
            assert module.kv_proj.weight.grad.abs().amax(dim=1).min() > 0


@pytest.mark.parametrize("case", ["llama", "granitemoehybrid"])
def test_decoding_without_no_grad(case: str) -> None:
    """Same logits, and the cache holds on to no graph."""
    model = coded(case, exact_window=4).eval()
    results = []
    for grad in (True, False):
        cache = make_cache(model)
        with torch.set_grad_enabled(grad):
            fed(model, IDS[:, :SPLIT], cache)
            for i in range(SPLIT, IDS.shape[1]):
                logits = fed(model, IDS[:, i : i + 1], cache)
        assert logits.requires_grad is grad
        results.append(logits)
        kept = []
        for layer in cache.layers:
            kept += [t for t in (getattr(layer, "keys", None),) if t is not None]
            for states in ("conv_states", "recurrent_states"):
                kept += [t for t in getattr(layer, states, {}).values() if t is not None]
        assert kept
        assert not any(tensor.requires_grad for tensor in kept)
    # torch multiplies in another order where gradients are taken.
    assert largest_difference(results[0].detach(), results[1]) < 3e-5


@pytest.mark.parametrize("trained", ["kv_a_proj", "k_b_proj", "v_b_proj", "q_proj", "o_proj"])
@pytest.mark.parametrize("num_new", [1, 10])
def test_one_kind_of_weights_alone(trained: str, num_new: int) -> None:
    """Whose module's inputs carry no gradients, with a cache that was filled before."""
    model, split = coded("llama").eval().requires_grad_(False), IDS.shape[1] - num_new
    due, gradients = pair("llama").converted, []
    for one in (model, copy.deepcopy(due).requires_grad_(False)):
        weights = [p for n, p in one.named_parameters() if trained in n and "bias" not in n]
        for weight in weights:
            weight.requires_grad_(True)
        cache = make_cache(one)
        with torch.no_grad():
            fed(one, IDS[:, :split], cache)
        fed(one, IDS[:, split:], cache)[:, -1].square().sum().backward()
        gradients.append([weight.grad for weight in weights])
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[0])
    if trained in ("q_proj", "o_proj"):
        for found, exact in zip(*gradients, strict=True):
            assert torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > ALIKE


def test_kernels_are_not_asked_for_gradients() -> None:
    """Also where only weights want them."""
    model = coded("llama").eval()
    model.get_input_embeddings().requires_grad_(False)
    cache = make_cache(model, backend="triton")
    with torch.no_grad():
        fed(model, IDS[:, :SPLIT], cache)
    with pytest.raises(KernelUnavailableError, match="no backward pass"):
        fed(model, IDS[:, SPLIT:], cache)


@pytest.mark.parametrize("case", ["llama", "granitemoehybrid"])
def test_a_pass_that_is_run_again_for_its_gradients(case: str) -> None:
    """Reentrant checkpointing: the first run, without gradients, computes what the second does."""
    model = coded(case, exact_window=4).train()
    due = model(IDS, labels=IDS, use_cache=False).loss
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    loss = model(IDS, labels=IDS).loss
    assert_same_computation(loss.detach(), due.detach())
    loss.backward()


def test_functional_derivatives() -> None:
    """torch.func: the gradient, and along a direction the same in forward mode."""
    model = coded("llama").eval()
    model.set_attn_implementation("eager")
    inputs = embeddings(model, IDS).detach()
    direction = torch.randn_like(inputs)

    def value(x: Tensor, kind: str = "none") -> Tensor:
        return model(inputs_embeds=x, **given_cache(model, kind)).logits[:, -1].sum()

    gradient = torch.func.grad(value)(inputs).detach()
    for kind in ("none", "made"):
        along = torch.func.jvp(lambda x, kind=kind: value(x, kind), (inputs,), (direction,))[1]
        torch.testing.assert_close(along.detach(), (gradient * direction).sum(), rtol=1e-3, atol=0)


def test_several_passes_into_one_cache_before_a_step() -> None:
    """Each of them can go back, alone or together."""
    model = converted_copy(tiny_model("llama"), **CODED).train()
    cache = make_cache(model)
    losses = [fed(model, IDS[:, part], cache).sum() for part in (slice(9), slice(9, 15))]
    torch.stack(losses).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
