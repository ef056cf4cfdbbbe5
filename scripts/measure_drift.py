"""What it costs to calibrate on one kind of text and to read another.

    python -m scripts.measure_drift MODEL --kinds books=books/ stories=stories.txt \
        docs=python-docs --ratios 4 8 --letters 60 --json drift.json

and at laptop size, in about a minute:

    python -m scripts.measure_drift MODEL --kinds docs=python-docs a=one.txt --ratios 8 --samples 8

A kind is a text file, a directory of text files, a .jsonl of conversations, `python-docs`,
`python-code`, or several of these with `+` between them, in turn. Its first half calibrates, its
second half is scored, through live caches. For every amount of calibration text, ratio and setting
the table has a row per pair of kinds: how much the perplexity grows over the source's, with the
standard error of the paired differences between windows. With
`--letters N` a line of N random letters is shown and repeated at once, and the share of the
repeated letters that the model predicts is printed beside it; no calibration text has such lines.
What comes out is a table and, as last line, one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cacheshrink_hybrid import CompressionConfig, convert_model, plan_of
from cacheshrink_hybrid.conversion.statistics import SharedStatistics
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.evaluation.paired import mean_with_error, paired_difference
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import (
    cached_logits,
    common_arguments,
    environment,
    progress,
    quiet,
    report,
    spread,
    window_losses,
)
from .text_kinds import SOURCES, TextKind

CUE_LETTERS = 4
"""Repeated letters that say which line returns, and do not count."""
CODED = {"exact_sinks": 0, "exact_window": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "coded": CODED,
    "exact 4+32": {"exact_sinks": 4, "exact_window": 32},
    "exact 4+64": {"exact_sinks": 4, "exact_window": 64},
    "activation metric": {"metric": "activation", **CODED},
    "drawn labels": {"fisher_labels": "model"},
}
CALIBRATED_BY = ("metric", "fisher_labels")
"""Settings that change what calibration gathers; the others share it."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _check_names(args)
    torch.set_num_threads(args.threads)
    quiet()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    halves = {
        kind.name: kind.windows(
            tokenizer,
            seen=max(args.samples),
            scored=args.scored or max(args.samples),
            max_length=args.max_length,
        )
        for kind in args.kinds
    }
    letters = letter_lines(tokenizer, args.letters, max(args.samples), args.seed)
    base = {name: window_losses(model, held_out, 64) for name, (_, held_out) in halves.items()}
    base_recall = repeated(model, letters)
    records = []
    for calibrated_on, samples in itertools.product(args.calibrated_on or halves, args.samples):
        seen = spread(halves[calibrated_on][0], samples)
        statistics: dict[tuple[str, ...], SharedStatistics] = {}
        for setting, ratio in itertools.product(args.settings, args.ratios):
            config = CompressionConfig(compression_ratio=ratio, **SETTINGS[setting])
            by = {name: getattr(config, name) for name in CALIBRATED_BY}
            gathered = tuple(by.values())
            if gathered not in statistics:
                progress(f"calibrate on {len(seen)} windows of {calibrated_on} {gathered}")
                statistics[gathered] = SharedStatistics(model, CompressionConfig(**by), seen)
            converted = copy.deepcopy(model)
            convert_model(converted, config, statistics=statistics[gathered].serving(config))
            records += [
                {
                    "setting": setting,
                    "ratio": ratio,
                    "bytes_per_token": plan_of(converted).bytes_per_token,
                    "calibrated_on": calibrated_on,
                    "samples": len(seen),
                    "read": name,
                    **growth(base[name], window_losses(converted, held_out, 64)),
                    "letters": repeated(converted, letters),
                }
                for name, (_, held_out) in halves.items()
            ]
    result = {
        "program": "measure_drift",
        "environment": environment(),
        "settings": {
            **{k: v for k, v in vars(args).items() if k != "json"},
            "model": Path(args.model).name,
            "kinds": [(kind.name, kind.described) for kind in args.kinds],
        },
        "source": {
            "perplexity": {
                name: growth(losses, losses)["perplexity"] for name, losses in base.items()
            },
            "letters": base_recall,
        },
        "records": records,
    }
    print(f"source: {result['source']}")
    print(format_table([table_row(record) for record in records]))
    report(result, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.measure_drift",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="directory of a source model")
    parser.add_argument(
        "--kinds",
        nargs="+",
        type=TextKind.parse,
        required=True,
        metavar="NAME=SOURCE",
        help=f"a source is {SOURCES}",
    )
    parser.add_argument("--calibrated-on", nargs="+", metavar="NAME", help="default: every kind")
    parser.add_argument("--ratios", nargs="+", type=float, default=[4.0, 8.0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["default"])
    parser.add_argument(
        "--samples", nargs="+", type=int, default=[48], help="windows to calibrate on"
    )
    parser.add_argument("--scored", type=int, help="windows to score; default: as many")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--letters", type=int, default=0, metavar="N")
    common_arguments(parser)
    return parser


def _check_names(args: argparse.Namespace) -> None:
    known = {kind.name for kind in args.kinds}
    unknown = [name for name in args.calibrated_on or () if name not in known]
    if unknown:
        raise ConfigError(
            f"--calibrated-on names {', '.join(unknown)}; the kinds are {', '.join(sorted(known))}"
        )


def growth(base: list[list[float]], found: list[list[float]]) -> dict[str, float | None]:
    """Perplexity, and what it is more than the base's in percent, with the standard error of the
    paired differences; None for one window.

    Args:
        base, found: losses in nats of the tokens of each window, of the source and of a conversion.
    """
    mean, _ = mean_with_error(found)
    more, error = paired_difference(base, found)
    return {
        "perplexity": math.exp(mean),
        "increase_percent": 100 * math.expm1(more),
        "standard_error": None if error is None else 100 * math.exp(more) * error,
    }


def letter_lines(tokenizer, num_letters: int, number: int, seed: int) -> list[Tensor]:
    """Token ids (1, T) of lines of random letters, each shown twice; none for no letters."""
    generator = random.Random(seed)
    lines = []
    for _ in range(number if num_letters else 0):
        line = "".join(generator.choices(string.ascii_lowercase, k=num_letters)) + "\n"
        shown, both = tokenizer(line).input_ids, tokenizer(line + line).input_ids
        lines.append(torch.tensor([both[: 2 * len(shown)]]))
    return lines


@torch.inference_mode()
def repeated(model: PreTrainedModel, lines: Sequence[Tensor]) -> float | None:
    """Share of a line's tokens that are predicted when it returns, after the first few."""
    if not lines:
        return None
    right = total = 0
    for ids in lines:
        start = ids.shape[1] // 2 + CUE_LETTERS
        logits, _ = cached_logits(model, ids[:, :-1], 64)
        found = logits.argmax(-1)[0, start - 1 :]
        right += int((found == ids[0, start:]).sum())
        total += len(found)
    return right / total


def table_row(record: dict[str, Any]) -> dict[str, Any]:
    row = {
        "setting": record["setting"],
        "ratio": record["ratio"],
        "B/token": record["bytes_per_token"],
        "calibrated on": f"{record['samples']} x {record['calibrated_on']}",
        "read": record["read"],
        "ppl": record["perplexity"],
        "ppl +%": record["increase_percent"],
        "+-": record["standard_error"],
    }
    return row if record["letters"] is None else row | {"letters": record["letters"]}


if __name__ == "__main__":
    sys.exit(main())
