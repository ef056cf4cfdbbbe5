"""The program `prefix`: strategies of prefix reuse on the same requests and bytes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..demo import model_path
from ..engine import LLM
from ..errors import ConfigError
from ..evaluation.allocation.allocator import Sizes
from ..evaluation.prefixes.simulator import distinct_tokens, simulate
from ..evaluation.prefixes.text_workloads import read_texts, text_workload
from ..evaluation.prefixes.workloads import PromptRequest, read_workload, synthetic_workload
from ..evaluation.reference_models import REFERENCE_MODELS
from ..pool.prefixes.prefill_cost import PrefillCost
from ..text_ids import text_ids
from ..text_tables import format_table
from ..writing import write_text
from .parsers.prefix import WIDTHS
from .plots import short_name
from .prefix_plots import plot_requests, plot_savings
from .report import write_json

OURS = ("learned", "learned")
OWN_PLACEMENTS, OWN_EVICTIONS = ("grid", "learned"), ("learned",)
MEASURED_TOKENS, PIECE_TOKENS = 2048, 256
CACHE_MEMORY = "256MiB"

Row = dict[str, Any]


def run(given: argparse.Namespace) -> int:
    texts = {name: read_texts(name) for name in given.texts}  # before anything takes time
    workloads = dict(_workloads(given))
    measured = given.measure or str(model_path())
    llm = LLM(measured, cache_memory=CACHE_MEMORY, prefix_cache=False)
    workloads |= {
        Path(name).stem: text_workload(
            found, _encoder(llm), given.requests, given.seed, beside=given.beside
        )
        for name, found in texts.items()
    }
    print(f"measuring the prefill of {measured}", flush=True)
    cost = measured_cost(llm)
    requests: list[Row] = []
    rows = list(_rows(given, workloads, cost, requests))
    for width in dict.fromkeys(row["width"] for row in rows):
        _print([row for row in rows if row["width"] == width], width)
    _write(given, rows, requests, about(given, measured, cost))
    return 0


def about(given: argparse.Namespace, measured: str, cost: PrefillCost) -> Row:
    """What a study was made of."""
    found: Row = {"program": "prefix", "model": given.model, "requests": given.requests}
    found |= {"seed": given.seed, "beside": given.beside, "measured": short_name(measured)}
    return found | {f"seconds of {n} tokens": cost.seconds(0, n) for n in (1000, 10000)}


def _write(
    given: argparse.Namespace, rows: Sequence[Row], requests: Sequence[Row], about: Row
) -> None:
    if given.json is not None:
        write_json(given.json, {**about, "rows": rows})
        print(f"rows: {given.json}")
    if given.requests_jsonl is not None:
        write_text(given.requests_jsonl, "".join(json.dumps(one) + "\n" for one in requests))
        print(f"requests: {given.requests_jsonl}")
    if given.plot is not None:
        plot_savings(given.plot, rows, OURS)
        print(f"plot: {given.plot}")
    if given.plot_requests is not None:
        plot_requests(given.plot_requests, rows, requests, OURS)
        print(f"plot: {given.plot_requests}")


def _encoder(llm: LLM) -> Callable[[str], list[int]]:
    tokenizer = llm.tokenizer
    if tokenizer is None:
        raise ConfigError("--texts need a tokenizer, and --measure has none; give another model")
    return lambda text: text_ids(tokenizer, text)


def measured_cost(llm: LLM) -> PrefillCost:
    """What pieces of a prompt take on this machine, the quicker of two times each."""
    runner = llm.runner
    longest = min(MEASURED_TOKENS, runner.max_tokens)
    pieces = [
        (begin, min(begin + PIECE_TOKENS, longest)) for begin in range(0, longest, PIECE_TOKENS)
    ]
    best = dict.fromkeys(pieces, float("inf"))
    for name in ("first", "second"):
        runner.store.create(name)
        for begin, end in pieces:
            runner.store.reserve([name], end - begin)
            began = time.perf_counter()
            runner.prefill(name, [token % runner.config.vocab_size for token in range(begin, end)])
            best[begin, end] = min(best[begin, end], time.perf_counter() - began)
        runner.store.free(name)
    cost = PrefillCost()
    for (begin, end), seconds in best.items():
        cost.observe(begin, end, seconds)
    return cost


def _workloads(given: argparse.Namespace) -> Iterator[tuple[str, list[PromptRequest]]]:
    for name in given.workloads:
        yield name, synthetic_workload(name, given.requests, given.seed, beside=given.beside)
    for path in given.trace:
        yield Path(path).stem, read_workload(path, given.requests)


def _rows(
    given: argparse.Namespace,
    workloads: Mapping[str, list[PromptRequest]],
    cost: PrefillCost,
    requests: list[Row],
) -> Iterator[Row]:
    """A row for every workload and strategy; what became of its requests is added to `requests`."""
    (model,) = (model for model in REFERENCE_MODELS if model.name == given.model)
    token_bytes = Sizes(model.layer_rows(), model.state_rows("bf16")).token_bytes
    cells = [
        (width, share, placement, eviction)
        for width in given.widths
        for share in given.budgets
        for placement in given.placements
        for eviction in given.evictions
    ]
    with tqdm(total=len(cells) * len(workloads), desc="prefix", unit="run") as bar:
        for name, workload in workloads.items():
            whole = distinct_tokens(workload) * token_bytes
            for width, share, placement, eviction in cells:
                ratio, codec = WIDTHS[width]
                layout = Sizes(model.layer_rows(ratio), model.state_rows(codec)).layout
                budget = int(share * whole)
                found = simulate(
                    layout, workload, budget, placement=placement, eviction=eviction, cost=cost
                )
                strategy = {
                    "workload": name,
                    "width": width,
                    "placement": placement,
                    "eviction": eviction,
                    "budget_share": share,
                    "budget_bytes": budget,
                }
                if given.requests_jsonl is not None or given.plot_requests is not None:
                    requests += [{**strategy, **one.to_dict()} for one in found.served]
                yield {**strategy, **found.to_dict()}
                bar.update()


def _print(rows: Sequence[Row], width: str) -> None:
    cells = {(r["workload"], r["budget_share"]): r["budget_bytes"] for r in rows}
    for (workload, share), budget in cells.items():
        here = [r for r in rows if (r["workload"], r["budget_share"]) == (workload, share)]
        table: dict[str, Row] = {}
        for row in here:
            line = table.setdefault(row["placement"], {"placement": row["placement"]})
            line[row["eviction"]] = f"{100 * row['saved_share']:.1f}"
        print(f"\n{workload}, {width}, {budget / 2**20:,.0f} MiB: % of prompt tokens saved")
        print(format_table(list(table.values())))
    compared = [line for key in cells for line in _comparison(rows, *key)]
    if compared:
        print(f"\n{' / '.join(OURS)} beside the best of the others, {width}")
        print(format_table(compared))


def _comparison(rows: Sequence[Row], workload: str, share: float) -> Iterator[Row]:
    """Ours beside the best of the others, and of those that were published."""
    here = [r for r in rows if (r["workload"], r["budget_share"]) == (workload, share)]
    ours = next((r for r in here if (r["placement"], r["eviction"]) == OURS), None)
    others = [r for r in here if r is not ours]
    if ours is None or not others:
        return
    line: Row = {"workload": workload, "budget": share, "ours": _percent(ours)}
    line["best other"] = _named(best_of(others))
    published = [r for r in others if is_published(r)]
    if published:
        best = best_of(published)
        line["best published"] = _named(best)
        line["ratio"] = f"{ours['saved_tokens'] / max(1, best['saved_tokens']):.2f}"
    yield line


def is_published(row: Row) -> bool:
    """Whether a strategy is made of parts that others have described."""
    return row["placement"] not in OWN_PLACEMENTS and row["eviction"] not in OWN_EVICTIONS


def best_of(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row["saved_share"])


def _percent(row: Row) -> str:
    return f"{100 * row['saved_share']:.1f}"


def _named(row: Row) -> str:
    return f"{_percent(row)} ({row['placement']}, {row['eviction']})"
