"""The program `inspect`: what a model remembers per layer, without its weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..caches.planned_layout import PlannedLayout, planned_layout
from ..checkpoint.description import read_checkpoint
from ..checkpoint.load_faults import first_line, is_converted_directory, loading
from ..checkpoint.source_model import gguf_location
from ..conversion.row_trial import MOST_SECONDS, try_rows
from ..errors import CacheShrinkError, ConfigError, UnsupportedModelError
from ..families import FAMILIES, has_encoder, layout_spec, refusal
from ..families.unconverted import REFUSED
from ..families.vision import TEXT_MODELS, inner_config
from ..plan import CompressionPlan
from ..spec import LayerSpec, ModelSpec
from ..text_tables import fitting_table, format_table

T = TypeVar("T")


def run(given: argparse.Namespace) -> int:
    if given.try_row:
        fits, refused = _of_each(given, lambda name: _tried_row(name, given.trust_remote_code))
        return refused or (0 if all(fits) else 1)
    found, refused = _of_each(given, lambda name: _read(name, given))
    if len(given.models) == 1:
        _print_model(*found[0], given.lengths)
        return 0
    if found:
        print(format_table([_line(model, given.lengths, ratios) for model, ratios in found]))
    notes = [f"{model.name}: {model.refusal}" for model, _ in found if model.refusal]
    if notes:
        print("\n" + "\n".join(notes))
    return refused


def _of_each(given: argparse.Namespace, work: Callable[[str], T]) -> tuple[list[T], int]:
    """What `work` finds of the models, and the status: of one model it raises, and of several it
    goes on after a refused one, with a line in its place."""
    found, refused = [], 0
    for name in given.models:
        try:
            found.append(work(name))
        except CacheShrinkError as error:
            if len(given.models) == 1:
                raise
            print(f"error: {name}: {error}", file=sys.stderr)
            refused = 2
    return found, refused


Ratios = tuple[float, float] | None
"""What keys and values, and states, are divided by in further columns; None for no such columns."""


@dataclass(frozen=True, slots=True)
class _Model:
    """A model without its weights."""

    name: str
    spec: ModelSpec
    plan: CompressionPlan | None
    planned: PlannedLayout
    refusal: str | None = None
    """Why it is not converted."""


def _read(name: str, given: argparse.Namespace) -> tuple[_Model, Ratios]:
    model = read_model(name, given.trust_remote_code)
    return model, _ratios(given.kv_ratio, given.state_ratio, model.plan)


def read_model(name: str, trust_remote_code: bool) -> _Model:
    path = Path(name)
    short = path.stem if path.suffix == ".json" else path.name
    if is_converted_directory(path):
        saved = read_checkpoint(path)
        return _Model(short, layout_spec(saved.config), saved.plan, saved.layout)
    config = _config(name, trust_remote_code)
    spec = layout_spec(config)
    dtypes = (part.dtype for part in (config, inner_config(config)))
    dtype = next((dtype for dtype in dtypes if isinstance(dtype, torch.dtype)), torch.bfloat16)
    return _Model(short, spec, None, planned_layout(spec, dtype=dtype), refusal(config))


def _tried_row(name: str, trust_remote_code: bool) -> bool:
    """Print what a row of the table would look like; returns whether it fits."""
    whole = _config(name, trust_remote_code)
    _refuse_trial(whole)
    config = inner_config(whole)
    trial = try_rows(config, trust_remote_code=trust_remote_code)
    row, depth = trial.nearest, trial.config.num_hidden_layers
    known = "has a row already" if config.model_type in FAMILIES else "has no row yet"
    tried = f"{len(trial.tried)} guessed from its attention, tried"
    if trial.num_left:
        tried = (
            f"{len(trial.tried) + trial.num_left} guessed from its attention, and "
            f"{len(trial.tried)} of them, as many as {MOST_SECONDS} seconds allow, tried"
        )
    print(
        f"{config.model_type} {known}. {tried} on {depth} of its {config.num_hidden_layers} layers "
        "with random weights:\n"
    )
    print(f"    {row.candidate.source}\n")
    if row.fault is None:
        print(
            "computes what the source computes, whole and in pieces, at the first positions and at "
            f"the last ones: outputs of layers differ by {row.difference:.1g} of their size at "
            "most. Options that this config does not set were not tried. What is left to do: the "
            "recipe 'A model family' in CONTRIBUTING.md"
        )
        if whole is not config and whole.model_type not in TEXT_MODELS:
            print(
                f"It is the text model of a {whole.model_type} model; where it lies in the whole, "
                "a row of cacheshrink_hybrid/families/vision.py has to say"
            )
        return True
    print(
        f"comes nearest, and does not fit: {row.fault}. The attention's forward does something "
        "that none of these rows says; fields of Family in cacheshrink_hybrid/families/family.py "
        "are what a row can say"
    )
    return False


def _refuse_trial(config: PretrainedConfig) -> None:
    """Raise for models that no row alone would describe."""
    for part in (config, inner_config(config)):
        if part.model_type in REFUSED:
            raise UnsupportedModelError(
                f"model_type={part.model_type!r} is not converted: {REFUSED[part.model_type]}; no "
                "row alone changes that"
            )
    if has_encoder(config):
        raise UnsupportedModelError(
            f"a {config.model_type} decoder reads an encoder's output, and rows are guessed of "
            "models that read one text: " + (refusal(config) or "this type is supported already")
        )


def _line(model: _Model, lengths: Sequence[int], ratios: Ratios) -> dict[str, Any]:
    """Bytes of one sequence at all lengths, before and after."""
    spec = model.spec
    record: dict[str, Any] = {
        "model": model.name,
        "KV B/token": spec.bytes_per_token,
        "state MiB": _mib(spec.bytes_per_sequence),
    }
    for length in lengths:
        total = _total(spec, model.plan, length, ratios)
        tokens = f"{length // 1024}k" if length % 1024 == 0 else str(length)
        record[f"{tokens} tokens, MiB"] = _mib(2**20 * total["total MiB"])
        if "stored MiB" in total:
            record[f"{tokens} after"] = _mib(2**20 * total["stored MiB"])
    return record


def _mib(num_bytes: float) -> str:
    size = num_bytes / 2**20
    return f"{size:,.0f}" if size >= 100 else f"{size:.1f}"


def _print_model(model: _Model, ratios: Ratios, lengths: Sequence[int]) -> None:
    spec, plan = model.spec, model.plan
    if plan is None:
        print(fitting_table([_source_record(layer) for layer in spec.layers]))
        print(
            f"{spec.model_type}: {spec.bytes_per_token} KV bytes per token at 16 bits, "
            f"{spec.bytes_per_sequence} bytes of state per sequence"
        )
        if spec.cross is not None:
            print("of what the encoder puts out:")
            print(fitting_table([_source_record(layer) for layer in spec.cross.layers]))
            print(f"{spec.cross.bytes_per_token} KV bytes per vector of it at 16 bits")
        if model.refusal:
            print(model.refusal)
    else:
        print(plan.table(spec))
    if spec.cross is not None:
        print("of the decoder's own tokens alone:")
    print(fitting_table([_total(spec, plan, length, ratios) for length in lengths]))
    print("pool: " + model.planned.layout.table())


def _config(name: str, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a source, of a whole model where it has several parts."""
    place, where = gguf_location(name)
    if where:
        with loading(name):
            return AutoConfig.from_pretrained(place, **where)
    path = Path(place)
    file = path / "config.json" if path.is_dir() else path
    try:
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            if values.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
                # A model class is not needed to count bytes, only what the file says.
                return PretrainedConfig.from_dict({**values, **_own_type(values)})
        return AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, StrictDataclassError, ValueError) as error:
        said = error.__cause__ if isinstance(error, StrictDataclassError) else None
        raise ConfigError(f"no config in {name!r}: {first_line(said or error)}") from error


