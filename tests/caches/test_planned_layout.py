"""What is planned from config and plans is what caches hold after they were filled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacheshrink_hybrid import HybridCache, LatentCache, compression_disabled, make_cache
from cacheshrink_hybrid.caches.planned_layout import PlannedLayout, layout_of, planned_layout
from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.model.latent_model import plan_of
from cacheshrink_hybrid.pool.lifetime import FIRST, RECENT, TOKENS, RowSet
from cacheshrink_hybrid.states.layer import StateCacheMixin
from tests.dispatch import run_torch
from tests.families.tiny_configs import CASES, RECURRENT_CASES, tiny_config, tiny_model
from tests.models import converted_copy, logits_in_pieces, pair, random_ids
from tests.tolerances import largest_difference


@pytest.fixture(autouse=True)
def torch_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with other caches, to the bit."""
    run_torch(monkeypatch)


EVERY = (*CASES, *RECURRENT_CASES)
RECURRENT = [case for case in EVERY if model_spec(tiny_config(case)).state_layers]
NUM_TOKENS = 9
Stored = dict[tuple[int, str, int], tuple[tuple[int, ...], torch.dtype]]


def planned_tensors(planned: PlannedLayout) -> Stored:
    """Shape without the batch and type of every tensor; of rows those of one token."""
    rows: Stored = {
        (row.layer_idx, row.kind, 0): ((row.width,), row.dtype) for row in planned.rows.values()
    }
    return rows | {
        (shape.layer_idx, shape.kind, shape.number): (shape.shape, shape.dtype)
        for shape in planned.states
    }


def live_tensors(model: PreTrainedModel) -> Stored:
    """What the layers of a dense cache, which plans nothing, hold after a pass."""
    cache = LatentCache(config=model.config)
    logits_in_pieces(model, random_ids(2, NUM_TOKENS), [NUM_TOKENS], cache)
    found: Stored = {}

    def note(layer_idx: int, kind: str, number: int, tensor: Tensor | None) -> None:
        if tensor is not None and tensor.numel():
            found[layer_idx, kind, number] = tuple(tensor.shape[1:]), tensor.dtype

    for layer_idx, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if keys is not None:
            width = sum(x.shape[1] * x.shape[3] for x in (keys, layer.values))
            found[layer_idx, TOKENS, 0] = (width,), keys.dtype
        for kind in ("conv", "recurrent"):
            for number, tensor in getattr(layer, f"{kind}_states", {}).items():
                note(layer_idx, kind, number, tensor)
    for layer_idx, exact in cache.exact.items():
        for kind, tensor in zip((RECENT, FIRST), exact.tensors(), strict=True):
            found[layer_idx, kind, 0] = tuple(tensor.shape[2:]), tensor.dtype
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", EVERY)
def test_families_as_they_are(case: str, dtype: torch.dtype) -> None:
    """In the type of the weights, whatever the config says."""
    model = tiny_model(case, dtype=dtype)
    model.config.dtype = torch.float16
    assert planned_tensors(layout_of(model)) == live_tensors(model)


@pytest.mark.parametrize("case", EVERY)
def test_converted_families(case: str) -> None:
    settings: dict[str, Any] = {}
    if case in RECURRENT and case != "lfm2":
        settings = {"state_dtype": "float32", "replay_length": 5}
    model = pair(case, **settings).converted
    assert planned_tensors(layout_of(model)) == live_tensors(model)


UNEVEN = {
    "qwen3_next": {"linear_value_head_dim": 16},
    "zamba": {"n_mamba_heads": 1},
    "bamba": {"mamba_d_head": 32, "mamba_n_heads": 2, "mamba_n_groups": 2},
}


@pytest.mark.parametrize("replay_length", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*UNEVEN, "mamba", "jamba"])
def test_coded_states_and_rows(case: str, dtype: torch.dtype, replay_length: int) -> None:
    """With axes that cannot be mistaken for each other."""
    source = tiny_model(case, dtype=dtype, **UNEVEN.get(case, {}))
    assert planned_tensors(layout_of(source)) == live_tensors(source)
    settings = {"state_ratio": 1.5, "state_dtype": "int8", "replay_length": replay_length}
    if model_spec(source.config).attention_layers:
        settings |= {"cache_bits": "auto", "exact_sinks": 2, "exact_window": 4}
    model = converted_copy(source, 3.0, "auto", metric="activation", **settings)
    planned = planned_tensors(layout_of(model))
    assert planned == live_tensors(model)
    kinds = {kind for _, kind, _ in planned}
    assert kinds >= {"conv", "recurrent"}
    assert {TOKENS, RECENT, FIRST} <= kinds or TOKENS not in kinds


