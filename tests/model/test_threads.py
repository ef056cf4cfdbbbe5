"""One model, several threads, a cache each: what each of them would do alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.model.original_model import compression_disabled
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_in_pieces, logits_of, pair, random_ids

STATES = {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 3}
CODED = {"ratio": 3.0, "cache_bits": "auto"}
MODELS = {
    "llama": ("llama", CODED),
    "rotated": ("llama-mqa", {"method": "rotate", "ratio": 2.0}),
    "window": ("mistral-window", CODED),
    "hybrid": ("granitemoehybrid-rope", {**CODED, **STATES}),
    "mamba": ("jamba", STATES),
}
NUM_THREADS = 12


@pytest.fixture(autouse=True)
def threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def prompts() -> list[Tensor]:
    return [random_ids(1 + i % 2, 6 + 2 * i, seed=i) for i in range(NUM_THREADS)]


def in_threads(work) -> list:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(work, prompts()))


@pytest.mark.parametrize("name", MODELS)
def test_decoding(name: str) -> None:
    case, settings = MODELS[name]
    model = pair(case, **settings).converted

    def decoded(ids: Tensor) -> Tensor:
        lengths = [4, *[1] * (ids.shape[1] - 4)]
        return logits_in_pieces(model, ids, lengths, make_cache(model))

    due = [decoded(ids) for ids in prompts()]
    for found, expected in zip(in_threads(decoded), due, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("case", ["granitemoehybrid", "jamba"])
def test_the_original_inside(case: str) -> None:
    """Whose folded weights the mixers of every thread go back to."""
    source = tiny_model(case)
    model = converted_copy(
        source, state_ratio=2.0, state_method="select", store_original_weights=True
    )
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    due = [logits_of(source, ids) for ids in prompts()]
    with compression_disabled(model):
        found = in_threads(lambda ids: logits_of(model, ids))
    for one, expected in zip(found, due, strict=True):
        assert (one - expected).abs().max() < 1e-4
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
