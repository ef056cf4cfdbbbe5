"""Models whose weights accelerate keeps elsewhere compute what they compute in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from transformers import AutoModelForCausalLM

from cacheshrink_hybrid import save_mla_model
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.placement import input_device
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, logits_of, pair, random_ids
from tests.tolerances import assert_same_logits

OFFLOADS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "cpu": lambda model, _: cpu_offload(model, execution_device="cpu"),
    "disk": lambda model, folder: disk_offload(model, str(folder), execution_device="cpu"),
}
SETTINGS = {
    "bamba": {"state_ratio": 2.0},
    "jamba": {"state_ratio": 2.0},
    "qwen3_next": {"state_ratio": 2.0},
}


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize(
    "case", ["gpt2", "llama", "qwen3", "gpt_oss", "zamba2", "gemma3n_text", *SETTINGS]
)
def test_offloaded_models_give_the_same_tokens(case: str, offload: str, tmp_path: Path) -> None:
    settings = SETTINGS.get(case, {})
    whole = pair(case, "joint", 2.0, metric="activation", **settings).converted
    model, ids = OFFLOADS[offload](copy.deepcopy(whole), tmp_path), random_ids(2, 10)
    assert model.device.type == "meta" and input_device(model).type == "cpu"
    outputs = [m.generate(ids, max_new_tokens=5, do_sample=False) for m in (whole, model)]
    assert torch.equal(*outputs)
    if case in ("llama", "bamba"):
        prompts, sampling = ids.tolist(), SamplingParams(max_tokens=4)
        served = [
            [o.token_ids for o in LLM(m, None, cache_memory="2MiB").generate(prompts, sampling)]
            for m in (whole, model)
        ]
        assert served[0] == served[1]


def test_layers_on_disk(tmp_path: Path) -> None:
    whole = pair("llama", "joint", 2.0, metric="activation").converted
    save_mla_model(whole, None, tmp_path / "model")
    places = dict.fromkeys(
        ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu"
    )
    places |= {f"model.layers.{i}": "disk" for i in range(1, whole.config.num_hidden_layers)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    )
    ids = random_ids(2, 10)
    outputs = [m.generate(ids, max_new_tokens=5, do_sample=False) for m in (whole, model)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("metric", ["none", "activation", "fisher", "score"])
def test_offloaded_sources_are_converted(metric: str) -> None:
    due = logits_of(tiny_model("llama"), random_ids(2, 10))
    source = cpu_offload(tiny_model("llama"), execution_device="cpu")
    config = CompressionConfig(compression_ratio=1.0, cache_bits=16, metric=metric)
    convert_model(source, config, calibration_ids())
    assert_same_logits(logits_of(source, random_ids(2, 10)), due)


def test_offloaded_mixers_are_not_folded() -> None:
    source = cpu_offload(tiny_model("bamba"), execution_device="cpu")
    config = CompressionConfig(state_ratio=2.0, metric="activation")
    with pytest.raises(UnsupportedModelError, match=r"mamba\.in_proj\.weight is .* offloaded"):
        convert_model(source, config, calibration_ids())
