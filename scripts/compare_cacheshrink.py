"""Compare this package with its closest peer, `cacheshrink` 0.1.5, on the same models and texts.

    python -m scripts.compare_cacheshrink CHECKPOINT_DIR ... --text stories.txt --json compare.json

and at laptop size, in about a minute after the installation:

    python -m scripts.compare_cacheshrink CHECKPOINT_DIR --text stories.txt --ratios 2 --samples 8 \
        --calibration-samples 16 --repetitions 1 --threads 1

The peer runs in a virtual environment of its own, made here with the versions of constraints.txt
but for transformers (`--venv DIR` keeps it for the next time). Checkpoints are local directories of
Llama models; the text file holds documents separated by `<|endoftext|>` or blank lines. Calibration
takes documents of the first half, evaluation of the second half, evenly spread; each begins with
the tokenizer's first token and is cut at `--max-length` tokens. Measured for both packages by the
same code: the perplexity of tokens fed in chunks on top of a live cache, the bytes that the live
cache holds, the speed of decoding next to the source model in the same process (A B A B), and the
size on disk. With `--speed-contexts`, speed is measured also on a random Llama (hidden 512, 8
layers, 8 query and 4 KV heads of 64) at those context lengths.

Before anything is compared, both environments must give the source models the same perplexity, this
package's own evaluation must agree with the code used here, and ratio 1 must give the source's
logits. What comes out is a table and, as last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cacheshrink_hybrid import (
    __version__,
    convert_to_mla,
    load_mla_model,
    measure_perplexity,
    save_mla_model,
)
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import (
    CHECKOUT,
    IDENTITY_TOLERANCE,
    GateError,
    Job,
    Package,
    common_arguments,
    environment,
    measure_package,
    progress,
    quiet,
    read_documents,
    relative_difference,
    report,
    spread,
    token_windows,
)

PEER = "cacheshrink==0.1.5"
PEER_TRANSFORMERS = "transformers==5.23.0"
"""The last release that hands attention its cache by the name that the peer knows."""
AGREEMENT = 1e-4
"""Allowed relative difference of one source model's perplexity between environments."""
TABLE_COLUMNS = {
    "ppl": "perplexity",
    "ppl +%": "perplexity_increase_percent",
    "live B/token": "live_bytes_per_token",
    "checkpoint B": "checkpoint_bytes",
    "convert s": "convert_seconds",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    quiet()
    documents = read_documents(args.text)
    half = len(documents) // 2
    calibration = spread(documents[:half], args.calibration_samples)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        python = peer_environment(args.venv or scratch / "venv")
        blank = Job(
            checkpoint="",
            runs=[],
            calibration=calibration,
            evaluation=spread(documents[half:], args.samples),
            max_length=args.max_length,
            chunk_length=args.chunk_length,
            contexts=[args.max_length - args.num_new],
            num_new=args.num_new,
            repetitions=args.repetitions,
            threads=args.threads,
            seed=args.seed,
        )
        records: list[dict[str, Any]] = []
        peer_record: dict[str, Any] = {}
        for checkpoint in args.checkpoints:
            job = replace(blank, checkpoint=str(checkpoint.resolve()))
            check_ours(job)
            found, peer_record = compare(job, args.ratios, args, python, scratch)
            records += found
        if args.speed_contexts:
            job = replace(
                blank,
                checkpoint=str(random_llama(args.checkpoints[0], scratch / "random-llama-512")),
                calibration=calibration[:32],
                evaluation=[],
                contexts=args.speed_contexts,
            )
            found, peer_record = compare(job, args.ratios[:1], args, python, scratch)
            records += found
    result = {
        "program": "compare_cacheshrink",
        "ours": f"cacheshrink_hybrid {__version__}",
        "peer": peer_record["package"],
        "environment": environment(),
        "peer_environment": peer_record["environment"],
        "settings": settings(args, len(documents)),
        "records": records,
    }
    print(json.dumps(result["environment"], indent=2))
    print(format_table([table_row(record) for record in records]))
    report(result, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_cacheshrink",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="local checkpoint directories")
    parser.add_argument("--text", type=Path, required=True, help="text file with documents")
    parser.add_argument("--ratios", nargs="+", type=float, default=[2.0, 4.0])
    parser.add_argument(
        "--methods",
        nargs="*",
        default=["auto:auto", "auto:16", "separate:16", "xkv:16"],
        metavar="METHOD[:BITS]",
        help="this package's methods, with a setting of cache_bits if not its default",
    )
    parser.add_argument("--peer-methods", nargs="*", default=["auto", "separate", "joint"])
    parser.add_argument("--max-length", type=int, default=240, help="tokens of each document")
    parser.add_argument("--samples", type=int, default=100, help="documents to evaluate on")
    parser.add_argument("--calibration-samples", type=int, default=200)
    parser.add_argument("--chunk-length", type=int, default=64, help="tokens per forward pass")
    parser.add_argument("--num-new", type=int, default=32, help="tokens decoded for timing")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--speed-contexts", nargs="*", type=int, default=[])
    parser.add_argument("--venv", type=Path, help="keep the peer's environment in this directory")
    common_arguments(parser)
    return parser


def settings(args: argparse.Namespace, num_documents: int) -> dict[str, Any]:
    """The arguments that decide the result, without paths of this machine."""
    values = {k: v for k, v in vars(args).items() if k not in ("json", "venv")}
    values["checkpoints"] = [path.resolve().name for path in args.checkpoints]
    values["text"] = args.text.name
    return values | {"documents": num_documents}


def peer_environment(directory: Path) -> Path:
    """Python of a virtual environment with the peer in it, made if it is not there."""
    python = directory.resolve() / "bin" / "python"
    wanted = [pin.split("==") for pin in (PEER, PEER_TRANSFORMERS)]
    names = [name for name, _ in wanted]
    ask = f"from importlib.metadata import version; print(*map(version, {names}))"
    if python.exists():
        done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
        if done.stdout.split() == [version for _, version in wanted]:
            return python
    progress(f"installing {PEER} into {directory}")
    pins = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [pin for pin in pins if not pin.startswith("transformers==")]
    install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join([*pins, PEER_TRANSFORMERS]) + "\n", encoding="utf-8")
    # torch first and pinned: asked for by another package it would bring its newest CUDA build.
    torch_pin = next(pin for pin in pins if pin.startswith("torch=="))
    subprocess.run([*install, torch_pin], check=True, stdout=sys.stderr)
    subprocess.run([*install, "-c", str(constraints), PEER], check=True, stdout=sys.stderr)
    return python


def check_ours(job: Job) -> None:
    """Ratio 1 gives the source's logits, and the package's perplexity is the one measured here.

    Raises:
        GateError: otherwise.
    """
    source = AutoModelForCausalLM.from_pretrained(job.checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    windows = token_windows(tokenizer, job.evaluation[:4], job.max_length)
    if any(int(ids[0, 0]) != tokenizer.bos_token_id for ids in windows):
        raise GateError(f"the tokenizer of {job.checkpoint} does not begin texts with its <s>")
    exact, _ = convert(job.checkpoint, "auto:16", 1.0, job.calibration[:8], job.max_length)
    difference = max(relative_difference(exact, source, ids, [1, 64]) for ids in windows)
    if difference > IDENTITY_TOLERANCE:
        raise GateError(f"ratio 1 changes the logits of {job.checkpoint} by {difference:.2e}")


def compare(
    job: Job, ratios: Sequence[float], args: argparse.Namespace, python: Path, scratch: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records of both packages on one checkpoint, and what the peer's worker said of itself."""
    package = Package(name="cacheshrink_hybrid", convert=convert, save=save, load=load)
    runs = [(method, ratio) for ratio in ratios for method in args.methods]
    ours = measure_package(replace(job, runs=runs), package)
    runs = [(method, ratio) for ratio in ratios for method in args.peer_methods]
    peer_record = run_peer(replace(job, runs=runs), python, scratch)
    peer = peer_record["records"]
    check_sources(job, ours[0], peer[0])
    name = Path(job.checkpoint).name
    records = []
    for package_name, found in (("cacheshrink_hybrid", ours), ("cacheshrink", peer[1:])):
        for record in found:
            if "perplexity" in record:
                record["perplexity_increase_percent"] = 100 * (
                    record["perplexity"] / ours[0]["perplexity"] - 1
                )
            is_source = record["method"] == "source"
            package_of = "-" if is_source else package_name
            records.append({"checkpoint": name, "package": package_of} | record)
    return records, peer_record


def run_peer(job: Job, python: Path, scratch: Path) -> dict[str, Any]:
    path = scratch / "job.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    threads = str(job.threads)
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(
        [str(python), "-m", "scripts.peer_worker", str(path)],
        cwd=CHECKOUT,
        env=os.environ | variables,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def check_sources(job: Job, ours: dict[str, Any], peer: dict[str, Any]) -> None:
    """The source model is the same in both environments and in this package's own evaluation.

    Raises:
        GateError: otherwise.
    """
    for key in ("num_tokens", "live_bytes_per_token"):
        if ours.get(key) != peer.get(key):
            raise GateError(f"{key} of the source: {ours.get(key)} here, {peer.get(key)} there")
    if not job.evaluation:
        return
    source = AutoModelForCausalLM.from_pretrained(job.checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    own = measure_perplexity(
        source,
        partial(tokenizer, truncation=True, max_length=job.max_length),
        job.evaluation,
        max_length=job.max_length,
        chunk_length=job.chunk_length,
    ).perplexity
    expected = ours["perplexity"]
    found = {"the peer's environment": peer["perplexity"], "measure_perplexity": own}
    for name, value in found.items():
        if abs(value / expected - 1) > AGREEMENT:
            raise GateError(f"source perplexity {expected} here, {value} by {name}")


def convert(
    checkpoint: str, method: str, ratio: float, texts: Sequence[str], max_length: int
) -> tuple[Any, Any]:
    """`method` is one of this package's, or `METHOD:BITS` with a setting of `cache_bits`."""
    method, _, bits = method.partition(":")
    chosen = {"cache_bits": int(bits) if bits.isdigit() else bits} if bits else {}
    return convert_to_mla(
        checkpoint,
        compression_ratio=ratio,
        compression_method=method,
        calibration_texts=texts,
        num_calibration_samples=len(texts),
        max_calibration_length=max_length,
        verbose=False,
        **chosen,
    )


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    save_mla_model(model, tokenizer, directory)


def load(directory: Path) -> Any:
    return load_mla_model(directory)[0]


def random_llama(tokenizer_from: Path, directory: Path) -> Path:
    """Write a random Llama for timing, with the tokenizer of another checkpoint."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1408,
        vocab_size=2048,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for file in tokenizer_from.glob("*token*"):
        shutil.copy(file, directory)
    return directory


def table_row(record: dict[str, Any]) -> dict[str, Any]:
    row = {key: record[key] for key in ("checkpoint", "package", "method", "ratio")}
    row |= {title: record[key] for title, key in TABLE_COLUMNS.items() if key in record}
    row["live B/token"] = f"{record['live_bytes_per_token']:.0f}"
    for context, speed in record.get("speed", {}).items():
        row[f"decode tok/s @{context}"] = speed["decode_tokens_per_second"]
        row[f"/source @{context}"] = speed["decode_ratio"]
    return row


if __name__ == "__main__":
    sys.exit(main())
