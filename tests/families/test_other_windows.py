"""Families whose attention takes its window or its angles otherwise than masks and models say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid import convert_to_mla, load_mla_model, save_mla_model
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.attention.kernel_view import why_not
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.vllm.support import TESTED, Deployment, refuse_unsupported
from tests.families.tiny_configs import tiny_config, tiny_model
from tests.models import (
    equal_pieces,
    logits_in_pieces,
    logits_of,
    prefill_then_decode,
    random_ids,
)
from tests.tolerances import assert_same_logits, largest_difference

CASES = ["codegen", "gpt_neo", "gptj", "llama4_text"]
SERVED = ["codegen", "gpt_neo", "gptj"]
NUM_TOKENS = 29
CODE_EDGE = 5e-3
"""As in `test_rows.py`."""


@cache
def coded(case: str) -> PreTrainedModel:
    """Compared with its source layer by layer before it is converted."""
    settings = {"exact_sinks": 0, "exact_window": 4}
    model, _ = convert_to_mla(
        tiny_model(case), 4.0, use_calibration=False, verbose=False, **settings
    )
    return model


@pytest.mark.parametrize("case", CASES)
def test_coded_decoding_agrees_with_one_pass(case: str) -> None:
    model, ids = coded(case), random_ids(2, NUM_TOKENS)
    due = logits_of(model, ids)
    for pieces in (prefill_then_decode(NUM_TOKENS, 15), equal_pieces(NUM_TOKENS, 7)):
        assert largest_difference(logits_in_pieces(model, ids, pieces), due) < CODE_EDGE


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_computes_as_before(case: str, tmp_path: Path) -> None:
    model, ids = coded(case), random_ids(2, NUM_TOKENS)
    save_mla_model(model, None, tmp_path)
    loaded, _ = load_mla_model(tmp_path)
    assert_same_logits(logits_of(loaded, ids), logits_of(model, ids))


@pytest.mark.parametrize("case", SERVED)
def test_the_engine_gives_the_tokens_of_generate(case: str) -> None:
    model = coded(case)
    prompts = [random_ids(1, length, seed=length) for length in (5, 17)]
    llm = LLM(model, None, cache_memory="4MiB")
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    outputs = llm.generate([ids[0].tolist() for ids in prompts], params)
    for ids, output in zip(prompts, outputs, strict=True):
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        due = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert output.token_ids == tuple(due[0, ids.shape[1] :].tolist())


def test_neighbours_that_rotate_together_lie_half_a_rotation_apart() -> None:
    model = tiny_model("gptj")
    (parts, *_) = read_attention(model, model_spec(model.config))
    weight = model.transformer.h[0].attn.k_proj.weight
    due = weight.view(4, 8, 32)[:, [0, 2, 1, 3, 4, 5, 6, 7]].reshape(32, 32)
    assert torch.equal(parts.key.weight(), due)


def test_layers_of_chunks_count_and_hold_no_more_than_a_chunk() -> None:
    spec = model_spec(tiny_config("llama4_text"))
    kinds = [(x.attention.sliding_window, x.attention.in_chunks) for x in spec.attention_layers]
    assert kinds == [(6, True), (6, True), (None, False), (6, True)]
    assert spec.kv_bytes(100) == 64 * (3 * 6 + 100)
    model = coded("llama4_text")
    made = make_cache(model)
    ids = random_ids(1, NUM_TOKENS)
    logits_in_pieces(model, ids, prefill_then_decode(NUM_TOKENS, 15), made)
    assert [layer.get_mask_sizes(1)[0] for layer in made.layers] == [6, 6, NUM_TOKENS + 1, 6]


def test_kernels_leave_chunks_to_torch() -> None:
    layers = coded("llama4_text").model.layers
    like = torch.zeros(1, 1, 32)
    assert "chunks of the text" in str(why_not(layers[0].self_attn.head, like))


def test_chunks_are_refused_where_masks_are_not_read() -> None:
    model = coded("llama4_text")
    with pytest.raises(NotSupportedError, match="layers of this llama4_text model see chunks"):
        LLM(model, None)
    here = Deployment(release=TESTED[0].release, device=TESTED[0].device)
    with pytest.raises(NotSupportedError, match="layers of a llama4_text model see chunks"):
        refuse_unsupported(here, plan_of(model), model_spec(model.config))
