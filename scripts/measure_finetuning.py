"""What fine-tuning brings back: perplexity before and after, on the manifold and without it.

    python -m scripts.measure_finetuning CHECKPOINT_DIR ... --text stories.txt --json out.json

and at laptop size, in about a minute:

    python -m scripts.measure_finetuning CHECKPOINT_DIR --text stories.txt --cases 4:16 \
        --variants stiefel --steps 20 --samples 16 --repetitions 1

Checkpoints are local directories; the text file holds documents separated by `<|endoftext|>` or
blank lines. Calibration and training take the first 80 % of the documents, evaluation the rest,
evenly spread; with `--validation`, for choosing settings, the first 64 % and the 16 % after them:
the same split once more, so that what is chosen has not seen the evaluation documents. Each
document begins with the tokenizer's first token and is cut at `--max-length` tokens. A case is
RATIO:BITS, with bits as in `cache_bits`, or RATIO:BITS:STATE_RATIO. Variants:

    stiefel        bases on the Stiefel manifold: the default settings
    unconstrained  the same parameters, all by AdamW
    bare           as stiefel, without norm gains, query and output projections
    text           as stiefel, learning from the text alone, not from the original

`--demo` measures the model that ships with the package instead, on documentation, with recall.
Perplexity is measured through the cache. Throughput is compared with the loop of transformers that
trains K and V projections of the source model on the same batches, in turns (A B A B).
What comes out is a table and, as last line, one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from cacheshrink_hybrid import __version__, convert_to_mla, measure_recall, plan_of
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import held_out_text, training_text
from cacheshrink_hybrid.evaluation.perplexity import score_sequences
from cacheshrink_hybrid.text_tables import format_table
from cacheshrink_hybrid.training import MLATrainer
from cacheshrink_hybrid.training.data import collate, training_sequences

from .benchmark import (
    common_arguments,
    environment,
    progress,
    quiet,
    read_documents,
    report,
    spread,
)

TRAINING_SHARE = 0.8
TIMED_STEPS = 20
TIMED_LOSSES = ("lm", "distillation")
"""`lm` is what the loop of transformers computes; `distillation` runs the original besides."""
VARIANTS: dict[str, dict[str, Any]] = {
    "stiefel": {},
    "unconstrained": {"constrained": False},
    "bare": {"extras": ()},
    "text": {"loss": "lm"},
}
COLUMNS = {
    "checkpoint": "checkpoint",
    "case": "case",
    "ratio": "compression_ratio",
    "variant": "variant",
    "rate": "learning_rate_scale",
    "seed": "seed",
    "before +%": "before_percent",
    "after +%": "after_percent",
    "recall before": "recall_before",
    "recall after": "recall_after",
    "|Q^T Q - I|": "orthonormality_error",
    "tokens/s": "tokens_per_second",
}
RECALL_DISTANCES = (64, 256)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    quiet()
    checkpoints = [model_path()] if args.demo else args.checkpoints
    if not checkpoints or (args.text is None) != args.demo:
        raise SystemExit("give checkpoints and --text, or --demo")
    records = [
        record for checkpoint in checkpoints for record in measure_checkpoint(checkpoint, args)
    ]
    speed = None
    if args.repetitions:
        speed = throughput(checkpoints[0], args)
    result = {
        "program": "measure_finetuning",
        "ours": f"cacheshrink_hybrid {__version__}",
        "environment": environment(),
        "settings": {
            k: v for k, v in vars(args).items() if k not in ("json", "text", "checkpoints")
        },
        "records": records,
        "summary": summary(records),
        "throughput": speed,
    }
    rows = [{c: record[k] for c, k in COLUMNS.items() if k in record} for record in records]
    print(format_table(rows))
    if speed is not None:
        shares = ", ".join(f"{ratio:.2f} by {loss}" for loss, ratio in speed["ratio"].items())
        print(f"throughput over that of the loop that trains the source's K and V: {shares}")
    report(result, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.measure_finetuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="*", type=Path, help="local checkpoint directories")
    parser.add_argument("--text", type=Path, default=None, help="text file with documents")
    parser.add_argument("--demo", action="store_true", help="the shipped model, with recall")
    parser.add_argument(
        "--cases",
        nargs="+",
        type=_case,
        default=["4:16", "8:auto", "16:auto"],
        help="compression ratio : cache bits [: state ratio]",
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["stiefel"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=240, help="tokens of each document")
    parser.add_argument("--samples", type=int, default=124, help="documents to evaluate on")
    parser.add_argument("--validation", action="store_true", help="for choosing settings")
    parser.add_argument("--learning-rate-scales", nargs="+", type=float, default=[1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training")
    parser.add_argument("--repetitions", type=int, default=3, help="of the throughput; 0 for none")
    common_arguments(parser)
    return parser


def _case(text: str) -> str:
    if text.count(":") not in (1, 2):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no case; give RATIO:BITS or RATIO:BITS:STATE_RATIO, such as 16:auto"
        )
    return text


def measure_checkpoint(checkpoint: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per case and variant."""
    source, tokenizer, texts, training, evaluation = _prepare(checkpoint, args)
    base = score_sequences(source, evaluation, batch_size=args.batch_size).perplexity
    records = []
    for case in args.cases:
        start = converted(source, tokenizer, texts, case, args)
        for variant, scale, seed in product(args.variants, args.learning_rate_scales, args.seeds):
            own = {"learning_rate_scale": scale, "seed": seed}
            record = {"case": case, "variant": variant, **own}
            record |= measure_case(
                copy.deepcopy(start), tokenizer, training, evaluation, args, own | VARIANTS[variant]
            )
            before, after = record["perplexity_before"], record["perplexity_after"]
            record |= {
                "checkpoint": "demo" if args.demo else checkpoint.resolve().name,
                "perplexity_source": base,
                "before_percent": 100 * (before / base - 1),
                "after_percent": 100 * (after / base - 1),
            }
            progress(str({c: record[k] for c, k in COLUMNS.items() if k in record}))
            records.append(record)
    return records


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds of what is left to the source, by setting."""
    names = ("checkpoint", "case", "variant", "learning_rate_scale")
    groups: dict[tuple, list[float]] = {}
    for record in records:
        key = tuple(record[name] for name in names)
        groups.setdefault(key, []).append(record["after_percent"])
    return [
        dict(zip(names, key, strict=True))
        | {
            "seeds": len(found),
            "after_percent": statistics.mean(found),
            "after_percent_range": [min(found), max(found)],
        }
        for key, found in groups.items()
    ]


def _prepare(checkpoint: Path, args: argparse.Namespace):
    """Source model, tokenizer, calibration texts, training and evaluation sequences."""
    # Half precision on a CPU is slow and says nothing about training.
    source = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if args.demo:
        texts, held_out = training_text(), held_out_text()
        training = training_sequences(tokenizer, texts, args.max_length)
        evaluation = training_sequences(tokenizer, held_out, args.max_length)
        step = max(1, len(evaluation) // args.samples)
        return source, tokenizer, texts, training, evaluation[::step][: args.samples]
    documents = read_documents(args.text)
    number = int(TRAINING_SHARE * len(documents))
    if args.validation:
        documents = documents[:number]
        number = int(TRAINING_SHARE * number)
    texts, held_out = documents[:number], spread(documents[number:], args.samples)
    return source, tokenizer, texts, *(_starts(tokenizer, part, args) for part in (texts, held_out))


def _starts(tokenizer, documents: Sequence[str], args: argparse.Namespace) -> list[Tensor]:
    rows = [torch.tensor(tokenizer(text).input_ids[: args.max_length]) for text in documents]
    return [ids for ids in rows if len(ids) > 1]


def converted(source: PreTrainedModel, tokenizer, texts: Sequence[str], case: str, args):
    ratio, bits, *state_ratio = case.split(":")
    model, _ = convert_to_mla(
        copy.deepcopy(source),
        float(ratio),
        tokenizer=tokenizer,
        calibration_texts=spread(texts, 128),
        max_calibration_length=args.max_length,
        cache_bits=int(bits) if bits.isdigit() else bits,
        store_original_weights=True,
        verbose=False,
        **({"state_ratio": float(state_ratio[0])} if state_ratio else {}),
    )
    return model


def measure_case(model, tokenizer, training, evaluation, args, settings) -> dict[str, Any]:
    plan = plan_of(model)
    record: dict[str, Any] = {"compression_ratio": plan.compression_ratio}
    if plan.states:
        record["state_ratio"] = plan.state_ratio
    if args.demo:
        record["recall_before"] = _recall(model, tokenizer)
    trainer = MLATrainer(
        model,
        tokenizer,
        max_steps=args.steps,
        batch_size=args.batch_size,
        max_length=args.max_length,
        logging_steps=50,
        **settings,
    )
    record |= trainer.train(training, eval_dataset=evaluation)
    if args.demo:
        record["recall_after"] = _recall(model, tokenizer)
    return record


def _recall(model: PreTrainedModel, tokenizer) -> float:
    """Mean accuracy over kinds and distances."""
    measured = measure_recall(model, tokenizer, RECALL_DISTANCES, num_exercises=8)
    values = [accuracy for kinds in measured.values() for accuracy in kinds.values()]
    return sum(values) / len(values)


def throughput(checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of `MLATrainer`, by loss, and of transformers on K and V of the source, in
    turns; `ratio` is the median over turns of one over the other."""
    source, tokenizer, texts, training, _ = _prepare(checkpoint, args)
    steps = min(args.steps, TIMED_STEPS)
    start = converted(source, tokenizer, texts[:32], args.cases[0], args)
    speeds: dict[str, list[float]] = {name: [] for name in ("source_kv", *TIMED_LOSSES)}
    for _ in range(args.repetitions):
        speeds["source_kv"].append(
            _source_tokens_per_second(copy.deepcopy(source), training, steps, args)
        )
        for loss in TIMED_LOSSES:
            trainer = MLATrainer(
                copy.deepcopy(start), None, loss=loss, max_steps=steps, batch_size=args.batch_size
            )
            speeds[loss].append(trainer.train(training)["tokens_per_second"])
    ratios = {
        loss: statistics.median(
            one / other for one, other in zip(speeds[loss], speeds["source_kv"], strict=True)
        )
        for loss in TIMED_LOSSES
    }
    return {"tokens_per_second": speeds, "ratio": ratios}


def _source_tokens_per_second(model, training, steps, args) -> float:
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in ("k_proj", "v_proj")))
    count = 0

    def batch(items):
        nonlocal count
        inputs = collate(items)
        count += int((inputs["labels"] != -100).sum())
        return inputs

    with TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
            seed=args.seed,
        )
        dataset: Any = [{"input_ids": ids} for ids in training]
        trainer = Trainer(model, arguments, data_collator=batch, train_dataset=dataset)
        result = trainer.train()
    return count / result.metrics["train_runtime"]


if __name__ == "__main__":
    raise SystemExit(main())
