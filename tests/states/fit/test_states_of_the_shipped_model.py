"""Bases of the shipped model's states, fitted on one text and judged by what they do on another."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cacheshrink_hybrid.calibration.text import load_texts, token_sequences
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.statistics import model_statistics
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import PYTHON_DOCS
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.states.fit.bases import (
    StateBasis,
    oblique_basis,
    orthonormal_basis,
    selected_channels,
)
from cacheshrink_hybrid.states.kinds import compressible_layers
from cacheshrink_hybrid.states.mixers.installation import observed_mixers

LENGTH = 256
RANKS = (4, 8, 16)
PRINCIPAL = (
    "principal of writes",
    "principal of reads",
    "principal of both",
    "principal of states",
)


def bases(reads: Tensor, costs: Tensor, writes: Tensor) -> dict[str, StateBasis]:
    moments = {
        "principal of writes": writes,
        "principal of reads": reads,
        "principal of both": writes / writes.trace() + reads / reads.trace(),
        "principal of states": costs,
    }
    return {
        "oblique": oblique_basis(reads, costs),
        "select": selected_channels(reads, costs),
        "prune": selected_channels(reads, costs, refit=False),
    } | {name: orthonormal_basis(moment, reads, costs) for name, moment in moments.items()}


@cache
def errors() -> dict[str, list[float]]:
    """By method and rank, |y' - y|^2 / |y|^2 summed over the layers, on held-out text."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    fitted, held_out = (
        token_sequences(
            tokenizer,
            load_texts(None, PYTHON_DOCS, num_samples=count, split=split),
            max_length=LENGTH,
            num_sequences=count,
        )
        for count, split in ((6, "train"), (2, "test"))
    )
    config = CompressionConfig(metric="activation", state_ratio=2.0)
    statistics = model_statistics(model, config, fitted).states
    assert statistics is not None
    mixers = [
        (model.get_submodule(layer.state.module_name), layer.state)
        for layer in compressible_layers(model_spec(model.config))
        if layer.state is not None
    ]
    seen = []
    with torch.no_grad(), observed_mixers(mixers, lambda *passed: seen.append(passed)):
        for ids in held_out:
            model(ids)
        total: dict[str, list[float]] = {}
        for found in statistics:
            candidates = [
                bases(found.reads[g], found.group_states[g], found.writes[g])
                for g in range(len(found.reads))
            ]
            passes = [passed for passed in seen if passed[0].layer_idx == found.layer_idx]
            for name in candidates[0]:
                for i, rank in enumerate(RANKS):
                    pairs = [groups[name].pair(rank) for groups in candidates]
                    kept = torch.stack([write @ read.T for write, read in pairs]).float()
                    wrong = right = 0.0
                    for mixer, inputs, reads, y in passes:
                        through = torch.einsum("gnk,btgk->btgn", kept, reads)
                        narrow, _ = mixer.scan(None, inputs, through)
                        wrong += float((narrow - y).square().sum())
                        right += float(y.square().sum())
                    total.setdefault(name, [0.0] * len(RANKS))[i] += wrong / right
    return total


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(RANKS)), ids=[f"rank {rank}" for rank in RANKS])
def test_oblique_is_best_and_axis_aligned_selection_worst(i: int) -> None:
    by_method = {name: values[i] for name, values in errors().items()}
    for name in (*PRINCIPAL, "select", "prune"):
        assert by_method["oblique"] < by_method[name], by_method
    for name in (*PRINCIPAL, "select"):
        assert by_method[name] < by_method["prune"], by_method
