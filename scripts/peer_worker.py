"""Measure the peer package `cacheshrink` on one checkpoint, in an environment of its own.

    python -m scripts.peer_worker JOB.json

Started by `scripts/compare_cacheshrink.py`, which writes the job; not meant to be run by hand.
Uses the peer's public functions only, as it ships them: eager attention, because other attention
functions hand it masks that it cannot use, and `low_cpu_mem_usage=False`, because its default
loader leaves the rotary frequencies of Llama models unset. What comes out is one line of JSON:
versions and one record per conversion, the first of them for the source model.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cacheshrink import convert_to_mla, load_mla_model, save_mla_model
from transformers import PreTrainedModel

from scripts.benchmark import Job, Package, environment, measure_package, quiet


def convert(
    checkpoint: str, method: str, ratio: float, texts: Sequence[str], max_length: int
) -> tuple[PreTrainedModel, Any]:
    model, tokenizer = convert_to_mla(
        checkpoint,
        compression_ratio=ratio,
        compression_method=method,
        calibration_texts=list(texts),
        max_calibration_length=max_length,
        trust_remote_code=False,
        verbose=False,
    )
    model.set_attn_implementation("eager")
    return model, tokenizer


def save(model: PreTrainedModel, tokenizer: Any, directory: Path) -> None:
    save_mla_model(model, tokenizer, str(directory))


def load(directory: Path) -> PreTrainedModel:
    model, _ = load_mla_model(str(directory), low_cpu_mem_usage=False)
    model.set_attn_implementation("eager")
    return model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    (path,) = sys.argv[1:] if argv is None else argv
    quiet()
    job = Job(**json.loads(Path(path).read_text(encoding="utf-8")))
    package = Package(name="cacheshrink", convert=convert, save=save, load=load)
    # The peer prints while it works, and standard output is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        records = measure_package(job, package)
    result = {
        "package": f"cacheshrink {version('cacheshrink')}",
        "environment": environment(),
        "records": records,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