@pytest.mark.parametrize("case", ["llama", "bamba", "mamba2"])
def test_one_layout_for_all(case: str) -> None:
    settings = {"state_ratio": 2.0} if case in RECURRENT else {}
    model = pair(case, "auto", ratio=4.0, metric="activation", **settings).converted
    plan, spec = plan_of(model), model_spec(model.config)
    planned = planned_layout(spec, plan.latents, plan.states, dtype=model.dtype)
    cache = make_cache(model)
    logits_in_pieces(model, random_ids(2, NUM_TOKENS), [NUM_TOKENS], cache)
    engine = LLM(model, cache_memory="1MiB")
    assert cache.planned == planned == engine.runner.cache.planned
    assert engine.store.layout.digest == planned.layout.digest
    assert cache.store is not None and cache.store.layout.classes == planned.layout.classes
    assert planned.layout.state.seamless


def test_making_an_engine_runs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bamba")
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: pytest.fail("it ran"))
    LLM(model, cache_memory="1MiB")


def test_bytes_are_those_of_spec_and_plan() -> None:
    for case in ("llama", "bamba", "lfm2"):
        made = pair(case, "auto", ratio=4.0, metric="activation")
        spec, plan = model_spec(made.source.config), made.plan
        planned = planned_layout(spec, dtype=torch.bfloat16)
        assert planned.layout.bytes_per_token == spec.bytes_per_token
        assert planned.layout.state.useful_bytes == spec.bytes_per_sequence
        converted = planned_layout(spec, plan.latents, plan.states, dtype=torch.bfloat16)
        assert converted.layout.bytes_per_token == plan.bytes_per_token
        wide = planned_layout(spec, plan.latents, plan.states, dtype=torch.float32)
        assert wide.layout.bytes_per_token == 2 * plan.bytes_per_token


