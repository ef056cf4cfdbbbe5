"""Compare ways of making MLA of a model that rotates its keys, in equal bytes, before training and
after equal training.

    python -m scripts.compare_mla MODEL ... --calibration valid.txt --text test.txt --json mla.json

and at laptop size, in a minute: `--calibration-samples 10 --calibration-length 128 --windows 2
--window-length 128`.

Ours is `compression_method="decoupled_rope"`; the others are `scripts/mla_splits.py`. All of them
run in the same module, with values of 16 bits and the same bytes per token. Ours chooses the width
of its rotary key by predicted loss, and shares its ranks among layers; the others get every width
that divides their channels, of which the one that loses least on held-out calibration text is
scored. `joint` is what few-bit latents begin with: it rebuilds keys, which MLA does not. Ours fits
output projections again, to calibration text; what it gains by that is shown, and what the better
one of the others would.

With `--steps` ours and the best of the others are fine-tuned, one training for each number of
steps, so that its learning rates end there: by `MLATrainer` at its defaults, on windows of the
calibration text, learning from the source. `--trained` says which ones.

Models are local directories of Llama models. What comes out is the loss added in nats per token,
with the standard error of the paired difference between windows, a table, and one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.conversion.exact_counts import ExactCounts
from cacheshrink_hybrid.conversion.in_place import convert_in_place
from cacheshrink_hybrid.conversion.key_shapes import key_shape
from cacheshrink_hybrid.conversion.latent_plans import latent_plan
from cacheshrink_hybrid.conversion.statistics import ModelStatistics, model_statistics
from cacheshrink_hybrid.device_profile import DeviceProfile
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.fit.bits import CodedFactors
from cacheshrink_hybrid.latents.fit.factors import LatentFactors, Unit, make_unit
from cacheshrink_hybrid.latents.fit.observe import observed_inputs
from cacheshrink_hybrid.latents.fit.statistics import LatentStatistics
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.plan import CompressionPlan
from cacheshrink_hybrid.text_tables import format_table
from cacheshrink_hybrid.training import MLATrainer

from .benchmark import (
    DOCUMENT_SEPARATOR,
    common_arguments,
    environment,
    progress,
    quiet,
    report,
    window_losses,
)
from .mla_splits import mha2mla, transmla

QUERY_SEQUENCES = 8
COLUMNS = (
    "model",
    "method",
    "ratio",
    "rotary",
    "steps",
    "tokens",
    "added loss",
    "error",
    "bytes per token",
)
TRAINED = ("ours", "TransMLA-like")
"""The others lose more than twice as much as this one before training."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """One source model, and all that the ways of converting it begin with.

    Attributes:
        units: moments of all tokens alike, for the others.
        weights: of keys and values, (2*J*D, E) of each layer.
        query_squares: see `mha2mla`.
        statistics: for ours.
    """

    model: PreTrainedModel
    units: list[Unit]
    weights: list[Tensor]
    query_squares: list[Tensor]
    statistics: ModelStatistics
    chunk_length: int

    def added(
        self, model: PreTrainedModel, windows: Sequence[Tensor], base: Sequence[float]
    ) -> list[float]:
        """Mean loss of each window over that of the source."""
        found = self.losses(model, windows)
        return [one - other for one, other in zip(found, base, strict=True)]

    def losses(self, model: PreTrainedModel, windows: Sequence[Tensor]) -> list[float]:
        """Mean loss of each window."""
        found = window_losses(model, windows, self.chunk_length)
        return [math.fsum(losses) / len(losses) for losses in found]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_mla",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--calibration", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="what is scored (default: its second half)"
    )
    parser.add_argument("--ratios", nargs="+", type=float, default=[2.0, 4.0])
    parser.add_argument("--calibration-samples", type=int, default=64)
    parser.add_argument("--calibration-length", type=int, default=512, help="tokens")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window-length", type=int, default=1024, help="tokens")
    parser.add_argument("--chunk-length", type=int, default=512, help="tokens per forward pass")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[], help="of fine-tuning (default: none)"
    )
    parser.add_argument("--trained", nargs="+", choices=METHODS, default=TRAINED)
    parser.add_argument("--batch-size", type=int, default=4, help="windows in a step")
    common_arguments(parser)
    given = parser.parse_args(argv)
    quiet()
    torch.set_num_threads(given.threads)
    records = [record for path in given.models for record in _measured(path, given)]
    print(format_table([{name: record[name] for name in COLUMNS} for record in records]))
    report({"environment": environment(), **_settings(given), "records": records}, given.json)
    return 0


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    names = ("calibration_samples", "calibration_length", "windows", "window_length", "batch_size")
    names += ("seed",)
    scored = "second half" if given.text is None else given.text.name
    texts = {"text": scored, "calibration": given.calibration.name}
    return texts | {name: getattr(given, name) for name in names}


def _measured(path: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    read = _ids(tokenizer, given.calibration)
    read, score = read.chunk(2) if given.text is None else (read, _ids(tokenizer, given.text))
    fitted = _windows(tokenizer, read, given.calibration_samples, given.calibration_length)
    scored = _windows(tokenizer, score, given.windows, given.window_length)
    taught = _windows(tokenizer, read, None, given.calibration_length)
    progress(f"{path.name}: calibrating")
    subject = _subject(model, fitted, given)
    base = subject.losses(model, scored)
    records = []
    for ratio, name in product(given.ratios, given.methods):
        progress(f"{path.name}: {name} at {ratio:g}x")
        converted = METHODS[name](subject, ratio)
        plan = plan_of(converted)
        common = {
            "model": path.name,
            "method": name,
            "ratio": ratio,
            "rotary": plan.latents[0].qk_rope_head_dim,
            "source loss": statistics.fmean(base),
            "bytes per token": plan.bytes_per_token,
            "predicted loss": plan.predicted_loss or None,
        }
        for steps in (0, *(given.steps if name in given.trained else ())):
            progress(f"{path.name}: {name} at {ratio:g}x, {steps} steps")
            model, tokens = converted, 0
            if steps:
                model = copy.deepcopy(converted)
                tokens = _train(model, subject.model, taught, steps, given)
            added = subject.added(model, scored, base)
            found = {"added loss": statistics.fmean(added), "error": _error(added)}
            records.append(common | {"steps": steps, "tokens": tokens} | found)
            progress(str({column: records[-1][column] for column in COLUMNS}))
    return records


def _error(added: Sequence[float]) -> float:
    return statistics.stdev(added) / len(added) ** 0.5


def _train(
    model: PreTrainedModel,
    source: PreTrainedModel,
    windows: Sequence[Tensor],
    steps: int,
    given: argparse.Namespace,
) -> int:
    """Tokens that a model was trained on, to do as its source does."""
    trainer = MLATrainer(
        model,
        None,
        teacher_model=source,
        max_steps=steps,
        batch_size=given.batch_size,
        max_length=given.calibration_length,
        logging_steps=50,
        seed=given.seed,
    )
    return trainer.train([ids[0] for ids in windows])["tokens"]


def _ids(tokenizer: Any, file: Path) -> Tensor:
    """Token ids of a file's documents, one after the other."""
    documents = file.read_text(encoding="utf-8").split(DOCUMENT_SEPARATOR)
    found = [tokenizer(document.strip(), verbose=False).input_ids for document in documents]
    return torch.tensor([token for ids in found for token in ids])


