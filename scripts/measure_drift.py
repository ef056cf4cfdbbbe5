"""What it costs to calibrate on one kind of text and to read another.

    python -m scripts.measure_drift MODEL --kinds books=books/ stories=stories.txt \
        docs=python-docs --ratios 4 8 --letters 60 --json drift.json

and at laptop size, in about a minute:

    python -m scripts.measure_drift MODEL --kinds docs=python-docs a=one.txt --ratios 8 --samples 8

A kind is a text file (documents separated by `<|endoftext|>` or blank lines), a directory of text
files, or `python-docs`. Its first half calibrates, its second half is scored, through live caches.
For every ratio and setting the table has a row per pair of kinds: how much the perplexity grows
over the source's. With `--letters N` a line of N random letters is shown and repeated at once, and
the share of the repeated letters that the model predicts is printed beside it; no calibration text
has such lines. What comes out is a table and, as last line, one JSON object.
"""

from __future__ import annotations

import argparse
import copy
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
from cacheshrink_hybrid.calibration.text import load_texts
from cacheshrink_hybrid.conversion.statistics import SharedStatistics
from cacheshrink_hybrid.demo.corpus import PYTHON_DOCS
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import (
    DOCUMENT_SEPARATOR,
    cached_logits,
    common_arguments,
    environment,
    perplexity,
    progress,
    quiet,
    read_documents,
    report,
    spread,
)

CUE_LETTERS = 4
"""Repeated letters that say which line returns, and do not count."""
CODED = {"exact_sinks": 0, "exact_window": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "coded": CODED,
    "exact 4+32": {"exact_sinks": 4, "exact_window": 32},
    "exact 4+64": {"exact_sinks": 4, "exact_window": 64},
    "activation metric": {"metric": "activation", **CODED},
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    quiet()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    halves = {name: windows_of(source, tokenizer, args) for name, source in args.kinds}
    letters = letter_lines(tokenizer, args.letters, args.samples, args.seed)
    base = {name: perplexity(model, held_out, 64)[0] for name, (_, held_out) in halves.items()}
    base_recall = repeated(model, letters)
    records = []
    for calibrated_on, (seen, _) in halves.items():
        statistics: dict[str, SharedStatistics] = {}
        for setting in args.settings:
            values = SETTINGS[setting]
            metric = values.get("metric", "fisher")
            if metric not in statistics:
                progress(f"calibrate on {calibrated_on} ({metric})")
                statistics[metric] = SharedStatistics(model, CompressionConfig(metric=metric), seen)
            for ratio in args.ratios:
                converted = copy.deepcopy(model)
                config = CompressionConfig(compression_ratio=ratio, **values)
                convert_model(converted, config, statistics=statistics[metric].serving(config))
                records += [
                    {
                        "setting": setting,
                        "ratio": ratio,
                        "bytes_per_token": plan_of(converted).bytes_per_token,
                        "calibrated_on": calibrated_on,
                        "read": name,
                        "perplexity": found,
                        "increase_percent": 100 * (found / base[name] - 1),
                        "letters": repeated(converted, letters),
                    }
                    for name, (_, held_out) in halves.items()
                    for found in [perplexity(converted, held_out, 64)[0]]
                ]
    result = {
        "program": "measure_drift",
        "environment": environment(),
        "settings": {
            **{k: v for k, v in vars(args).items() if k != "json"},
            "model": Path(args.model).name,
            "kinds": [(name, Path(source).name) for name, source in args.kinds],
        },
        "source": {"perplexity": base, "letters": base_recall},
        "records": records,
    }
    print(f"source: perplexity {base}, letters {base_recall}")
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
    parser.add_argument("--kinds", nargs="+", type=_kind, required=True, metavar="NAME=SOURCE")
    parser.add_argument("--ratios", nargs="+", type=float, default=[4.0, 8.0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["coded"])
    parser.add_argument("--samples", type=int, default=48, help="windows of each half")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--letters", type=int, default=0, metavar="N")
    common_arguments(parser)
    return parser


def _kind(text: str) -> tuple[str, str]:
    name, separator, source = text.partition("=")
    if not separator or not name or not source:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SOURCE")
    return name, source


def windows_of(
    source: str, tokenizer, args: argparse.Namespace
) -> tuple[list[Tensor], list[Tensor]]:
    """Windows (1, T) for calibration and for scoring, from the two halves of a kind of text."""
    if source == PYTHON_DOCS:
        halves = [
            load_texts(None, PYTHON_DOCS, None, num_samples=args.samples, split=split)
            for split in ("train", "test")
        ]
    else:
        path = Path(source)
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        documents = [text for file in files for text in long_documents(file, args.max_length)]
        if len(documents) < 2:
            raise ConfigError(
                f"{source} has {len(documents)} documents; two halves need at least 2"
            )
        middle = len(documents) // 2
        halves = [
            spread(documents[:middle], args.samples),
            spread(documents[middle:], args.samples),
        ]
    seen, held_out = (
        [torch.tensor([tokenizer(text).input_ids[: args.max_length]]) for text in texts]
        for texts in halves
    )
    return seen, held_out


def long_documents(path: Path, max_length: int) -> list[str]:
    """Documents of a file; paragraphs are joined, and long documents cut at the ends of lines, so
    that each fills a window of a tokenizer whose tokens have up to four characters."""
    text = path.read_text(encoding="utf-8")
    if DOCUMENT_SEPARATOR in text:
        return read_documents(path)
    documents = [""]
    for line in text.splitlines(keepends=True):
        if len(documents[-1]) >= 4 * max_length:
            documents.append("")
        documents[-1] += line
    return documents


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
        "calibrated on": record["calibrated_on"],
        "read": record["read"],
        "ppl": record["perplexity"],
        "ppl +%": record["increase_percent"],
    }
    return row if record["letters"] is None else row | {"letters": record["letters"]}


if __name__ == "__main__":
    sys.exit(main())
