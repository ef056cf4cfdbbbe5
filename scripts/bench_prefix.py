"""Time to the first token of prompts that begin alike, cold and after others.

    python -m scripts.bench_prefix [MODEL ...] [--shared 2048] [--own 32] [--repeats 5]

MODEL is a source or converted model, or `layer-group`: three gated delta nets and one attention
layer with random weights and the sizes of Qwen3.5-0.8B. Without one, it is the hybrid that ships
with the package, as it is and converted at 4x with states at 2x. Prompts are random tokens, which
all begin with the same `--shared` ones. Three engines take turns, so that all see the same machine:
one without prefix reuse, one that keeps prompts and has none before each, and one that has served
two others. Then `generate()` does the same, alone and through a `PrefixCache`. Medians of time and
of its ratios within each turn; "CPU" is the time that the process had, which others on a busy
machine do not lengthen. Outputs of 16 greedy tokens are compared with the cold ones. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cacheshrink_hybrid import PrefixCache, convert_to_mla
from cacheshrink_hybrid.cli.arguments import load_any
from cacheshrink_hybrid.cli.plots import short_name
from cacheshrink_hybrid.cli.report import circumstances, write_json
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import training_text
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.text_tables import format_table

MEMORY = "512MiB"
COMPARED_TOKENS = 16
LAYER_GROUP = "layer-group"
Prompt = list[int]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--shared", type=int, default=2048)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    records = []
    for name, model in models(given.models):
        prompts = random_prompts(model, given.shared, given.own, given.repeats + 2)
        for way, measure in (("engine", engine_times), ("generate()", generate_times)):
            records.append({"model": name, "by": way, **measure(model, prompts)})
    print(format_table(records))
    results = {"program": "bench_prefix", "shared": given.shared, "own": given.own}
    results |= {"threads": torch.get_num_threads(), "runs": records}
    if given.json is not None:
        write_json(given.json, results)
    print(json.dumps({**circumstances(), **results}))
    return 0


def models(names: Sequence[str]) -> Iterator[tuple[str, PreTrainedModel]]:
    for name in names or [str(model_path())]:
        if name == LAYER_GROUP:
            yield name, layer_group()
            continue
        model = load_any(name, device="cpu", dtype="auto", trust_remote_code=False)[0].eval()
        yield short_name(name), model
    if not names:
        model, _ = convert_to_mla(
            model_path(),
            compression_ratio=4.0,
            state_ratio=2.0,
            calibration_texts=training_text(),
            num_calibration_samples=16,
            verbose=False,
        )
        yield "shipped, 4x, states 2x", model


def layer_group() -> PreTrainedModel:
    """Three gated delta nets and one attention layer, with the sizes of Qwen3.5-0.8B but for the
    vocabulary, and seeded random weights."""
    config = AutoConfig.for_model(
        "qwen3_5_text",
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=4,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        vocab_size=512,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def random_prompts(model: PreTrainedModel, shared: int, own: int, count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    draw = (3, model.config.vocab_size)
    beginning = torch.randint(*draw, (shared,), generator=generator).tolist()
    ends = torch.randint(*draw, (count, own), generator=generator).tolist()
    return [beginning + end for end in ends]


def engine_times(model: PreTrainedModel, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The first two prompts make the warm engine warm."""
    cold = LLM(model, cache_memory=MEMORY, prefix_cache=False)
    keeping, warm = (LLM(model, cache_memory=MEMORY) for _ in range(2))

    def first_token(llm: LLM, prompt: Prompt) -> None:
        llm.generate(prompt, SamplingParams(max_tokens=1, ignore_eos=True))

    def output(llm: LLM, prompt: Prompt) -> tuple[int, ...]:
        wish = SamplingParams(max_tokens=COMPARED_TOKENS, ignore_eos=True)
        return llm.generate(prompt, wish)[0].token_ids

    for prompt in prompts[:2]:
        first_token(warm, prompt)
        first_token(cold, prompt)
    times = in_turns(
        prompts[2:],
        cold=lambda prompt: first_token(cold, prompt),
        keeping=lambda prompt: first_token(emptied(keeping), prompt),
        warm=lambda prompt: first_token(warm, prompt),
    )
    saved = warm.statistics.prefixes.saved_tokens // len(prompts[2:])
    equal = [output(cold, prompt) == output(warm, prompt) for prompt in prompts[2:]]
    return {**summary(times), "saved tokens": saved, "equal outputs": f"{sum(equal)}/{len(equal)}"}


def emptied(llm: LLM) -> LLM:
    llm.reset_prefix_cache()
    return llm


def generate_times(model: PreTrainedModel, prompts: Sequence[Prompt]) -> dict[str, Any]:
    keeping, warm = (PrefixCache(model, max_bytes=MEMORY) for _ in range(2))

    def tokens(owner: Any, prompt: Prompt, count: int) -> list[int]:
        ids = torch.tensor([prompt])
        wish = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        return owner.generate(ids, attention_mask=torch.ones_like(ids), **wish)[0].tolist()

    def emptied_keeping(prompt: Prompt) -> None:
        keeping.store.prefixes.clear()
        tokens(keeping, prompt, 1)

    for prompt in prompts[:2]:
        tokens(warm, prompt, 1)
        tokens(model, prompt, 1)
    times = in_turns(
        prompts[2:],
        cold=lambda prompt: tokens(model, prompt, 1),
        keeping=emptied_keeping,
        warm=lambda prompt: tokens(warm, prompt, 1),
    )
    saved = warm.statistics.saved_tokens // len(prompts[2:])
    count = COMPARED_TOKENS
    equal = [tokens(model, p, count) == tokens(warm, p, count) for p in prompts[2:]]
    return {**summary(times), "saved tokens": saved, "equal outputs": f"{sum(equal)}/{len(equal)}"}


def in_turns(
    prompts: Sequence[Prompt], **ways: Callable[[Prompt], object]
) -> dict[str, list[Taken]]:
    """What each way took for each prompt."""
    times: dict[str, list[Taken]] = {name: [] for name in ways}
    for prompt in prompts:
        for name, way in ways.items():
            began = Taken.now()
            way(prompt)
            times[name].append(Taken.now() - began)
    return times


class Taken(NamedTuple):
    """Seconds by the clock, and of the process."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> Taken:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Taken) -> Taken:
        return Taken(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


def summary(times: dict[str, list[Taken]]) -> dict[str, float]:
    cold, keeping, warm = (
        [taken.seconds for taken in times[name]] for name in ("cold", "keeping", "warm")
    )
    pairs = zip(times["keeping"], times["cold"], strict=True)
    return {
        "cold ms": 1000 * median(cold),
        "keeping ms": 1000 * median(keeping),
        "warm ms": 1000 * median(warm),
        "keeping / cold": median(k / c for k, c in zip(keeping, cold, strict=True)),
        "keeping / cold, CPU": median(k.cpu_seconds / c.cpu_seconds for k, c in pairs),
        "cold / warm": median(c / w for c, w in zip(cold, warm, strict=True)),
    }


if __name__ == "__main__":
    sys.exit(main())
