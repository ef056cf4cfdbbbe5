"""The ways in which `generate()` uses a cache work as they do on the source, or are refused as
they are there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache, pipeline

from cacheshrink_hybrid import HybridCache, LatentCache
from cacheshrink_hybrid.cache_argument import given_cache
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.model import latent_model
from tests.families.tiny_configs import CASES, tiny_model
from tests.models import Pair, converted_copy, logits_of, pair, random_ids
from tests.texts import TEXTS, word_tokenizer
from tests.tolerances import assert_same_computation, assert_same_logits

# A plain model, absorbed keys, windows, softcap, sinks, key norms, and each kind of hybrid.
CASES_TO_GENERATE = (
    "gpt2",
    "llama",
    "mistral-window",
    "gemma2",
    "qwen3",
    "gpt_oss",
    "phi3-longrope",
    "bamba",
    "jamba",
    "lfm2",
    "qwen3_next",
    "deepseek_v3",
)
STATIC_CASES = (
    "gpt2",
    "llama",
    "llama-dynamic",
    "phi3-longrope",
    "mistral-window",
    "gemma2",
    "gemma3_text",
    "qwen3",
    "olmo2",
    "gpt_oss",
    "deepseek_v3",
)
PROMPT = torch.cat([random_ids(1, 6), random_ids(1, 6), random_ids(1, 6)], dim=1)
GREEDY = {"do_sample": False, "max_new_tokens": 10}


def assistant(case: str) -> dict[str, Any]:
    return {"assistant_model": tiny_model(case, seed=1)}


MODES: dict[str, Callable[[str], dict[str, Any]]] = {
    "greedy": lambda case: {},
    "prompt-lookup": lambda case: {"prompt_lookup_num_tokens": 4},
    "assisted": assistant,
    "prefill-chunks": lambda case: {"prefill_chunk_size": 5},
    "no-cache": lambda case: {"use_cache": False},
    "static": lambda case: {"cache_implementation": "static"},
    "beam-sample": lambda case: {"num_beams": 2, "do_sample": True},
    "returned-sequences": lambda case: {"do_sample": True, "num_return_sequences": 3},
    "repetition-penalty": lambda case: {"repetition_penalty": 1.3},
}


def outcome(model: PreTrainedModel, ids: Tensor, **settings: Any) -> Tensor | type[Exception]:
    """Tokens, or the exception that refused."""
    torch.manual_seed(3)
    try:
        return model.generate(ids, **{**GREEDY, **settings})
    except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES_TO_GENERATE)
def test_as_the_source_does(case: str, mode: str) -> None:
    settings = MODES[mode](case)
    expected, actual = (outcome(model, PROMPT, **settings) for model in pair(case).both())
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor), actual
        assert torch.equal(actual, expected)
    else:
        assert actual is expected


@pytest.mark.parametrize("mode", ["prompt-lookup", "assisted", "prefill-chunks", "static"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen3", "gemma2", "mistral-window"])
def test_compressed_models_give_their_greedy_tokens_in_every_mode(case: str, mode: str) -> None:
    model = pair(case, "auto", ratio=4.0, metric="activation").converted
    expected, actual = outcome(model, PROMPT), outcome(model, PROMPT, **MODES[mode](case))
    assert isinstance(actual, Tensor), actual
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("case", ["gpt2", "llama", "gemma2", "mistral-window"])
def test_left_padding_with_a_static_cache(case: str) -> None:
    """generate() then gives masks of four dimensions, or several of them, instead of the text's."""
    ids, mask = random_ids(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0
    settings = {**GREEDY, "attention_mask": mask, "cache_implementation": "static"}
    expected, actual = (model.generate(ids, **settings) for model in pair(case).both())
    assert torch.equal(actual, expected)


def test_converted_model_as_assistant() -> None:
    source, converted = pair("llama").both()
    helper = pair("llama", "auto", ratio=4.0, metric="activation").converted
    for model in (source, converted):
        actual = model.generate(PROMPT, assistant_model=helper, **GREEDY)
        assert torch.equal(actual, source.generate(PROMPT, **GREEDY))


@torch.no_grad()
def static_steps(model: PreTrainedModel, forward: Callable, ids: Tensor, length: int) -> Tensor:
    """Logits of a prefill of all but four tokens, and of those one by one, in a static cache."""
    cache = StaticCache(config=model.config, max_cache_len=length)
    num_prefill = ids.shape[1] - 4
    pieces = []
    for start, end in [(0, num_prefill)] + [(i, i + 1) for i in range(num_prefill, ids.shape[1])]:
        positions = torch.arange(start, end)[None]
        pieces.append(
            forward(ids[:, start:end], position_ids=positions, past_key_values=cache).logits
        )
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("length", [24, 300])
@pytest.mark.parametrize("case", STATIC_CASES)
def test_static_cache(case: str, length: int) -> None:
    """Also where the buffer is longer than the text that the model was trained on."""
    made = pair(case)
    ids = random_ids(1, 18)
    for model in made.both():
        actual = static_steps(model, model, ids, length)
        assert_same_logits(actual, logits_of(made.source, ids))


@pytest.mark.slow(group="graphs")
@pytest.mark.parametrize("case", ["gpt2", "qwen3", "gemma2", "deepseek_v3", "gemma3n_text"])
def test_no_graph_breaks(case: str) -> None:
    """No rotation; norms of keys; windows beside layers that see everything; latents of the
    source; layers that read what others store."""
    model = copy.deepcopy(pair(case, "auto", ratio=4.0, metric="activation").converted)
    ids = random_ids(1, 14)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    actual = static_steps(model, compiled, ids, 20)
    assert_same_computation(actual, logits_of(model, ids))


def test_pipeline() -> None:
    made: Pair = pair("llama")
    texts = []
    for model in made.both():
        generate = pipeline("text-generation", model=model, tokenizer=word_tokenizer())
        texts.append(generate(TEXTS[:3], batch_size=2, do_sample=False, max_new_tokens=6))
    assert texts[1] == texts[0]


def test_a_callers_own_cache_is_used() -> None:
    model = pair("llama").converted
    cache = DynamicCache()
    output = model.generate(PROMPT, past_key_values=cache, return_dict_in_generate=True, **GREEDY)
    assert output.past_key_values is cache
    assert cache.get_seq_length() == PROMPT.shape[1] + 9


def test_a_cache_that_was_made_without_a_config() -> None:
    """Its layers appear as they are written to."""
    model = pair("llama", "auto", ratio=4.0).converted
    cache = DynamicCache()
    ids = random_ids(1, 12)
    first = model(ids[:, :9], past_key_values=cache).logits
    rest = model(ids[:, 9:], past_key_values=cache).logits
    assert_same_computation(torch.cat([first, rest], dim=1), logits_of(model, ids))


def test_continuing_a_conversation() -> None:
    """A cache that `generate` gave back goes into the next call, with a longer prompt."""
    source, converted = pair("mistral-window").both()
    results = []
    for model in (source, converted):
        first = model.generate(PROMPT, return_dict_in_generate=True, **GREEDY)
        longer = torch.cat([first.sequences, random_ids(1, 5, seed=9)], dim=1)
        results.append(model.generate(longer, past_key_values=first.past_key_values, **GREEDY))
    assert torch.equal(results[1], results[0])


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("zamba")])
def test_attention_of_shared_modules_is_recorded_once_per_layer(case: str) -> None:
    model = converted_copy(tiny_model(case), metric="activation")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        recorded = model(random_ids(1, 9), output_attentions=True).attentions
    kept = [weights for weights in recorded if weights is not None]
    assert len(kept) == sum(kind == "hybrid" for kind in model.config.layer_types)


