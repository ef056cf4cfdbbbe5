"""A layer's step by functions compiled for the CPU: with weights as they are now, in shares of
several threads, in two caches by turns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

pytest.importorskip("numba")
EXACT = {"exact_sinks": 1, "exact_window": 4}


def _converted(case: str, method: str) -> PreTrainedModel:
    settings = {"cache_bits": "auto", "compression_ratio": 4.0, **EXACT}
    return converted_copy(tiny_model(case), method=method, metric="activation", **settings)


def _assert_close(got: Tensor, due: Tensor) -> None:
    assert (got - due).abs().max() <= 2e-4 * due.abs().max()


def _replace_bias(attention: LatentAttention) -> None:
    up = attention.k_b_proj
    up.bias = nn.Parameter(up.bias.detach() + 0.5, requires_grad=False)


def _replace_storage(attention: LatentAttention) -> None:
    attention.v_b_proj.weight.data = attention.v_b_proj.weight.data * 2


def _write_to_gains(attention: LatentAttention) -> None:
    if attention.k_norm is not None:
        attention.k_norm.weight.mul_(2)


def _replace_encoder(attention: LatentAttention) -> None:
    encoder = attention.kv_a_proj
    encoder.weight = nn.Parameter(encoder.weight.detach() * 1.5, requires_grad=False)


def _hook_encoder(attention: LatentAttention) -> None:
    attention.kv_a_proj.register_forward_hook(lambda module, given, output: output * 1.5)


CHANGES = {
    "written to": lambda attention: attention.k_b_proj.bias.add_(0.5),
    "replaced": _replace_bias,
    "moved": _replace_storage,
    "gains": _write_to_gains,
    "encoder written to": lambda attention: attention.kv_a_proj.weight.mul_(1.5),
    "encoder replaced": _replace_encoder,
    "encoder with a hook": _hook_encoder,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("case", "method"), [("qwen3", "joint"), ("llama", "rotate")])
@torch.no_grad()
def test_weights_are_those_of_now(case: str, method: str, change: str) -> None:
    ids, found = random_ids(1, 16), {}
    backends: tuple[Backend, ...] = ("cpu", "torch")
    for backend in backends:
        model = copy.deepcopy(_converted(case, method))
        cache = make_cache(model, backend=backend)
        for begin, end in ((0, 12), (12, 13)):
            model(ids[:, begin:end], past_key_values=cache)
        for module in model.modules():
            if isinstance(module, LatentAttention):
                CHANGES[change](module)
        found[backend] = model(ids[:, 13:], past_key_values=cache).logits
    _assert_close(found["cpu"], found["torch"])


@pytest.mark.parametrize(("case", "method"), [("llama", "rotate"), ("llama", "joint")])
@torch.no_grad()
def test_shares_of_two_threads(case: str, method: str) -> None:
    """So many slots that a second thread reads a share of them."""
    model, ids, found = _converted(case, method), random_ids(2, 60), {}
    repeated = ids.repeat(1, 10)
    for threads, backend in ((2, "cpu"), (1, "torch")):
        torch.set_num_threads(threads)
        cache = make_cache(model, backend=backend)  # type: ignore[arg-type]
        model(repeated[:, :590], past_key_values=cache)
        steps = [repeated[:, 590:593], repeated[:, 593:594]]
        found[backend] = torch.cat(
            [model(step, past_key_values=cache).logits for step in steps], dim=1
        )
    _assert_close(found["cpu"], found["torch"])


@torch.no_grad()
def test_two_caches_by_turns() -> None:
    """Of different lengths, so that nothing of one serves the other."""
    model, ids = _converted("llama", "rotate"), random_ids(1, 40)
    lengths = 30, 9
    caches = [make_cache(model, backend="cpu") for _ in lengths]
    for cache, length in zip(caches, lengths, strict=True):
        model(ids[:, :length], past_key_values=cache)
    found: list[list[Tensor]] = [[], []]
    for step in range(3):
        for i, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
            token = ids[:, length + step : length + step + 1]
            found[i].append(model(token, past_key_values=cache).logits)
    for logits, length in zip(found, lengths, strict=True):
        cache = make_cache(model, backend="torch")
        model(ids[:, :length], past_key_values=cache)
        due = model(ids[:, length : length + 3], past_key_values=cache).logits
        _assert_close(torch.cat(logits, dim=1), due)
