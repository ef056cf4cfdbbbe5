"""What keys and values lose when groups of heads have latents of their own, at equal bytes.

    python -m scripts.measure_head_groups MODEL --text FILE --groups 1 3 --ratios 4 8

Calibrates once, and plans joint latents for every number of groups and every ratio: bytes per token
are those that as many devices hold together, and losses those of keys and values on held-out
calibration text, predicted by second moments, as `convert` prints them. Exact tokens, which spare a
part of it, are left out. Last comes the result as one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cacheshrink_hybrid.calibration.amount import positions_of
from cacheshrink_hybrid.calibration.text import calibration_sequences, load_texts
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.planning import plan_model
from cacheshrink_hybrid.conversion.statistics import compressed_parts, model_statistics
from cacheshrink_hybrid.errors import CacheShrinkError
from cacheshrink_hybrid.families import model_spec

from .benchmark import common_arguments, environment, report
from .figures.quality import lost_by_groups


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        records = _records(given)
    except CacheShrinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unused = ("json", "threads")
    settings = {key: value for key, value in vars(given).items() if key not in unused}
    settings |= {"model": Path(given.model).name, "text": given.text.name}
    result = {"environment": environment(), "settings": settings, "records": records}
    print(lost_by_groups([result]))
    report(result, given.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.measure_head_groups",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="to calibrate on")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2], help="of heads")
    parser.add_argument("--ratios", type=float, nargs="+", default=[4.0, 8.0])
    parser.add_argument("--calibration-samples", type=int, default=32, help="sequences")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a sequence")
    common_arguments(parser)
    return parser


def _records(given: argparse.Namespace) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    configs = [
        CompressionConfig(
            compression_ratio=ratio,
            objective="memory",
            head_groups=groups,
            num_calibration_samples=given.calibration_samples,
            max_calibration_length=given.max_length,
            seed=given.seed,
        )
        for ratio in given.ratios
        for groups in given.groups
    ]
    texts = load_texts(None, str(given.text), num_samples=given.calibration_samples)
    sequences = calibration_sequences(tokenizer, texts, configs[0])
    statistics = model_statistics(model, configs[0], sequences)
    spec = model_spec(model.config)
    parts = compressed_parts(model, spec, configs[0])
    records = []
    for config in configs:
        plan = plan_model(spec, parts, statistics, config, positions_of(model.config)).plan
        record = {
            "ratio": config.compression_ratio,
            "groups": config.head_groups,
            "bytes per token": config.head_groups * plan.bytes_on_each(config.head_groups),
            "held-out loss": plan.held_out_loss,
        }
        print(record, flush=True)
        records.append(record)
    return records


if __name__ == "__main__":
    sys.exit(main())
