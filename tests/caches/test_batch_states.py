"""States of a batch lie in the pool from the first on, and are found there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.caches import HybridCache, make_cache
from cacheshrink_hybrid.caches.batch_states import linear_layers, states_of
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

STATES = {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 3}


@torch.no_grad()
def _filled(num_tokens: int = 7, *, recording: bool = False) -> HybridCache:
    model = converted_copy(tiny_model("bamba"), 2.0, metric="activation", **STATES)
    cache = make_cache(model, backend="torch")
    if recording:
        cache.activate_past_recording()
    model(random_ids(2, num_tokens), past_key_values=cache)
    return cache


def _store(cache: HybridCache) -> SequenceStore:
    assert cache.store is not None
    return cache.store


def _tensors(cache: HybridCache) -> dict[tuple[int, str, int], Tensor]:
    return {
        (layer_idx, kind, number): tensor
        for layer_idx, layer in linear_layers(cache.layers).items()
        for kind, states in zip(("conv", "recurrent"), states_of(layer), strict=True)
        for number, tensor in states.items()
        if tensor is not None
    }


def _in_pool(cache: HybridCache) -> list[bool]:
    arena = _store(cache).pool.arena
    first, last = arena.data_ptr(), arena.data_ptr() + arena.numel()
    return [first <= tensor.data_ptr() < last for tensor in _tensors(cache).values()]


def test_states_lie_in_the_pool_unless_the_past_is_recorded() -> None:
    cache, other = _filled(), _filled(recording=True)
    assert not cache.loose_states() and all(_in_pool(cache))
    assert not any(_in_pool(other)) and other.memory().state == sum(
        tensor.untyped_storage().nbytes() for tensor in other.loose_states()
    )
    before = {key: tensor.clone() for key, tensor in _tensors(cache).items()}
    cache.activate_past_recording()
    after = _tensors(cache)
    assert not any(_in_pool(cache))
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert not _store(cache).statistics().frames.by_kind.get("state")


def test_steps_name_the_frames_of_the_run() -> None:
    assert make_cache(tiny_model("bamba")).state_step(0, 1) is None
    cache = _filled()
    recurrent = {layer_idx for layer_idx, *_ in _tensors(cache)}
    for layer_idx in range(len(cache.layers)):
        step = cache.state_step(layer_idx, 1)
        if layer_idx not in recurrent:
            assert step is None
            continue
        assert step is not None
        assert torch.equal(step.read_table, step.write_table) and len(step.read_table) == 2
        assert step.num_pending.tolist() == [1, 1]
        # Bytes at the step's places are those of the tensors.
        for (idx, kind, number), tensor in _tensors(cache).items():
            if idx != layer_idx:
                continue
            place = step.places[kind, number]
            size = tensor[0].numel() * tensor.dtype.itemsize
            frame, offset = place.locate(torch.arange(size), step.frame_bytes)
            found = step.arena[step.read_table.long()[:, frame] * step.frame_bytes + offset]
            assert torch.equal(found, tensor.contiguous().view(torch.uint8).view(2, -1))


def test_a_loose_tensor_takes_the_layer_from_kernels() -> None:
    cache = _filled()
    layer_idx, kind, number = next(iter(_tensors(cache)))
    assert kind == "conv"
    cache.layers[layer_idx].conv_states[number] = torch.zeros(2, 1, 1)
    assert cache.state_step(layer_idx, 1) is None
    assert len(cache.loose_states()) == 1


@pytest.mark.parametrize("count", [3, 1])
def test_a_batch_of_another_size_moves_to_frames_of_its_own(count: int) -> None:
    cache = _filled()
    before = {key: tensor.clone() for key, tensor in _tensors(cache).items()}
    rows = torch.tensor([1, 0, 1])[:count]
    cache.batch_select_indices(rows)
    assert not cache.loose_states() and all(_in_pool(cache))
    after = _tensors(cache)
    assert all(torch.equal(after[key], tensor[rows]) for key, tensor in before.items())
    step = cache.state_step(next(iter(after))[0], 1)
    assert step is not None and len(step.read_table) == count
    held = _store(cache).statistics().frames.by_kind["state"]
    assert held == step.read_table.numel()


def test_codes_are_there_for_kernels_before_a_ring_was_full() -> None:
    cache = _filled(2)
    for layer_idx, layer in linear_layers(cache.layers).items():
        assert layer.recurrent_states[0] is None
        if layer.has_previous_state[0]:
            assert cache.state_step(layer_idx, 2) is not None
            codes = layer.recurrent_states[0]
            assert codes is not None
            assert len(codes) == 2 and not layer.layout.codec.decode(codes).any()
    assert all(_in_pool(cache))
