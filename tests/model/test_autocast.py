"""Under autocast a converted model is off by as little as its source is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import NotSupportedError
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_in_pieces, pair, prefill_then_decode, random_ids

IDS = random_ids(2, 18)
CODED = {"ratio": 3.0, "cache_bits": "auto"}
# RoPE with and without exact tokens, a softcap, no RoPE; all three kinds of states, also beside
# attention in one layer.
MODELS: dict[str, tuple[str, dict]] = {
    "llama": ("llama", CODED),
    "exact": ("llama", {**CODED, "exact_sinks": 2, "exact_window": 4}),
    "gemma2": ("gemma2", CODED),
    "gpt2": ("gpt2", {}),
    "mamba2": ("granitemoehybrid", {"state_ratio": 2.0, "state_dtype": "float16"}),
    "mamba2-int8": ("bamba", {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 1}),
    "mamba": ("jamba", {"state_ratio": 2.0, "state_dtype": "float16"}),
    "zamba": ("zamba", {"state_ratio": 2.0, "state_dtype": "int8"}),
    "delta-net": ("olmo_hybrid", {"state_ratio": 2.0, "state_dtype": "float16"}),
    "both-in-one-layer": ("falcon_h1", {"state_ratio": 2.0, "state_dtype": "float16"}),
}
MOST_NOISE = 3.0
"""Root mean square error under autocast, in units of the source's."""
EDGES = 0.01
"""The same for numbers that fall on the other side of the edge between two codes."""


def error(actual: Tensor, due: Tensor) -> float:
    return float((actual.float() - due.float()).square().mean().sqrt())


def logits(model: PreTrainedModel, way: str) -> Tensor:
    if way == "pieces":
        return logits_in_pieces(model, IDS, prefill_then_decode(IDS.shape[1], 9))
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["pass", "pieces"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, way: str, dtype: torch.dtype) -> None:
    case, settings = MODELS[name]
    made = pair(case, **settings)
    due = logits(made.converted, way)
    exact = logits(made.source, "pass")
    with torch.autocast("cpu", dtype=dtype):
        noise = error(logits(made.source, "pass"), exact)
        assert error(logits(made.converted, way), due) < MOST_NOISE * noise + EDGES


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("name", ["llama", "mamba2", "mamba", "delta-net"])
def test_training_and_generation(name: str, use_cache: bool) -> None:
    case, settings = MODELS[name]
    model = converted_copy(tiny_model(case), **settings).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(IDS, labels=IDS, use_cache=use_cache).loss.backward()
        made = model.eval().generate(IDS, max_new_tokens=4, do_sample=False, use_cache=use_cache)
    assert made.shape == (2, IDS.shape[1] + 4)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["llama", "mamba2", "mamba", "delta-net"])
def test_engine(name: str) -> None:
    case, settings = MODELS[name]
    model = pair(case, **settings).converted
    prompts = [random_ids(1, length)[0].tolist() for length in (5, 9)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        llm = LLM(model, None, cache_memory="4MiB")
        outputs = llm.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True))
    assert [len(output.token_ids) for output in outputs] == [4, 4]


@pytest.mark.parametrize("case", ["llama", "qwen3", "granitemoehybrid", "qwen3_next", "falcon_h1"])
@pytest.mark.parametrize("bits", [16, "auto"])
def test_another_type_than_the_weights(case: str, bits: int | str) -> None:
    """Models in bfloat16 under autocast to float16, by `generate()` and by the engine."""
    made = pair(case, "joint", ratio=2.0, metric="activation", cache_bits=bits).converted
    model = copy.deepcopy(made).bfloat16()
    prompts = [random_ids(1, length)[0].tolist() for length in (5, 9)]
    with torch.autocast("cpu", dtype=torch.float16):
        llm = LLM(model, None, cache_memory="4MiB")
        outputs = llm.generate(prompts, SamplingParams(max_tokens=3, ignore_eos=True))
        due = [
            model.generate(
                torch.tensor([prompt]), max_new_tokens=3, min_new_tokens=3, do_sample=False
            )
            for prompt in prompts
        ]
    for prompt, output, ids in zip(prompts, outputs, due, strict=True):
        assert list(output.token_ids) == ids[0, len(prompt) :].tolist()


def test_an_engine_that_was_made_outside() -> None:
    """It takes autocast to what its weights' type holds, and refuses others before it runs."""
    model = copy.deepcopy(pair("granitemoehybrid", cache_bits="auto", ratio=2.0).converted)
    prompts = [random_ids(1, 5)[0].tolist()]
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    engines = [LLM(copy.deepcopy(model), None, cache_memory="4MiB")]
    engines.append(LLM(model.bfloat16(), None, cache_memory="4MiB"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for llm in engines:
            assert len(llm.generate(prompts, params)[0].token_ids) == 2
    with torch.autocast("cpu", dtype=torch.float16):
        assert len(engines[0].generate(prompts, params)[0].token_ids) == 2
        with pytest.raises(NotSupportedError, match=r"outside of autocast, and stores torch\.bf"):
            engines[1].generate(prompts, params)
    assert len(engines[1].generate(prompts, params)[0].token_ids) == 2
