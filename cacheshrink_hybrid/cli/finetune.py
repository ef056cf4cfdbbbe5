"""Fine-tune a converted model, or convert a source model and fine-tune it.

    cacheshrink-hybrid finetune MODEL --data stories.txt --output DIR

MODEL is a converted checkpoint, or a source model, which is then converted first (at
--compression-ratio and --cache-bits) on the training text. Losses other than `lm` learn from the
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
import os
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from ..calibrate.text import PYTHON_DOCS, load_texts
from ..checkpoint import save_mla_model
from ..checkpoint_files import PLAN_NAME
from ..config import CompressionConfig
from ..convert import convert_to_mla
from ..errors import ConfigError
from ..latent_model import is_converted
from ..training import MLATrainer, TrainingConfig
from ..training.arguments import check_launcher
from ..training.metric import METRICS
from ..training.output import check_writable
from ..training.settings import EXTRAS, LOSSES, SCHEDULES
from .arguments import add_model_arguments, load_any
from .report import plot_losses, write_json

HELD_OUT_SHARE = 10
SPARE_BYTES = 2**20
CONVERSION = ("compression_ratio", "compression_method", "cache_bits", "state_ratio")
CHOICES = {
    "loss": LOSSES,
    "lr_scheduler_type": SCHEDULES,
    "metric": METRICS,
    "report_to": ("none", "tensorboard"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = vars(_with_config_file(parser, argv))
    _check(given)
    if given["loss"] is None:
        given["loss"] = "distillation" if _has_original(given) else "lm"
    output = Path(given["output"])
    settings = {
        field.name: given[field.name]
        for field in fields(TrainingConfig)
        if given[field.name] is not None or field.default is None
    }
    check_launcher(TrainingConfig.from_dict(settings))
    first = int(os.environ.get("RANK", "0")) == 0
    check_writable(output, SPARE_BYTES)
    texts, held_out = _documents(given)
    model, tokenizer = _model(given, texts)
    check_writable(output, 2 * sum(p.nbytes for p in model.parameters()) + SPARE_BYTES)
    if first:
        resolved = {name: _plain(value) for name, value in given.items() if name != "config"}
        (output / "config.yaml").write_text(yaml.safe_dump(resolved), encoding="utf-8")
    teacher = None
    if given["teacher"] is not None:
        teacher, _ = load_any(
            given["teacher"],
            device=given["device"],
            dtype=given["dtype"],
            trust_remote_code=given["trust_remote_code"],
        )
    trainer = MLATrainer(
        model, tokenizer, teacher_model=teacher, output_dir=output / "checkpoints", **settings
    )
    stats = trainer.train(
        texts, eval_dataset=held_out, resume_from_checkpoint=given["resume"] or False
    )
    if first:
        save_mla_model(model, tokenizer, output / "model")
        write_json(
            output / "metrics.json", {"program": "finetune", "model": given["model"], **stats}
        )
        plot_losses(output / "loss.png", stats["losses"], f"Fine-tuning by {trainer.config.loss}")
        print(
            f"perplexity {stats['perplexity_before']:.4f} -> {stats['perplexity_after']:.4f} on "
            f"{stats['perplexity_of']} text after {stats['steps']} steps, "
            f"{stats['tokens']} tokens, {stats['seconds']:.0f} s\nsaved to {output / 'model'}"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    parser.add_argument("--config", type=Path, default=None, help="YAML file with flags")
    parser.add_argument("--output", type=Path, default=None, help="directory to write (needed)")
    parser.add_argument("--data", action="append", default=None, metavar="DATA", help="see above")
    parser.add_argument("--data-subset", default=None, help="configuration of the data set")
    parser.add_argument("--samples", type=int, default=None, help="documents to take of each data")
    parser.add_argument("--eval-data", default=None, metavar="DATA", help="as --data")
    parser.add_argument("--teacher", default=None, help="original model to learn from")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    conversion = parser.add_argument_group("conversion of a source model")
    conversion.add_argument("--compression-ratio", type=float, default=None)
    conversion.add_argument("--compression-method", default=None)
    conversion.add_argument("--cache-bits", type=_bits, default=None)
    conversion.add_argument("--state-ratio", type=float, default=None)
    training = parser.add_argument_group("training (defaults and meaning: TrainingConfig)")
    for field in fields(TrainingConfig):
        flag = "--" + field.name.replace("_", "-")
        default = None if field.default is MISSING else field.default
        help_text = f"(default: {default})"
        if isinstance(default, bool) or field.name == "bf16":
            training.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=help_text
            )
        elif "tuple" in str(field.type):
            kind: Any = str if field.name == "extras" else float
            choices = EXTRAS if field.name == "extras" else None
            training.add_argument(
                flag, nargs="*", type=kind, default=default, choices=choices, help=help_text
            )
        else:
            kind = type(default) if default is not None else _type_of(str(field.type))
            training.add_argument(
                flag, type=kind, default=default, choices=CHOICES.get(field.name), help=help_text
            )
    return parser


def _with_config_file(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Arguments with the YAML file's values in place of the defaults."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path, default=None)
    path = early.parse_known_args(argv)[0].config
    if path is not None:
        parser.set_defaults(**_read_config(parser, path))
    return parser.parse_args(argv)


def _read_config(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no `flag: value` pairs")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    known = sorted(set(actions) - {"help", "config"})
    unknown = sorted(set(values) - set(known) - {"model"})
    if unknown:
        raise ConfigError(
            f"{path} has unknown settings {', '.join(unknown)}; known are {', '.join(known)}"
        )
    values.pop("model", None)  # a resolved config names it; the command line has it already
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
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {action.dest}={value!r} is of the wrong type") from error
    wrong = [item for item in items if action.choices is not None and item not in action.choices]
    if wrong:
        raise ConfigError(
            f"{path}: {action.dest}={wrong[0]!r} is unknown; choose one of "
            f"{', '.join(map(str, action.choices or ()))}"
        )
    return items if many or action.nargs == "*" or action.dest == "data" else items[0]


def _check(given: dict[str, Any]) -> None:
    faults = []
    for name in ("output", "data"):
        if not given[name]:
            faults.append(f"--{name} is needed, as a flag or in the --config file")
    converted = (Path(given["model"]) / PLAN_NAME).is_file()
    if converted:
        for name in CONVERSION:
            if given[name] is not None:
                faults.append(
                    f"--{name.replace('_', '-')} is for source models, but {given['model']} is "
                    "converted already; leave it out"
                )
        if given["loss"] not in (None, "lm") and given["teacher"] is None:
            faults.append(
                f"--loss {given['loss']} learns from the original, which the converted "
                f"{given['model']} does not hold; give --teacher SOURCE, start from the source "
                "model, or take --loss lm"
            )
    if faults:
        raise ConfigError("; ".join(faults))


def _has_original(given: dict[str, Any]) -> bool:
    converted = (Path(given["model"]) / PLAN_NAME).is_file()
    return given["teacher"] is not None or not converted


def _documents(given: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Training and held-out documents."""
    documents: list[str] = []
    for name in given["data"]:
        documents += load_texts(None, name, given["data_subset"], num_samples=given["samples"])
    if given["eval_data"] is not None:
        held_out = load_texts(
            None,
            given["eval_data"],
            given["data_subset"],
            num_samples=given["samples"],
            split="test" if given["eval_data"] == PYTHON_DOCS else "train",
        )
        return documents, held_out
    if len(documents) < HELD_OUT_SHARE:
        raise ConfigError(
            f"the data has {len(documents)} documents, too few to hold a tenth out; give "
            "--eval-data, or more documents"
        )
    held_out = documents[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE]
    kept = [d for i, d in enumerate(documents) if i % HELD_OUT_SHARE != HELD_OUT_SHARE - 1]
    return kept, held_out


def _model(given: dict[str, Any], texts: list[str]):
    """The converted model to train, and its tokenizer."""
    model, tokenizer = load_any(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        trust_remote_code=given["trust_remote_code"],
    )
    if is_converted(model):
        return model, tokenizer
    chosen = {name: given[name] for name in CONVERSION if given[name] is not None}
    defaults = CompressionConfig()
    number = defaults.num_calibration_samples
    return convert_to_mla(
        model,
        tokenizer=tokenizer,
        calibration_texts=texts[:: max(1, len(texts) // number)][:number],
        max_calibration_length=given["max_length"],
        store_original_weights=given["loss"] != "lm" and given["teacher"] is None,
        verbose=int(os.environ.get("RANK", "0")) == 0,
        **chosen,
    )


def _bits(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _type_of(annotation: str) -> type:
    return {"int": int, "str": str}.get(annotation.split(maxsplit=1)[0], float)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, (Path, torch.dtype)) else value
