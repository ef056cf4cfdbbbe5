"""What does not take a decoder that reads an encoder's output says so, by name."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from cacheshrink_hybrid import MLATrainer, convert_to_mla
from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.errors import (
    KernelUnavailableError,
    NotSupportedError,
    SelfCheckError,
    UnsupportedModelError,
)
from cacheshrink_hybrid.evaluation.cached_forward import cached_logits
from cacheshrink_hybrid.evaluation.memory import measure_cache_memory
from cacheshrink_hybrid.evaluation.outputs import generate_samples
from cacheshrink_hybrid.export.refusals import check_exportable
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.latents.attention.cross import CrossAttention
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.training.nested import cut_ranks
from cacheshrink_hybrid.vllm.support import TESTED, Deployment, refuse_unsupported
from tests.families.encoder_configs import encoder_inputs, tiny_model
from tests.models import random_ids


@cache
def model() -> PreTrainedModel:
    made, _ = convert_to_mla(tiny_model("bart"), 4.0, use_calibration=False, verbose=False)
    return made


REFUSING = {
    "engine": (lambda: LLM(model(), None), "the engine takes models that read one text"),
    "trainer": (lambda: MLATrainer(model(), None), "MLATrainer takes models that read one text"),
    "cut": (lambda: cut_ranks(model(), 0.5), "cutting ranks takes models"),
    "perplexity": (
        lambda: list(cached_logits(model(), random_ids(1, 8), 4)),
        "reading a text through a live cache takes models",
    ),
    "memory": (lambda: measure_cache_memory(model(), [16]), "measuring the cache of a text"),
    "samples": (lambda: generate_samples(model(), None, ["a"]), "continuing a prompt takes"),
    "static": (
        lambda: model().generate(
            **encoder_inputs(model(), 1), cache_implementation="static", max_new_tokens=2
        ),
        "cache_implementation='static' makes slots for an encoder's output",
    ),
    "plain cache": (
        lambda: model()(
            **encoder_inputs(model(), 1),
            decoder_input_ids=random_ids(1, 3),
            use_cache=True,
            **{cache_argument(model()): DynamicCache()},
        ),
        "layer 0 reads an encoder's output, for which a DynamicCache has no part",
    ),
}


@pytest.mark.parametrize("name", REFUSING)
def test_refused(name: str) -> None:
    call, message = REFUSING[name]
    with pytest.raises(NotSupportedError, match=message):
        call()


@cache
def biased() -> PreTrainedModel:
    made, _ = convert_to_mla(tiny_model("t5"), 4.0, use_calibration=False, verbose=False)
    return made


def test_kernels_do_not_read_scores_with_a_bias() -> None:
    made = make_cache(biased(), backend="cpu")
    given = {**encoder_inputs(biased(), 1), cache_argument(biased()): made}
    with pytest.raises(KernelUnavailableError, match="its scores have a bias by distance"):
        biased().generate(**given, max_new_tokens=3, min_new_tokens=3)


def test_a_layer_alone_has_no_bias_to_add() -> None:
    attention = biased().decoder.block[1].layer[0].SelfAttention
    with pytest.raises(NotSupportedError, match="layer 1 adds to its scores the bias that an"):
        attention(torch.zeros(1, 3, 32))


def test_a_bias_needs_masks_as_tensors() -> None:
    attention = biased().decoder.block[0].layer[0].SelfAttention
    with pytest.raises(NotSupportedError, match="this attention implementation makes a str"):
        attention(torch.zeros(1, 3, 32), mask="a block mask")


def test_it_is_not_exported() -> None:
    with pytest.raises(UnsupportedModelError, match="a bart model does not keep one list"):
        check_exportable(model())


def test_vllm_does_not_serve_it() -> None:
    here = Deployment(release=TESTED[0].release, device=TESTED[0].device)
    with pytest.raises(NotSupportedError, match="a bart decoder reads an encoder's output"):
        refuse_unsupported(here, plan_of(model()), model_spec(model().config))


def test_other_decoders_with_an_encoder_are_refused() -> None:
    message = (
        r"model_type='prophetnet' is not converted: of decoders that read an encoder's output only"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        model_spec(AutoConfig.for_model("prophetnet"))


def test_cross_attention_that_differs_is_found_before_a_conversion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def in_order(self, latent: torch.Tensor, query: torch.Tensor) -> None:
        return None

    monkeypatch.setattr(CrossAttention, "_everything", in_order)
    with pytest.raises(SelfCheckError, match=r"encoder_attn\), rebuilt at full rank"):
        convert_to_mla(tiny_model("bart"), use_calibration=False, verbose=False)
