"""The program `demo`: the shipped model, before and after."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..checkpoint.load import load_mla_model
from ..checkpoint.save import save_mla_model
from ..config import CompressionConfig
from ..conversion.convert import convert_to_mla
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
PROMPTS = (
    # Something to remember, other text, and a question; the answer is in the cache only.
    (
        "kmfp: 48213\nwxrt: 90761\n\nReturn the absolute value of a number. The argument may be an "
        "integer or a floating point number.\n\nkmfp: ",
        5,
    ),
    ("Return True if the", 80),
)


def run(given: argparse.Namespace) -> int:
    spec = source_spec(model_path())
    check_points({f"{r:g}": CompressionConfig(compression_ratio=r) for r in given.ratios}, spec)
    documents = held_out_text()[:: 4 if given.quick else 1]
    texts = [document[:CHARACTERS_PER_DOCUMENT] for document in documents]
    distances = (64, 256) if given.quick else (64, 256, 1024)
    exercises = 2 if given.quick else 8
    tokenizer = AutoTokenizer.from_pretrained(model_path())

    def measure(name: str, model) -> dict[str, Any]:
        print(f"measuring {name} ...", flush=True)
        spec = model_spec(model.config)
        stored = plan_of(model).bytes_per_token if is_converted(model) else spec.bytes_per_token
        perplexity = measure_perplexity(
            model, tokenizer, texts, max_length=CONTEXT_TOKENS, batch_size=4, progress=True
        )
        recall = measure_recall(model, tokenizer, distances, num_exercises=exercises, progress=True)
        served = copy.deepcopy(model).to(torch.bfloat16)
        memory = measure_cache_memory(served, [CONTEXT_TOKENS])["per_sequence_length"]
        live = memory[CONTEXT_TOKENS]
        return {
            "model": name,
            "bytes_per_token": stored,
            "perplexity": perplexity.perplexity,
            **{f"recall@{distance}": recall[distance]["mean"] for distance in distances},
            f"live KV bytes, {CONTEXT_TOKENS} tokens": live["live_bytes"],
            "state bytes": live["state_bytes"],
        }

    source = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    records = [measure("source", source)]
    shown_ratio = min(given.ratios, key=lambda ratio: abs(ratio - SHOWN_RATIO))
    shown = None
    for ratio in given.ratios:
        print(f"converting at {ratio:g}x ...", flush=True)
        model, _ = convert_to_mla(
            model_path(),
            compression_ratio=ratio,
            dtype=torch.float32,
            calibration_texts=training_text(),
            num_calibration_samples=16 if given.quick else 64,
        )
        records.append(measure(f"{ratio:g}x", model))
        if ratio == shown_ratio:
            shown = model
    assert shown is not None

    base = records[0]["perplexity"]
    for record in records:
        record["perplexity change"] = f"{100 * (record['perplexity'] / base - 1):+.2f} %"
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
        {"program": "demo", "models": records, "samples": samples, "reload_is_bit_equal": same},
    )
    print(f"\nsaved to {directory} and loaded again: logits bit-equal: {same}")
    print(f"table and plot: {given.output / 'results.json'}, {given.output / 'tradeoff.png'}")
    return 0 if same else 1
