"""States of a batch move into the pool and are found there."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.caches import HybridCache, make_cache
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

STATES = {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 3}


@torch.no_grad()
def _filled(num_tokens: int = 7) -> HybridCache:
    model = converted_copy(tiny_model("bamba"), 2.0, metric="activation", **STATES)
    cache = make_cache(model, backend="torch")
    model(random_ids(2, num_tokens), past_key_values=cache)
    return cache


def test_tensors_keep_their_content_where_they_go() -> None:
    cache = _filled()
    before = [entry.tensor.clone() for entry in cache.states.tensors()]
    assert len(cache.states.loose()) == len(before) > 0
    cache.lay_out()
    assert not cache.states.loose()
    after = cache.states.tensors()
    assert all(torch.equal(new.tensor, old) for new, old in zip(after, before, strict=True))
    store = cache.store
    assert store is not None
    arena = store.pool.arena
    first, last = arena.data_ptr(), arena.data_ptr() + arena.numel()
    assert all(first <= entry.tensor.data_ptr() < last for entry in after)


def test_steps_name_the_frames_of_the_run() -> None:
    cache = _filled()
    store = cache.store
    assert store is None and cache.state_step(0, 1) is None
    cache.lay_out()
    store = cache.store
    assert store is not None
    recurrent = {entry.layer_idx for entry in cache.states.tensors()}
    for layer_idx in range(len(cache.layers)):
        step = cache.states.step(store, layer_idx, 1, "torch")
        if layer_idx not in recurrent:
            assert step is None
            continue
        assert step is not None
        assert torch.equal(step.read_table, step.write_table) and len(step.read_table) == 2
        assert step.num_pending.tolist() == [1, 1]
        # Bytes at the step's places are those of the tensors.
        for entry in cache.states.tensors():
            if entry.layer_idx != layer_idx:
                continue
            place = step.places[entry.kind, entry.number]
            size = entry.tensor[0].numel() * entry.tensor.dtype.itemsize
            frame, offset = place.locate(torch.arange(size), step.frame_bytes)
            found = step.arena[step.read_table.long()[:, frame] * step.frame_bytes + offset]
            due = entry.tensor.contiguous().view(torch.uint8).view(2, -1)
            assert torch.equal(found, due)


def test_a_loose_tensor_takes_the_layer_from_kernels() -> None:
    cache = _filled()
    cache.lay_out()
    store = cache.store
    assert store is not None
    entry = cache.states.tensors()[0]
    layer = cache.layers[entry.layer_idx]
    layer.conv_states[entry.number] = torch.zeros(2, 1, 1)
    assert cache.states.step(store, entry.layer_idx, 1, "torch") is None
    assert len(cache.states.loose()) == 1


@pytest.mark.parametrize("kernels", [True, False])
def test_codes_are_there_for_kernels_before_a_ring_was_full(kernels: bool) -> None:
    cache = _filled(2)
    cache.lay_out()
    store = cache.store
    assert store is not None
    cache.states.each("batch_repeat_interleave", 2)
    assert cache.states.loose()
    cache.states.move_in(
        store, lambda count: store.pool.grow(store.pool.num_frames + count), kernels=kernels
    )
    codes = [e for e in cache.states.tensors() if (e.kind, e.number) == ("recurrent", 0)]
    assert bool(codes) == kernels
    for entry in codes:
        state = cache.layers[entry.layer_idx].layout.codec.decode(entry.tensor)
        assert len(state) == 4 and not state.any()