def cache_of(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """The cache that generate() fills, and its tokens."""
    seen = []
    forward = model.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(given_cache(kwargs))
        return forward(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", spy)
        tokens = model.generate(PROMPT, **GREEDY, **settings)
    return seen[-1], tokens


@pytest.mark.parametrize("case", ["llama", "bamba"])
def test_a_dynamic_cache_is_had_for_the_asking(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair(case, "auto", ratio=4.0, metric="activation").converted
    pooled, expected = cache_of(model, monkeypatch)
    dense, actual = cache_of(model, monkeypatch, cache_implementation="dynamic")
    assert isinstance(pooled, HybridCache)
    assert type(dense) is LatentCache and not dense.offloading
    assert torch.equal(actual, expected)


class NoStream:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def wait_stream(self, other: object) -> None: ...


@pytest.mark.parametrize("case", ["llama", "bamba", "gemma3n_text"])
def test_an_offloaded_cache_is_had_for_the_asking(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator; here its streams do nothing, and layers move from the CPU to the CPU."""
    model = pair(case, "auto", ratio=4.0, metric="activation").converted
    _, expected = cache_of(model, monkeypatch)
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: NoStream())
    monkeypatch.setattr(latent_model, "_check_cache_wish", lambda model, wish: None)
    cache, actual = cache_of(model, monkeypatch, cache_implementation="offloaded")
    assert type(cache) is LatentCache and cache.offloading
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("case", ["llama", "gemma3n_text"])
def test_an_offloaded_static_cache_is_had_for_the_asking(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pair(case, "auto", ratio=4.0, metric="activation").converted
    _, expected = cache_of(model, monkeypatch)
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: NoStream())
    monkeypatch.setattr(latent_model, "_check_cache_wish", lambda model, wish: None)
    wish = {"cache_implementation": "offloaded_static", "disable_compile": True}
    cache, actual = cache_of(model, monkeypatch, **wish)
    assert type(cache) is StaticCache and cache.offloading
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("quantized", "cache_bits"),
        ("offloaded", "'offloaded' moves .* runs on the CPU"),
        ("offloaded_static", "'offloaded_static' moves .* runs on the CPU"),
    ],
)
def test_caches_that_do_not_fit_are_refused(wish: str, message: str) -> None:
    model = pair("llama", "auto", ratio=4.0, metric="activation").converted
    with pytest.raises(NotSupportedError, match=message):
        model.generate(PROMPT, cache_implementation=wish, **GREEDY)
