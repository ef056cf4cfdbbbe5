"""Tiny source models beside their conversions, made once per test process and not to be changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.plan import CompressionPlan
from tests.families.tiny_configs import tiny_model
from tests.tolerances import assert_same_logits

VOCAB_SIZE = 96
FIRST_ORDINARY_TOKEN = 3


@dataclass(frozen=True)
class Pair:
    """A source model, and the same model converted."""

    source: PreTrainedModel
    converted: PreTrainedModel
    plan: CompressionPlan

    def both(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        return self.source, self.converted


def random_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (batch, length) without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_ORDINARY_TOKEN, VOCAB_SIZE, (batch, length), generator=generator)


def prefill_then_decode(total: int, prefill: int) -> list[int]:
    """Lengths of the pieces of a prefill and single tokens after it."""
    return [prefill] + [1] * (total - prefill)


def calibration_ids(count: int = 6, length: int = 24) -> list[Tensor]:
    return [random_ids(1, length, seed=100 + i) for i in range(count)]


def converted_copy(
    source: PreTrainedModel, ratio: float = 1.0, method: str = "joint", **settings: Any
) -> PreTrainedModel:
    """Latents at 16 bits unless `settings` say otherwise: rank alone, so that sizes are exact; and
    no exact tokens, which would be all that short texts read."""
    model = copy.deepcopy(source)
    if model_spec(source.config).attention_layers:
        own = {"cache_bits": 16, "exact_sinks": 0, "exact_window": 0}
        settings = {"compression_ratio": ratio, **own, **settings}
    config = CompressionConfig(compression_method=method, **settings)
    convert_model(model, config, calibration_ids(), self_check=False)
    return model


@cache
def pair(case: str, method: str = "joint", ratio: float = 1.0, **settings: Any) -> Pair:
    """`case` of `tiny_configs`, converted."""
    source = tiny_model(case)
    converted = converted_copy(source, ratio, method, **settings)
    plan = plan_of(converted)
    return Pair(source, converted, plan)


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of one pass without a cache."""
    return model(ids, use_cache=False).logits


@torch.no_grad()
def logits_in_pieces(
    model: PreTrainedModel, ids: Tensor, lengths: Sequence[int], cache: Cache | None = None
) -> Tensor:
    """Logits (B, T, V) of ids (B, T), fed through a cache in pieces of these lengths."""
    cache = make_cache(model) if cache is None else cache
    positions = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
    pieces = []
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        output = model(
            ids[:, part],
            position_ids=positions[:, part],
            use_cache=True,
            **{cache_argument(model.forward): cache},
        )
        pieces.append(output.logits)
        start += length
    assert start == ids.shape[1]
    return torch.cat(pieces, dim=1)


def equal_pieces(total: int, length: int) -> list[int]:
    """Lengths of the pieces of `length` tokens that make up `total`, the last one shorter."""
    return [min(length, total - start) for start in range(0, total, length)]


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Check that a model has the same modules, weights, flags, hooks and config afterwards."""

    def state() -> tuple:
        modules = [
            (
                name,
                type(module),
                module.training,
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                "forward" in vars(module),
            )
            for name, module in model.named_modules(remove_duplicate=False)
        ]
        flags = [(name, p.requires_grad) for name, p in model.named_parameters()]
        gradients = [p.grad is None for p in model.parameters()]
        return type(model), modules, flags, gradients, model.config.to_dict()

    before = state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    assert state() == before
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def assert_same_padded_generation(
    source: PreTrainedModel, converted: PreTrainedModel, ids: Tensor, mask: Tensor, num_new: int
) -> None:
    """Both models go on alike, token by token, from the rows of a left-padded batch."""
    settings = {
        "attention_mask": mask,
        "max_new_tokens": num_new,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    expected, actual = source.generate(ids, **settings), converted.generate(ids, **settings)
    assert torch.equal(actual.sequences, expected.sequences)
    assert_same_logits(torch.stack(actual.logits), torch.stack(expected.logits))