def _own_type(values: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(values.get("model_type"), str):
        raise ValueError("config.json names no model_type")
    return {"model_type": values["model_type"]}


def _ratios(kv: float | None, state: float | None, plan: CompressionPlan | None) -> Ratios:
    """What to divide by in the columns of a planned conversion; None without such columns."""
    if kv is None and state is None:
        return None
    if plan is not None:
        raise ConfigError(
            "--kv-ratio and --state-ratio are for source models; this one is converted, and its "
            "table shows what it stores"
        )
    return kv or 1.0, state or 1.0


def _source_record(layer: LayerSpec) -> dict[str, Any]:
    record: dict[str, Any] = {
        "layer": layer.layer_idx,
        "mixer": layer.mixer or "-",
        "attention": _attention(layer),
        "KV B/token": layer.bytes_per_token,
        "state": "-",
        "state B/sequence": layer.bytes_per_sequence,
    }
    if layer.state is not None:
        state = layer.state
        size = f"{state.num_heads}x{state.head_dim}x{state.state_size}"
        groups = f" in {state.num_groups} groups" if state.num_groups > 1 else ""
        conv = f"conv {state.conv_channels}x{state.conv_kernel}"
        record["state"] = f"{size}{groups}, {conv}" if state.state_size else conv
    return record


def _total(
    spec: ModelSpec, plan: CompressionPlan | None, length: int, ratios: Ratios
) -> dict[str, Any]:
    """Bytes of one sequence of `length` tokens, before and after."""
    kv, state = spec.kv_bytes(length), spec.bytes_per_sequence
    record: dict[str, Any] = {
        "tokens": length,
        "KV MiB": kv / 2**20,
        "state MiB": state / 2**20,
        "total MiB": (kv + state) / 2**20,
    }
    after_kv: float
    after_state: float
    if plan is not None:
        after_state = plan.state_bytes
        after_kv = plan.bytes_at(spec, length) - after_state
    elif ratios is not None:
        after_kv, after_state = kv / ratios[0], state / ratios[1]
    else:
        return record
    after = after_kv + after_state
    return record | {
        "stored KV MiB": after_kv / 2**20,
        "stored state MiB": after_state / 2**20,
        "stored MiB": after / 2**20,
        "ratio": (kv + state) / after if after else 1.0,
    }


def _attention(layer: LayerSpec) -> str:
    attention = layer.attention
    if attention is None:
        return "-" if layer.reads is None else f"reads layer {layer.reads}"
    heads = f"{attention.num_attention_heads}/{attention.num_key_value_heads}x{attention.head_dim}"
    if attention.v_head_dim is not None:
        heads += f"+{attention.v_head_dim}"
    window = "" if attention.sliding_window is None else f" window {attention.sliding_window}"
    return f"{heads}{' rope' if attention.uses_rope else ''}{window}"
