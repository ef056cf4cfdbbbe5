"""Layers that store nothing read what others store: the same rows, counted once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cacheshrink_hybrid import CompressionConfig, compression_disabled, convert_model, make_cache
from cacheshrink_hybrid.caches import cache_bytes
from cacheshrink_hybrid.calibration.calibrate import calibrate
from cacheshrink_hybrid.errors import NotSupportedError, SelfCheckError, UnsupportedModelError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.attention import context
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.latents.attention.reading import ReadingAttention
from cacheshrink_hybrid.model.attached_plan import plan_of
from tests.families.tiny_configs import ROW_CASES, tiny_config, tiny_model
from tests.models import calibration_ids, logits_in_pieces, logits_of, pair, random_ids
from tests.tolerances import assert_same_computation, assert_same_logits, largest_difference

CASE, SLICED = "gemma3n_text", "gemma4_text-shared"
READS = {3: 2, 4: 1, 5: 2}
"""Of `CASE`: the layers that read, and what they read."""
NUM_TOKENS = 23
EXACT = {"cache_bits": "auto", "exact_sinks": 1, "exact_window": 5}
"""Beside coded rows, so that all that a step reads is handed on."""
CODE_EDGE = 5e-3
"""What a latent makes of the logits that lies within rounding of the edge between two codes."""

of_known_cases = pytest.mark.parametrize(
    "case", [CASE, *(case for case in (SLICED,) if case in ROW_CASES)]
)


def coded(case: str, method: str = "joint", **settings: Any) -> PreTrainedModel:
    return pair(case, method, ratio=4.0, metric="activation", **{**EXACT, **settings}).converted


@of_known_cases
def test_who_stores_and_who_reads(case: str) -> None:
    spec, model = model_spec(tiny_config(case)), coded(case)
    readers = {layer.layer_idx: layer.reads for layer in spec.layers if layer.reads is not None}
    found = {m.layer_idx: m.reads for m in model.modules() if isinstance(m, ReadingAttention)}
    assert found == readers
    assert {(*latent.layer_ids,)[0] for latent in plan_of(model).latents} == {
        *range(len(spec.layers))
    } - {*readers}
    if case == CASE:
        assert readers == READS
        assert spec.readers_of(2) == (3, 5) and spec.readers_of(0) == ()


@of_known_cases
def test_bytes_are_counted_once(case: str) -> None:
    """Whatever reads them, as the source's own cache has them."""
    source, spec = tiny_model(case), model_spec(tiny_config(case))
    ids = random_ids(1, 7)  # shorter than every window
    with torch.no_grad():
        cached = cache_bytes(source(ids, use_cache=True).past_key_values).kv
    per_element = source.dtype.itemsize / 2
    assert cached == spec.kv_bytes(7) * per_element
    plan = pair(case, ratio=4.0, cache_bits="auto", exact_sinks=0, exact_window=0).plan
    rows = plan.rows(spec)
    assert sum(row.get("stored B/token", 0) for row in rows) == plan.bytes_per_token
    named = [row["attention"] for row in rows if "reads" in row["attention"]]
    assert len(named) == tiny_config(case).num_kv_shared_layers


@pytest.mark.parametrize("method", ["joint", "per_head", "rotate"])
@of_known_cases
@torch.no_grad()
def test_functions_for_cpus_read_as_torch(case: str, method: str) -> None:
    model, pieces = coded(case, method), [12, 1, 3, 1]
    ids = random_ids(2, sum(pieces))
    due, found = (
        logits_in_pieces(model, ids, pieces, make_cache(model, backend=name))
        for name in ("torch", "cpu")
    )
    assert largest_difference(found, due) < CODE_EDGE


@pytest.mark.slow
@torch.no_grad()
def test_kernels_read_as_torch() -> None:
    model, ids = coded(CASE), random_ids(1, 10)
    due, found = (
        logits_in_pieces(model, ids, [8, 2], make_cache(model, backend=name))
        for name in ("torch", "triton")
    )
    assert largest_difference(found, due) < CODE_EDGE