def test_coded_rows_do_not_depend_on_the_models_precision() -> None:
    made = pair("llama", "auto", ratio=4.0, metric="activation", cache_bits="auto")
    spec = model_spec(made.source.config)
    layouts = [
        planned_layout(spec, made.plan.latents, dtype=dtype).layout
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert layouts[0] == layouts[1]


def test_a_model_that_switches_back_stores_what_its_source_does() -> None:
    source = tiny_model("bamba")
    settings = {"state_ratio": 2.0, "state_dtype": "int8", "store_original_weights": True}
    model = converted_copy(source, 2.0, metric="activation", **settings)
    cache = make_cache(model)
    with compression_disabled(model):
        assert layout_of(model) == layout_of(source) != cache.planned
        logits_in_pieces(model, random_ids(1, NUM_TOKENS), [NUM_TOKENS], cache)
    assert cache.planned == layout_of(source)
    assert not any(isinstance(layer, StateCacheMixin) for layer in cache.layers)


def test_rows_of_another_width_or_type_are_refused() -> None:
    row = layout_of(tiny_model("llama", dtype=torch.bfloat16)).rows[RowSet(0)]
    row.check(torch.zeros(1, 1, row.width, dtype=torch.bfloat16))
    for wrong in (
        torch.zeros(1, 1, row.width + 1, dtype=torch.bfloat16),
        torch.zeros(1, 1, row.width),
        torch.zeros(1, 1, row.width, dtype=torch.uint8),
    ):
        with pytest.raises(NotSupportedError, match=r"layer 0 .* another model or in another prec"):
            row.check(wrong)


def test_a_source_models_cache_does_not_take_latents() -> None:
    made = pair("llama", "auto", ratio=4.0, metric="activation")
    source, cache = copy.deepcopy(made.source), HybridCache(made.source.config)
    logits_in_pieces(source, random_ids(1, 4), [4], cache)
    with pytest.raises(NotSupportedError, match="another model"):
        made.converted(random_ids(1, 4), past_key_values=cache)


MIXED = ["llama", "qwen3", "gemma2", "mistral-window", "granitemoehybrid", "jamba", "falcon_h1"]


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("converted", [True, False])
def test_rows_are_stored_in_the_type_in_which_they_come(
    case: str, autocast: torch.dtype, converted: bool
) -> None:
    """Autocast brings others than that of the weights, which here differ among each other."""
    made = pair(case, "joint", ratio=2.0, metric="activation")
    model = copy.deepcopy(made.converted if converted else made.source).bfloat16()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    ids = random_ids(2, 20)
    with torch.autocast("cpu", dtype=autocast), torch.no_grad():
        pooled, dense = (
            logits_in_pieces(model, ids, [9, *[1] * 11], cache)
            for cache in (make_cache(model), LatentCache(config=model.config))
        )
    # A dense window is rotated from its own first slot on, which 16 bits round otherwise.
    windowed = any(row.window for row in layout_of(model).rows.values())
    assert largest_difference(pooled, dense) <= (0.05 if windowed else 0.0)


@pytest.mark.parametrize("case", ["llama", "granitemoehybrid"])
@pytest.mark.parametrize("converted", [True, False])
def test_an_unused_cache_takes_the_type_of_a_model_that_was_cast(
    case: str, converted: bool
) -> None:
    """Wider or narrower than when the cache was made."""
    made = pair(case, "joint", ratio=2.0, metric="activation")
    model = copy.deepcopy(made.converted if converted else made.source)
    ids = random_ids(2, 12)
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        cache = make_cache(model)
        model.to(dtype)
        logits = logits_in_pieces(model, ids, [9, 1, 1, 1], cache)
        due = logits_in_pieces(model, ids, [9, 1, 1, 1], LatentCache(config=model.config))
        assert torch.equal(logits, due)
        assert {row.dtype for row in cache.planned.rows.values()} == {dtype}


@pytest.mark.parametrize("converted", [True, False])
def test_a_cache_in_use_keeps_its_type(converted: bool) -> None:
    """It takes narrower rows and refuses wider ones; after a reset it takes what comes."""
    made = pair("llama", "joint", ratio=2.0, metric="activation")
    model = copy.deepcopy(made.converted if converted else made.source)
    ids = random_ids(2, 12)
    cache = make_cache(model)
    model(ids[:, :9], past_key_values=cache)
    model.half()(ids[:, :1], past_key_values=cache)
    assert {row.dtype for row in cache.planned.rows.values()} == {torch.float32}
    cache.reset()
    model(ids[:, :9], past_key_values=cache)
    assert {row.dtype for row in cache.planned.rows.values()} == {torch.float16}
    with pytest.raises(NotSupportedError, match="in another precision; make a new one"):
        model.float()(ids[:, :1], past_key_values=cache)
    cache.reset()
    model(ids[:, :9], past_key_values=cache)
    assert {row.dtype for row in cache.planned.rows.values()} == {torch.float32}


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_exact_rows_move_where_rows_of_another_type_come(case: str) -> None:
    """A layer as in the source, behind some that are coded, brings rows of another type; of gemma2
    it has a sliding window and no sinks, and does not say where padding ends."""
    exact = {"cache_bits": "auto", "exact_sinks": 2, "exact_window": 3}
    model = converted_copy(
        tiny_model(case), 3.0, metric="activation", store_original_weights=True, **exact
    ).bfloat16()
    last = [module for module in model.modules() if isinstance(module, LatentAttention)][-1]
    last.compression_disabled = True
    ids, mask = random_ids(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :11] = 0  # so that one of two sinks comes behind the first pass
    logits = []
    with torch.autocast("cpu", dtype=torch.float16), torch.no_grad():
        for cache in (make_cache(model), LatentCache(config=model.config)):
            for part in (slice(0, 12), *(slice(i, i + 1) for i in range(12, 20))):
                given = mask[:, : part.stop]
                logits.append(model(ids[:, part], attention_mask=given, cache=cache).logits)
    half = len(logits) // 2
    for pooled, dense in zip(logits[:half], logits[half:], strict=True):
        assert torch.equal(pooled, dense)