def _windows(tokenizer: Any, ids: Tensor, number: int | None, length: int) -> list[Tensor]:
    """Token ids (1, length) of windows that are evenly spread over a text and do not overlap, each
    behind the tokenizer's first token where it has one; None for all that the text has."""
    first = torch.tensor(tokenizer("").input_ids[:1], dtype=torch.long)
    kept = length - len(first)
    whole = ids[: len(ids) // kept * kept].view(-1, kept)
    number = len(whole) if number is None else number
    if len(whole) < number:
        raise SystemExit(f"the text has {len(whole)} windows of {length} tokens; ask for fewer")
    picked = [whole[i * len(whole) // number] for i in range(number)]
    return [torch.cat([first, window])[None] for window in picked]


def _config(ratio: float, method: str = "decoupled_rope") -> CompressionConfig:
    return CompressionConfig(compression_ratio=ratio, compression_method=method, cache_bits=16)


def _subject(model: PreTrainedModel, fitted: list[Tensor], given: argparse.Namespace) -> Subject:
    found = model_statistics(model, _config(2.0), fitted)
    parts = read_attention(model, model_spec(model.config))
    damping = _config(2.0).metric_damping
    return Subject(
        model=model,
        units=[
            make_unit(_of_all_tokens(statistics), 1, damping, key_shape(part))
            for part, statistics in zip(parts, found.latents, strict=True)
        ],
        weights=[torch.cat([part.key.weight(), part.value.weight()]).detach() for part in parts],
        query_squares=_query_squares(model, parts, fitted[:QUERY_SEQUENCES]),
        statistics=found,
        chunk_length=given.chunk_length,
    )


def _of_all_tokens(statistics: LatentStatistics) -> LatentStatistics:
    """Moments of all tokens alike, as the others take them."""
    first, mean = statistics.first, statistics.mean
    assert first is not None
    rest = 1 - first.share
    second = rest * (statistics.covariance + torch.outer(mean, mean))
    second = second + first.share * first.second_moment
    mean = rest * mean + first.share * first.mean
    covariance = second - torch.outer(mean, mean)
    return replace(statistics, mean=mean, covariance=covariance, first=None)


@torch.no_grad()
def _query_squares(model: PreTrainedModel, parts: list, sequences: list[Tensor]) -> list[Tensor]:
    """Mean squares of the queries that read each key head, by frequency, (J, F) of each layer."""
    found = []
    for part in parts:
        J, D = part.num_key_value_heads, part.head_dim
        total = torch.zeros(J, D // 2, dtype=torch.float64)

        def see(x: Tensor, layer_idx: int, part=part, total=total, J=J, D=D) -> None:
            query = (
                part.query.as_linear()(x).double().view(-1, J, x.shape[-1] // (J * D), 2, D // 2)
            )
            total += query.square().sum((0, 2, 3))

        with observed_inputs(part, see):
            for ids in sequences:
                model(ids, use_cache=False, logits_to_keep=1)
        found.append(total)
    return found


def _ours(
    subject: Subject, ratio: float, method: str = "decoupled_rope", *, fits_outputs: bool = True
) -> PreTrainedModel:
    model, statistics = copy.deepcopy(subject.model), replace(subject.statistics, held_out=None)
    if not fits_outputs:
        statistics = replace(statistics, sequences=())
    convert_model(model, _config(ratio, method), statistics=statistics)
    return model


def _best_of(
    subject: Subject, ratio: float, made: list[list[LatentFactors]], *, fits_outputs: bool = False
) -> PreTrainedModel:
    """The model with the factors that lose least on held-out calibration text."""
    held_out = subject.statistics.held_out
    assert held_out is not None, "ten calibration samples are needed, of which one is held out"
    found = []
    for factors in made:
        model = _with_factors(subject, ratio, factors, fits_outputs=fits_outputs)
        found.append((statistics.fmean(subject.losses(model, held_out.sequences)), model))
    return min(found, key=lambda one: one[0])[1]


def _with_factors(
    subject: Subject, ratio: float, factors: list[LatentFactors], *, fits_outputs: bool
) -> PreTrainedModel:
    model, config = copy.deepcopy(subject.model), _config(ratio)
    spec = model_spec(model.config)
    parts = read_attention(model, spec)
    results = [
        CodedFactors(
            factors=one, runs=((len(one.encoder), 16),), row_format=config.row_format(alignment=1)
        )
        for one in factors
    ]
    profile, none = DeviceProfile.of(torch.device("cpu")), ExactCounts(0, 0)
    latents = [
        latent_plan(part, result, none, config, profile, None)
        for part, result in zip(parts, results, strict=True)
    ]
    plan = CompressionPlan(
        model_type=spec.model_type,
        source_bytes_per_token=spec.bytes_per_token,
        kept_bytes_per_token=0,
        latents=tuple(latents),
        metric="none",
    )
    fitted_to = subject.statistics.sequences if fits_outputs else ()
    convert_in_place(model, parts, factors, plan, keep_source=False, fitted_to=fitted_to)
    return model


def _channels(subject: Subject, ratio: float) -> int:
    """Values per token of each layer."""
    return int(len(subject.units[0].mean) / ratio)


def _transmla(subject: Subject, ratio: float, *, fits_outputs: bool = False) -> PreTrainedModel:
    keys, total = subject.units[0].keys, _channels(subject, ratio)
    assert keys is not None
    frequencies = keys.rotary_dim // 2
    folds = [fold for fold in range(1, frequencies + 1) if frequencies % fold == 0]
    made = [
        [transmla(unit, fold=fold, rank=total - 2 * frequencies // fold) for unit in subject.units]
        for fold in folds
        if total > 2 * frequencies // fold
    ]
    return _best_of(subject, ratio, made, fits_outputs=fits_outputs)


def _mha2mla(subject: Subject, ratio: float) -> PreTrainedModel:
    keys, total = subject.units[0].keys, _channels(subject, ratio)
    assert keys is not None
    eighth = max(2, keys.rotary_dim // 8)
    widths = [width for width in range(eighth, keys.rotary_dim + 1, eighth) if width % 2 == 0]
    made = [
        [
            mha2mla(
                unit,
                weight,
                squares,
                head_width=width,
                rank=total - keys.num_heads * width,
            )
            for unit, weight, squares in zip(
                subject.units, subject.weights, subject.query_squares, strict=True
            )
        ]
        for width in widths
        if total > keys.num_heads * width
    ]
    return _best_of(subject, ratio, made)


METHODS: dict[str, Callable[[Subject, float], PreTrainedModel]] = {
    "ours": _ours,
    "ours, outputs kept": partial(_ours, fits_outputs=False),
    "TransMLA-like": _transmla,
    "TransMLA-like, outputs fitted": partial(_transmla, fits_outputs=True),
    "MHA2MLA-like": _mha2mla,
    "joint": lambda subject, ratio: _ours(subject, ratio, "joint"),
}


if __name__ == "__main__":
    raise SystemExit(main())
