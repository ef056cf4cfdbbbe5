"""Compare ways of keeping keys and values smaller on one model: perplexity against bytes.

    python -m scripts.real_model
    python -m scripts.compare_peers MODEL --text wiki.test.txt --calibration wiki.valid.txt \
        --gguf MODEL.gguf --json out/peers.json

and at laptop size, in about a minute beyond the calibration:

    python -m scripts.compare_peers MODEL --text wiki.test.txt --calibration wiki.valid.txt \
        --windows 1 --methods "ours 4x" "int4*" --calibration-samples 8 --json out/peers.json

Text is read in windows of 1024 tokens, evenly spread over it, in chunks of 128 on top of a live
cache; every token but a window's first is scored. The increase of perplexity comes with the
standard error of the paired differences between windows. Bytes per token are those of the cache's
own tensors, scales and tokens that are kept exact included, as in a 16-bit model.

How the newest tokens are read matters more than any format, so each method says it: `read`
(everything read back), `raw` (the chunk's own tokens exact, without their bytes), `w32` (the last
32 tokens exact, and counted), `first` (the first chunk exact), `exact` (what our default settings
keep exact, counted).

Peers whose package is not installed are named with the command that installs it; the versions are
pinned in `scripts/peers/`. A run that was stopped goes on where it was; ours are measured anew on
another commit. Beside the JSON file come a table and a picture.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacheshrink_hybrid.checkpoint.source_model import load_source
from cacheshrink_hybrid.errors import CacheShrinkError, ConfigError
from cacheshrink_hybrid.writing import write_text

from .benchmark import common_arguments, environment, progress, quiet, report
from .figures.peers import methods_table
from .peers import llama_cpp, ours
from .peers.lineup import all_methods, chosen, installed
from .peers.measuring import compared, measured, spread_windows
from .peers.method import Method, Subject
from .peers.picture import plot_front
from .peers.results import Results


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    torch.set_num_threads(given.threads)
    quiet()
    try:
        methods = chosen(all_methods(given.ratios), given.methods)
        run(given, methods)
    except CacheShrinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="methods:\n" + "\n".join(f"  {method.name}" for method in all_methods(ours.RATIOS)),
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder or GGUF file")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="what is scored")
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="FILE", help="what methods learn from"
    )
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the model for llama.cpp")
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--ratios", nargs="+", type=_ratio, default=list(ours.RATIOS))
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--window-length", type=int, default=1024, help="tokens")
    parser.add_argument("--chunk-length", type=int, default=128, help="tokens per forward pass")
    parser.add_argument("--calibration-samples", type=int, default=64)
    parser.add_argument("--calibration-length", type=int, default=512, help="tokens")
    parser.add_argument("--tuning-steps", type=int, default=300, help="of what is fine-tuned")
    parser.add_argument("--again", action="store_true", help="measure anew what there is already")
    common_arguments(parser)
    parser.set_defaults(json=Path("out/peers.json"))
    return parser


def _ratio(text: str) -> float:
    ratio = float(text)
    if not ratio >= 1:
        raise argparse.ArgumentTypeError(f"{text} is no ratio; give 1 or more")
    return ratio


def run(given: argparse.Namespace, methods: Sequence[Method]) -> None:
    texts = {name: _text(getattr(given, name)) for name in ("text", "calibration")}
    results = Results(given.json, _settings(given, texts), environment())
    missing = [m for m in methods if given.again or not _is_done(results, m)]
    if missing:
        model, tokenizer = load_source(given.model, dtype=torch.float32)
        windows = _windows(given, tokenizer(texts["text"], verbose=False).input_ids)
        subject = Subject(
            folder=given.model,
            model=model,
            tokenizer=tokenizer,
            calibration=_pieces(texts["calibration"], given.calibration_samples),
            calibration_length=given.calibration_length,
            gguf=given.gguf,
            window_length=given.window_length,
            tuning_steps=given.tuning_steps,
            threads=given.threads,
            seed=given.seed,
        )
    for method in missing:
        progress(method.name)
        record: dict[str, Any] = {
            "method": method.name,
            "family": method.family,
            "convention": method.convention,
            "base": method.base,
            "commit": results.environment["commit"],
        }
        record |= _measure(method, subject, windows, given.chunk_length)
        if "losses" in record:
            base = record if method.name == method.base else results.records[method.base]
            record |= compared(record, base)
        results.add(record)
        gc.collect()  # of a converted model, before there is the next one
    table = methods_table([results.summary()])
    print(table)
    write_text(given.json.with_suffix(".md"), table + "\n")
    plot_front(
        given.json.with_suffix(".png"),
        [record for record in results.records.values() if "losses" in record],
        f"{given.model.stem} on {given.text.parent.name}, {given.windows} windows",
    )
    report(results.summary(), None)


def _measure(
    method: Method, subject: Subject, windows: Sequence[Tensor], chunk_length: int
) -> dict[str, Any]:
    """What a method measures, or why it does not."""
    found = installed(method)
    if method.package is not None and found is None:
        return {"left_out": f"not installed: pip install {method.package}"}
    if method.package == llama_cpp.PACKAGE and subject.gguf is None:
        return {"left_out": "no GGUF file: give --gguf"}
    started = time.perf_counter()
    begin = method.start(subject)
    prepared = time.perf_counter()
    record = measured(begin, windows, chunk_length)
    return {
        "package": found,
        **record,
        "prepare_seconds": round(prepared - started, 1),
        "seconds": round(time.perf_counter() - prepared, 1),
    }


def _is_done(results: Results, method: Method) -> bool:
    """Whether a method has been measured, ours on this very commit."""
    record = results.records.get(method.name)
    if record is None or "losses" not in record:
        return False
    here = results.environment
    return method.family != ours.FAMILY or (
        record["commit"] == here["commit"] and not here["modified"]
    )


def _settings(given: argparse.Namespace, texts: dict[str, str]) -> dict[str, Any]:
    """What results depend on, without paths of this machine."""
    return {
        "model": given.model.resolve().stem,
        "text": given.text.name,
        "calibration": given.calibration.name,
        "text_digests": [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts.values()],
        "windows": given.windows,
        "window_length": given.window_length,
        "chunk_length": given.chunk_length,
        "calibration_samples": given.calibration_samples,
        "calibration_length": given.calibration_length,
        "tuning_steps": given.tuning_steps,
        "seed": given.seed,
    }


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); give a text file in UTF-8") from error


def _pieces(text: str, number: int) -> list[str]:
    """A text in so many pieces of equal length."""
    length = len(text) // number
    return [text[i * length : (i + 1) * length] for i in range(number)]


def _windows(given: argparse.Namespace, ids: list[int]) -> list[Tensor]:
    least = given.windows * given.window_length
    if len(ids) < least:
        raise ConfigError(
            f"{given.text} has {len(ids)} tokens, and {given.windows} windows of "
            f"{given.window_length} need {least}; give a longer text, or fewer --windows"
        )
    if given.window_length % (2 * given.chunk_length):
        raise ConfigError(
            f"--window-length={given.window_length} is no even number of chunks of "
            f"{given.chunk_length}, so bytes at its half would not be seen; give a multiple of "
            f"{2 * given.chunk_length}"
        )
    return spread_windows(ids, given.windows, given.window_length)


if __name__ == "__main__":
    sys.exit(main())
