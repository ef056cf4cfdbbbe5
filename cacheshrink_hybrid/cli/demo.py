"""The program `demo`: the shipped model, before and after."""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..calibration.text import calibration_sequences
from ..checkpoint.load import load_mla_model
from ..checkpoint.save import save_mla_model
from ..config import CompressionConfig
from ..conversion.convert import convert_model
from ..conversion.statistics import model_statistics
from ..demo import model_path
from ..demo.corpus import held_out_text, training_text
from ..evaluation import generate_samples, measure_cache_memory, measure_perplexity, measure_recall
from ..families import model_spec
from ..model.attached_plan import is_converted, plan_of
from ..text_tables import format_table
from .arguments import check_points, source_spec
from .plots import plot_tradeoff
from .report import write_json

SHOWN_RATIO = 4.0
CONTEXT_TOKENS = 1024
CHARACTERS_PER_DOCUMENT = 4096
DISTANCES = (64, 256, 1024)
NUM_CALIBRATION_SAMPLES = 64
PROMPTS = (
    # Something to remember, other text, and a question; the answer is in the cache only.
    (
        "kmfp: 48213\nwxrt: 90761\n\nReturn the absolute value of a number. The argument may be an "
        "integer or a floating point number.\n\nkmfp: ",
        5,
    ),
    ("Return True if the", 80),
)


@dataclass(frozen=True, slots=True)
class Study:
    """How much is read: every how manieth document, and exercises per kind and distance."""

    stride: int
    num_exercises: int


SHORT, FULL = Study(2, 4), Study(1, 8)


def run(given: argparse.Namespace) -> int:
    if "OMP_NUM_THREADS" not in os.environ:
        # Threads that share matrices this small wait more than they compute, and they wait by
        # spinning: beside another busy program two take twenty times as long as one.
        torch.set_num_threads(1)
    configs = {
        f"{ratio:g}x": CompressionConfig(
            compression_ratio=ratio, num_calibration_samples=NUM_CALIBRATION_SAMPLES
        )
        for ratio in given.ratios
    }
    check_points(configs, source_spec(model_path()))
    study = FULL if given.full else SHORT
    texts = [text[:CHARACTERS_PER_DOCUMENT] for text in held_out_text()[:: study.stride]]
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    source = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()

    def measured(name: str, model: PreTrainedModel) -> dict[str, Any]:
        record = _record(name, model, tokenizer, texts, study.num_exercises)
        before = records[0]["perplexity"] if records else record["perplexity"]
        record["perplexity change"] = f"{100 * (record['perplexity'] / before - 1):+.2f} %"
        recall = " / ".join(f"{record[f'recall@{distance}']:.3f}" for distance in DISTANCES)
        print(
            f"{name}: {record['bytes_per_token']} KV bytes per token, perplexity "
            f"{record['perplexity']:.3f} ({record['perplexity change']}), recall {recall}",
            flush=True,
        )
        return record

    print(f"recall is over {' / '.join(map(str, DISTANCES))} tokens", flush=True)
    records: list[dict[str, Any]] = []
    records.append(measured("source", source))
    first = next(iter(configs.values()))
    sequences = calibration_sequences(tokenizer, training_text(), first, model=source)
    statistics = model_statistics(source, first, sequences, progress=True)
    shown_ratio = min(given.ratios, key=lambda ratio: abs(ratio - SHOWN_RATIO))
    shown = source
    for name, config in configs.items():
        model = copy.deepcopy(source)
        convert_model(model, config, statistics=statistics, calibrated_on="python-docs")
        records.append(measured(name, model))
        if config.compression_ratio == shown_ratio:
            shown = model

    print("\n" + format_table(records))
    title = "The shipped model, before and after"
    plot_tradeoff(given.output / "tradeoff.png", records, title, joined=True)

    samples = [
        generate_samples(shown, tokenizer, [prompt], max_new_tokens=length)[0]
        for prompt, length in PROMPTS
    ]
    for (prompt, _), sample in zip(PROMPTS, samples, strict=True):
        print(f"\n{shown_ratio:g}x model, given {prompt!r}:\n    {sample[len(prompt) :]!r}")

    directory = given.output / "model"
    save_mla_model(shown, tokenizer, directory)
    loaded, _ = load_mla_model(directory)
    ids = tokenizer(PROMPTS[0][0], return_tensors="pt").input_ids
    with torch.no_grad():
        same = torch.equal(shown(ids).logits, loaded(ids).logits)
    write_json(
        given.output / "results.json",
        {
            "program": "demo",
            "full": given.full,
            "models": records,
            "samples": samples,
            "reload_is_bit_equal": same,
        },
    )
    print(f"\nsaved to {directory} and loaded again: logits bit-equal: {same}")
    print(f"table and plot: {given.output / 'results.json'}, {given.output / 'tradeoff.png'}")
    return 0 if same else 1


def _record(
    name: str, model: PreTrainedModel, tokenizer, texts: list[str], num_exercises: int
) -> dict[str, Any]:
    """Size, perplexity, recall and live bytes of `model`, a row of the table."""
    spec = model_spec(model.config)
    stored = plan_of(model).bytes_per_token if is_converted(model) else spec.bytes_per_token
    perplexity = measure_perplexity(
        model, tokenizer, texts, max_length=CONTEXT_TOKENS, batch_size=4
    )
    recall = measure_recall(model, tokenizer, DISTANCES, num_exercises=num_exercises)
    served = copy.deepcopy(model).to(torch.bfloat16)
    live = measure_cache_memory(served, [CONTEXT_TOKENS])["per_sequence_length"][CONTEXT_TOKENS]
    return {
        "model": name,
        "bytes_per_token": stored,
        "perplexity": perplexity.perplexity,
        **{f"recall@{distance}": recall[distance]["mean"] for distance in DISTANCES},
        f"live KV bytes, {CONTEXT_TOKENS} tokens": live["live_bytes"],
        "state bytes": live["state_bytes"],
    }