@pytest.mark.skipif(SLICED not in ROW_CASES, reason="of newer releases of transformers")
@pytest.mark.parametrize(
    ("backend", "num_new"),
    [
        ("torch", 4),
        ("torch", 11),
        ("cpu", 4),
        ("cpu", 11),
        pytest.param("triton", 3, marks=pytest.mark.slow),
        pytest.param("triton", 9, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_the_last_queries_alone(backend: str, num_new: int) -> None:
    """Layers that read are given no more tokens than there are logits to keep."""
    model, ids = coded(SLICED), random_ids(1, 8 + num_new)
    seen: list[Tensor] = []
    reading = next(m for m in model.modules() if isinstance(m, ReadingAttention))
    handle = reading.q_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    found = []
    for keep in (0, 1):
        cache = make_cache(model, backend=backend)
        for part in (ids[:, :-num_new], ids[:, -num_new:]):
            logits = model(part, past_key_values=cache, logits_to_keep=keep).logits
        found.append(logits[:, -1])
    handle.remove()
    assert seen[-1].shape[1] in (1, num_new)  # older releases keep all of them
    assert_same_computation(found[1], found[0])


@pytest.mark.parametrize("method", ["joint", "rotate"])
def test_static_caches(method: str) -> None:
    model, ids = coded(CASE, method), random_ids(2, 9)
    settings = {"max_new_tokens": 8, "do_sample": False}
    static = {"cache_implementation": "static", "disable_compile": True}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, **settings, **static), expected)


@torch.no_grad()
def test_what_is_handed_on_is_not_written_over() -> None:
    """Rows come out of the pool into memory that later layers of the step use again."""
    source = tiny_model(CASE)
    latents = pair(CASE).converted  # 16 bits, which come out as they are
    ids = random_ids(2, NUM_TOKENS)
    due = logits_of(source, ids)
    for model in (source, latents):
        cache = make_cache(model, backend="torch")
        assert_same_logits(logits_in_pieces(model, ids, [10, 1, 1, 9, 1, 1], cache), due)


def test_scores_count_the_queries_of_all_layers_that_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """E (q . e)^2 over the queries, and |W e|^2 over the outputs, of layer 2 and its readers."""
    # As a CPU without instructions for bfloat16 computes them.
    monkeypatch.setattr("cacheshrink_hybrid.precision.multiplies_bfloat16", lambda: False)
    model = tiny_model(CASE, num_attention_heads=1, num_key_value_heads=1)
    parts = read_attention(model, model_spec(model.config))
    (part,) = [part for part in parts if part.layer_ids == (2,)]
    sequences = calibration_ids(2, 1)  # one token is at distance 0 alone
    queries: dict[int, list[Tensor]] = {}
    modules = {2: part.source, **{i: reader.source for i, reader in part.readers.items()}}
    for i, module in modules.items():
        module.q_norm.register_forward_hook(
            lambda module, args, out, i=i: queries.setdefault(i, []).append(out.detach())
        )
    statistics = calibrate(model, [part], sequences, metric="score")[0]
    for module in modules.values():
        module.q_norm._forward_hooks.clear()
    D = part.head_dim
    errors = torch.randn(6, D, dtype=torch.float64)
    # A layer's own queries are formed twice, by the model and by the metric, which is no matter.
    per_layer = [torch.cat(found).flatten(0, -2).double() for found in queries.values()]
    of_keys = torch.stack([(q @ errors.T).square().mean(0) for q in per_layer]).sum(0)
    outputs = [module.o_proj.weight.detach().double() for module in modules.values()]
    of_values = torch.stack([(errors @ w.T).square().sum(1) for w in outputs]).sum(0)
    for block, due in ((slice(0, D), of_keys), (slice(D, 2 * D), of_values)):
        metric = statistics.metric[block, block]
        found = torch.einsum("ne,ef,nf->n", errors, metric, errors)
        torch.testing.assert_close(found / found.sum(), due / due.sum(), rtol=1e-4, atol=0)


def test_the_source_is_had_back() -> None:
    source = tiny_model(CASE)
    model = tiny_model(CASE)
    settings = {"compression_ratio": 8.0, "metric": "activation", "store_original_weights": True}
    convert_model(model, CompressionConfig(**settings), calibration_ids())
    ids = random_ids(2, NUM_TOKENS)
    before = logits_of(model, ids)
    with compression_disabled(model):
        assert torch.equal(logits_of(model, ids), logits_of(source, ids))
    assert torch.equal(logits_of(model, ids), before)
    names = {name for name, _ in model.named_modules()}
    assert "model.layers.4.self_attn.source_attention" in names


def test_gradients_reach_what_is_stored_through_all_that_read() -> None:
    """Checkpointed layers run again on the way back, behind those that read what they stored."""
    found = []
    for checkpointed in (False, True):
        model = copy.deepcopy(pair(CASE, ratio=4.0).converted).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = random_ids(2, 12)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        weight = model.model.layers[1].self_attn.k_b_proj.weight
        assert isinstance(weight.grad, Tensor)
        found.append(weight.grad)
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(found[1], found[0])


def test_a_step_by_kernels_has_no_gradients() -> None:
    model = copy.deepcopy(coded(CASE))
    model.requires_grad_(False)
    model.model.layers[4].self_attn.q_proj.weight.requires_grad_(True)
    cache = make_cache(model, backend="cpu")
    ids = random_ids(1, 9)
    with torch.no_grad():
        model(ids[:, :8], past_key_values=cache)
    with pytest.raises(NotSupportedError, match=r"layer 4 reads latents of layer 1 by kernels"):
        model(ids[:, 8:], past_key_values=cache)


def test_nothing_was_handed_on() -> None:
    reading = coded(CASE).model.layers[3].self_attn
    with pytest.raises(NotSupportedError, match=r"latents of layer 2 were not handed on"):
        reading(torch.zeros(1, 2, 32), shared_kv_states={})


def test_layers_on_several_devices() -> None:
    model = coded(CASE)
    shared: dict[Any, Any] = {}
    storing = model.model.layers[2].self_attn
    assert isinstance(storing, LatentAttention)
    x, positions = torch.zeros(1, 3, 32), torch.arange(3)[None]
    angles = model.model.rotary_emb(x, positions, "sliding_attention")
    storing(x, position_embeddings=angles, shared_kv_states=shared)
    handed = context.handed_on(shared, 2)
    assert handed.to(torch.device("cpu")) is handed
    with pytest.raises(NotSupportedError, match=r"a layer on meta reads latents of one on cpu"):
        handed.to(torch.device("meta"))


@pytest.mark.parametrize("fault", ["scaling", "keys", "queries"])
def test_a_reader_that_is_built_otherwise(fault: str) -> None:
    model = tiny_model(CASE)
    reader = model.model.layers[4].self_attn
    if fault == "scaling":
        reader.scaling = 0.5
    elif fault == "keys":
        reader.k_proj = nn.Linear(32, 32)
    else:
        reader.q_proj = nn.Linear(32, 32)
    words = {
        "scaling": r"a scaling of 0.5, 1.0 in layer 1",
        "keys": r"it has a k_proj of its own",
        "queries": r"rows of queries 32, 64 in layer 1",
    }
    with pytest.raises(UnsupportedModelError, match=rf"layer 4 is not built as .* {words[fault]}"):
        read_attention(model, model_spec(model.config))


def test_a_reader_that_does_something_else_is_found_out() -> None:
    """By the comparison before a conversion, which names the layer."""
    model = tiny_model(CASE)
    reader = model.model.layers[5].self_attn
    forward = reader.forward
    reader.forward = lambda hidden_states, *args, **kwargs: (
        1.01 * forward(hidden_states, *args, **kwargs)[0],
        None,
    )
    config = CompressionConfig(compression_ratio=2.0, metric="activation")
    with pytest.raises(SelfCheckError, match=r"layer 5 \(model.layers.5.self_attn\), rebuilt"):
        convert_model(model, config, calibration_ids())


def test_decoupled_keys_are_refused() -> None:
    config = CompressionConfig(compression_ratio=2.0, compression_method="decoupled_rope")
    with pytest.raises(UnsupportedModelError, match=r"layers 4 read them as well"):
        convert_model(tiny_model(CASE), config, calibration_ids())


@pytest.mark.parametrize(
    ("shared", "kinds"),
    [(6, ["sliding_attention"] * 6), (1, ["sliding_attention"] * 5 + ["full_attention"])],
)
def test_layers_without_one_to_read(shared: int, kinds: list[str]) -> None:
    config = tiny_config(CASE, num_kv_shared_layers=shared, layer_types=kinds)
    with pytest.raises(UnsupportedModelError, match=rf"num_kv_shared_layers={shared} .* no \w+"):
        model_spec(config)


def test_projections_of_a_reader_have_the_names_of_its_source() -> None:
    model = pair(CASE, ratio=4.0).converted
    reading = model.model.layers[3].self_attn
    names = {name for name, _ in reading.named_parameters()}
    assert names == {
        "q_proj.weight",
        "q_proj.bias",
        "q_norm.weight",
        "o_proj.weight",
        "o_proj.bias",
    }
