"""Fine-tune a converted model, or convert a source model and fine-tune it.

    cacheshrink-hybrid finetune MODEL --data stories.txt --output DIR

MODEL is a converted checkpoint, or a source model, which is then converted first (at
--compression-ratio and --cache-bits) on --num-calibration-samples of the training text, of
--max-calibration-length tokens or else --max-length. Losses other than `lm` learn from the
original: that of a source MODEL is kept, a converted MODEL needs --teacher. Without --loss it is
`distillation`, or `lm` for a converted MODEL without a --teacher.

--data is a text file (documents separated by lines <|endoftext|>), python-docs, or the name of a
data set for the `datasets` library; it may be repeated. Without --eval-data a tenth of the
documents is held out.

--config FILE.yaml holds any of the flags by their long names, with - or _; flags given on the
command line win, unknown names are errors. DIR gets the model (load_mla_model reads it) in `model`,
and config.yaml (everything as it was resolved), metrics.json, loss.png (with matplotlib) and the
checkpoints of --save-steps.

Several processes: `torchrun --nproc-per-node N -m training.finetune ...` (or accelerate launch)
takes the steps that one process takes with N times the --batch-size. With --shard-frozen-weights
each process keeps 1 / N of all that does not train, which is gathered layer by layer; on GPUs leave
--device at cpu then, so that none ever holds the whole model. FSDP of accelerate and DeepSpeed are
refused: they would cut bases too, and pieces of a basis lie on no manifold.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ...checkpoint.load_faults import is_converted_directory
from ...config import CompressionConfig
from ...config_faults import allowed_names
from ...errors import ConfigError, unknown_names
from ...methods import TABLES
from ...training.settings import EXTRAS, LOSSES, METRICS, SCHEDULES, TrainingConfig
from ..flags import NOT_SET, add_model_arguments, add_settings, new_parser
from ..preflight import DataSet, Model, OutputDirectory, TextFile, another_model, whole

CONVERSION = (
    "compression_ratio",
    "compression_method",
    "cache_bits",
    "state_ratio",
    "num_calibration_samples",
    "max_calibration_length",
)
CHOICES = {
    "loss": LOSSES,
    "lr_scheduler_type": SCHEDULES,
    "metric": METRICS,
    "report_to": ("none", "tensorboard"),
    "extras": EXTRAS,
}
GROUPS = {
    "what is learned": (
        "loss",
        "reconstruction_alpha",
        "distillation_alpha",
        "distillation_temperature",
        "extras",
        "nested_ranks",
        "constrained",
        "metric",
        "metric_damping",
        "metric_sequences",
    ),
    "steps": (
        "num_epochs",
        "max_steps",
        "batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "learning_rate_scale",
        "euclidean_lr",
        "riemannian_lr",
        "warmup_steps",
        "lr_scheduler_type",
        "weight_decay",
        "max_grad_norm",
        "seed",
    ),
    "precision and memory": ("bf16", "gradient_checkpointing", "shard_frozen_weights"),
    "evaluation, checkpoints, logs": (
        "eval_steps",
        "early_stopping_patience",
        "keep_best",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "report_to",
    ),
}
CHECKPOINTS = "checkpoints"
RESOLVED = "config.yaml"
RESULTS = ("model", "metrics.json")
"""What a run that came to its end leaves in its output directory."""


def parser() -> argparse.ArgumentParser:
    made = new_parser("finetune", __doc__, "MODEL --data DATA --output OUTPUT")
    add_model_arguments(made)
    made.add_argument(
        "--config",
        type=TextFile(),
        default=None,
        help=f"YAML file with flags; those of the command line win (default: {NOT_SET})",
    )
    made.add_argument(
        "--output",
        type=OutputDirectory(("metrics.json", "loss.png"), model=True),
        default=None,
        help="directory to write (needed)",
    )
    made.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what an earlier run left in the output directory (default: off)",
    )
    made.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint (default: off)"
    )
    _add_data(made.add_argument_group("data"))
    conversion = made.add_argument_group("conversion of a source MODEL")
    add_settings(
        conversion,
        CompressionConfig,
        CONVERSION,
        choices=allowed_names(),
        tables=TABLES,
        unset=True,
    )
    for title, names in GROUPS.items():
        add_settings(made.add_argument_group(title), TrainingConfig, names, choices=CHOICES)
    return made


def _add_data(group: Any) -> None:
    group.add_argument(
        "--data",
        type=DataSet(),
        action="append",
        default=None,
        metavar="DATA",
        help="text to train on, see above; may be repeated (needed)",
    )
    group.add_argument(
        "--data-subset", default=None, help=f"configuration of the data set (default: {NOT_SET})"
    )
    group.add_argument(
        "--samples",
        type=whole(),
        default=None,
        help="documents to take of each data (default: all)",
    )
    group.add_argument(
        "--eval-data",
        type=DataSet(),
        default=None,
        metavar="DATA",
        help="text to evaluate on (default: a tenth of the documents of --data)",
    )
    group.add_argument(
        "--teacher",
        type=Model(source=True),
        default=None,
        help="original model to learn from (default: a source MODEL itself)",
    )


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments with the YAML file's values in place of the defaults."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=TextFile(), default=None)
    early.add_argument("--data", action="append", default=None)
    first = early.parse_known_args(argv)[0]
    if first.config is not None:
        values = _read_config(made, first.config)
        if first.data is not None:  # else it would be added to the file's
            values.pop("data", None)
        made.set_defaults(**values)
    return made.parse_args(argv)


def _read_config(made: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no `flag: value` pairs")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    actions = {action.dest: action for action in made._actions if action.option_strings}
    known = sorted(set(actions) - {"help", "version", "config"})
    values.pop("model", None)  # a resolved config names it; the command line has it already
    fault = unknown_names(values, known)
    if fault is not None:
        raise ConfigError(f"{path} has unknown settings {fault}")
    return {name: _typed(actions[name], value, path) for name, value in values.items()}


def _typed(action: argparse.Action, value: Any, path: Path) -> Any:
    """A YAML value as the flag would give it."""
    if value is None or isinstance(value, bool):
        return value
    many = isinstance(value, list)
    if many and action.nargs is None and action.dest != "data":
        raise ConfigError(f"{path}: {action.dest} takes one value, not {value!r}")
    kind: Any = action.type or str
    try:
        items = [kind(str(item)) for item in (value if many else [value])]
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{path}: {action.dest}={value!r} is of the wrong type") from error
    wrong = [item for item in items if action.choices is not None and item not in action.choices]
    if wrong:
        raise ConfigError(
            f"{path}: {action.dest}={wrong[0]!r} is unknown; choose one of "
            f"{', '.join(map(str, action.choices or ()))}"
        )
    return items if many or action.nargs == "*" or action.dest == "data" else items[0]


def faults(given: argparse.Namespace) -> Iterator[str]:
    for name in ("output", "data"):
        if not getattr(given, name):
            yield f"--{name} is needed, as a flag or in the --config file"
    if is_converted_directory(given.model):
        for name in CONVERSION:
            if getattr(given, name) is not None:
                yield (
                    f"--{name.replace('_', '-')} is for source models, but {given.model} is "
                    "converted already; leave it out"
                )
        if given.loss not in (None, "lm") and given.teacher is None:
            yield (
                f"--loss {given.loss} learns from the original, which the converted {given.model} "
                "does not hold; give --teacher SOURCE, start from the source model, or take "
                "--loss lm"
            )
    for record, values in (
        (TrainingConfig, settings(given)),
        (CompressionConfig, conversion_settings(given)),
    ):
        try:
            record.from_dict(values)
        except ConfigError as error:
            yield str(error)
    if given.output is not None and given.config is not None:
        resolved = given.output / RESOLVED
        again = given.resume or given.overwrite
        if not again and resolved.is_file() and resolved.samefile(given.config):
            yield (
                f"--config: {given.config} is where the settings of this run are written; move "
                "it, or give another --output, --resume or --overwrite"
            )
    if given.output is not None and given.resume:
        if not any((given.output / CHECKPOINTS).glob("checkpoint-*")):
            yield f"{given.output} holds no checkpoints to --resume from; start without it"
    elif given.output is not None and not given.overwrite:
        found = [name for name in RESULTS if (given.output / name).exists()]
        if found:
            yield (
                f"{given.output} holds what an earlier run left ({', '.join(found)}); give "
                "another --output, --resume to go on from its last checkpoint, or --overwrite"
            )
    elif given.output is not None:
        yield from another_model(given.output / "model")


def conversion_settings(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `CompressionConfig` that were given."""
    return {name: value for name in CONVERSION if (value := getattr(given, name)) is not None}


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `TrainingConfig`; None stands for its default."""
    values = {field.name: getattr(given, field.name) for field in fields(TrainingConfig)}
    return {name: value for name, value in values.items() if value is not None}
