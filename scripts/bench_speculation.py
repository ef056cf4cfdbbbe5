"""What drafts by look-up gain: one request at a time, with and without them.

    python -m scripts.bench_speculation MODEL --json speculation.json

MODEL is a converted directory or a source. Three tasks are measured: `edit`, a chat that asks for
code with one name exchanged; `quote`, one that asks for a passage of a text; and `free`, one that
asks for a story, of which little has been said before. A model without a chat template goes on with
texts: `quote` is a passage and its beginning once more, `free` a passage by itself. Answers are
greedy and of --max-tokens.
Each round runs the engine without drafts and with each number of them, one after the other in one
process; ratios are taken within a round, and the median of the rounds is shown, with the share of
drafts that stayed and how many answers are the same. Where they are not, the table says at which
token they part: two tokens were then as likely but for rounding.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cacheshrink_hybrid.chat_template import template_text
from cacheshrink_hybrid.demo.corpus import held_out_text
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.named_model import load_named
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import environment

CODE = inspect.getsource(urllib.parse.urldefrag) + inspect.getsource(urllib.parse.quote_from_bytes)


Prompt = str | Sequence[int]


def tasks(num_characters: int, chat: Callable[[str], Prompt] | None) -> dict[str, Prompt]:
    """Prompts by name.

    Args:
        num_characters: of the text to quote from.
        chat: makes a prompt of a question; None for a model that only goes on with texts.
    """
    passage = held_out_text()[0][:num_characters]
    if chat is None:
        again = passage[: num_characters // 4]
        return {"quote": f"{passage}\n\n{again}", "free": passage}
    questions = {
        "edit": f"Rename the variable `bs` to `data` and write the whole code again:\n\n{CODE}",
        "quote": f"{passage}\n\nRepeat the text above, word by word.",
        "free": "Tell a story of a cat that learns to swim.",
    }
    return {name: chat(question) for name, question in questions.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[3, 5, 7], help="drafts of a step")
    parser.add_argument("--lookup", type=int, nargs=2, default=[2, 4], metavar=("MIN", "MAX"))
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--characters", type=int, default=2000, help="of the text to quote from")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of tasks (default: all)")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    model, tokenizer = load_named(given.model)
    engines = {0: _engine(model, tokenizer, None)}
    for number in given.tokens:
        least, most = given.lookup
        engines[number] = _engine(
            model,
            tokenizer,
            {
                "num_speculative_tokens": number,
                "prompt_lookup_min": least,
                "prompt_lookup_max": most,
            },
        )
    records = [
        record
        for name, prompt in tasks(given.characters, _chat(engines[0])).items()
        if given.only is None or name in given.only
        for record in _measured(engines, name, prompt, given)
    ]
    print(format_table(records))
    result = {
        "program": "bench_speculation",
        "environment": environment(),
        "model": Path(given.model).name,
        "lookup": given.lookup,
        "rounds": given.rounds,
        "records": records,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def _engine(model: Any, tokenizer: Any, config: dict[str, Any] | None) -> LLM:
    return LLM(
        model,
        tokenizer,
        cache_memory="256MiB",
        prefix_cache=False,
        speculative_config=config,
    )


def _chat(llm: LLM) -> Callable[[str], Prompt] | None:
    if not template_text(llm.tokenizer):
        return None
    return lambda question: llm.encoder.chat([{"role": "user", "content": question}])


def _measured(
    engines: dict[int, LLM], name: str, prompt: Prompt, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each number of drafts."""
    wish = SamplingParams(max_tokens=given.max_tokens, ignore_eos=True)
    seconds: dict[int, list[float]] = {number: [] for number in engines}
    tokens: dict[int, tuple[int, ...]] = {}
    counts: dict[int, tuple[int, int]] = {}
    for llm in engines.values():  # compiles and fills caches
        llm.generate(prompt, SamplingParams(max_tokens=8, ignore_eos=True))
    for _ in range(given.rounds):
        for number, llm in engines.items():
            before = llm.statistics.speculation
            taken, tokens[number] = _decoded(llm, prompt, wish)
            seconds[number].append(taken)
            after = llm.statistics.speculation
            counts[number] = (
                after.accepted_tokens - before.accepted_tokens,
                after.draft_tokens - before.draft_tokens,
            )
    records = []
    num_prompt = len(engines[0].generate(prompt, SamplingParams(max_tokens=1))[0].prompt_ids)
    for number in engines:
        ratios = [a / b for a, b in zip(seconds[0], seconds[number], strict=True)]
        accepted, drafted = counts[number]
        records.append(
            {
                "task": name,
                "prompt": num_prompt,
                "drafts": number,
                "tokens/s": (given.max_tokens - 1) / statistics.median(seconds[number]),
                "speed-up": statistics.median(ratios),
                "accepted": accepted / drafted if drafted else None,
                "parts at": _parting(tokens[0], tokens[number]),
            }
        )
    return records


def _decoded(llm: LLM, prompt: Prompt, wish: SamplingParams) -> tuple[float, tuple[int, ...]]:
    """Seconds from the first token to the last, and all of them."""
    stream = llm.stream(prompt, wish)
    tokens = next(stream).token_ids
    began = time.perf_counter()
    for output in stream:
        tokens = output.token_ids
    return time.perf_counter() - began, tokens


def _parting(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int | None:
    """The first token at which two answers differ; None for none."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)


if __name__ == "__main__":
    raise SystemExit(main())
