"""What lies beside the weights of a saved model: the source's config, the plan and digests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from ..caches.planned_layout import PlannedLayout, planned_layout
from ..errors import CheckpointError
from ..families import model_spec
from ..model.latent_model import LatentModel, source_class_of
from ..plan import CompressionPlan
from .auto_config import (
    DIGESTS_KEY,
    LAYOUT_KEY,
    MODEL_TYPE,
    SOURCE_ARCHITECTURES_KEY,
    SOURCE_NAME_KEY,
    SOURCE_TYPE_KEY,
    VERSION_KEY,
    CacheShrinkConfig,
)
from .files import (
    CARD_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    PICKLE_PATTERNS,
    PLAN_NAME,
    WEIGHTS_NAME,
    is_weights_name,
    model_type_of,
    sha256_of,
    shown,
)
from .load_faults import config_fault, first_line
from .model_card import model_card
from .model_names import public_name

FORMAT_VERSION = 8
"""8: keys that are stored rotated are so by their place in a block of slots; 7 had them rotated by
their slot, in channels of each head's own, 6 in channels of all heads, 5 copies of latents for
exact rows, and 4 coded rows of other bytes."""
REMOTE_CODE_NAME = "modeling_cacheshrink_hybrid"
REMOTE_CODE = '''\
"""Loads this converted model through the package; `pip install cacheshrink_hybrid`."""

from cacheshrink_hybrid.auto import CacheShrinkConfig, CacheShrinkForCausalLM

__all__ = ["CacheShrinkConfig", "CacheShrinkForCausalLM"]
'''
"""What `trust_remote_code=True` runs."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint without its weights.

    Attributes:
        config: the source model's.
        layout: what the model stores in the type in which its weights were saved.
        digests: SHA-256 of the weights' files by name.
        source_name: of the model that was converted; of a path, the last part.
    """

    config: PretrainedConfig
    plan: CompressionPlan
    layout: PlannedLayout
    digests: dict[str, str]
    source_name: str


def write_description(
    directory: Path, model: LatentModel, plan: CompressionPlan, *, card: bool
) -> None:
    """Write what goes beside weights: config, plan, code, and a model card if there is none."""
    path = directory / CONFIG_NAME
    source = json.loads(path.read_text(encoding="utf-8"))
    weights = sorted(p.name for p in directory.iterdir() if p.suffix == ".safetensors")
    config = {
        **source,
        "model_type": MODEL_TYPE,
        SOURCE_NAME_KEY: public_name(model.source_name),
        SOURCE_TYPE_KEY: source["model_type"],
        "architectures": [type(model).__name__],
        SOURCE_ARCHITECTURES_KEY: [source_class_of(model).__name__],
        "auto_map": {
            "AutoConfig": f"{REMOTE_CODE_NAME}.CacheShrinkConfig",
            "AutoModelForCausalLM": f"{REMOTE_CODE_NAME}.CacheShrinkForCausalLM",
        },
        VERSION_KEY: FORMAT_VERSION,
        LAYOUT_KEY: _digest(model.config, plan, source),
        DIGESTS_KEY: sha256_of(directory, weights),
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    values = json.dumps(plan.to_dict(), indent=2)
    (directory / PLAN_NAME).write_text(values + "\n", encoding="utf-8")
    (directory / f"{REMOTE_CODE_NAME}.py").write_text(REMOTE_CODE, encoding="utf-8")
    if card:
        text = model_card(model, plan)
        (directory / CARD_NAME).write_text(text, encoding="utf-8", errors="replace")


def read_checkpoint(directory: Path) -> Saved:
    """Everything but the weights.

    Raises:
        CheckpointError: if the directory is no checkpoint of a converted model.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory; give one that save_mla_model wrote")
    _check_kind(directory)
    try:
        values = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
        plan = json.loads((directory / PLAN_NAME).read_text(encoding="utf-8"))
        if values[VERSION_KEY] != FORMAT_VERSION:
            raise _other_version(directory, values[VERSION_KEY])
        config = CacheShrinkConfig.from_pretrained(directory).source()
        compression = CompressionPlan.from_dict(plan)
        saved = Saved(
            config=config,
            plan=compression,
            layout=_planned_layout(config, compression, values),
            digests=values[DIGESTS_KEY],
            source_name=str(values[SOURCE_NAME_KEY]),
        )
        digest = _digest(config, compression, values)
        if values[LAYOUT_KEY] != digest:
            raise _other_layout(directory, values[LAYOUT_KEY], digest)
        return saved
    except CheckpointError:
        raise
    except json.JSONDecodeError as error:
        raise _no_checkpoint(directory, f"its {PLAN_NAME} is no JSON: {error}") from error
    except KeyError as error:
        raise _no_checkpoint(
            directory, f"its {CONFIG_NAME} or {PLAN_NAME} lacks {error.args[0]}"
        ) from error
    except (OSError, TypeError, ValueError) as error:
        reason = f"its {CONFIG_NAME} or {PLAN_NAME} cannot be used: {first_line(error)}"
        raise _no_checkpoint(directory, reason) from error


def _check_kind(directory: Path) -> None:
    """Raise `CheckpointError` if the two files that make a converted model are not both there, or
    do not belong together."""
    config, plan = directory / CONFIG_NAME, directory / PLAN_NAME
    if not config.is_file():
        raise _no_checkpoint(directory, f"it has no {CONFIG_NAME}")
    fault = config_fault(config)
    if fault is not None:
        raise _no_checkpoint(directory, fault)
    kind = model_type_of(config)
    if kind != MODEL_TYPE and plan.is_file():
        raise CheckpointError(
            f"{directory} has a {PLAN_NAME}, and its {CONFIG_NAME} names the model_type {kind!r} "
            f"in place of {MODEL_TYPE!r}: it was edited, or another model was saved over a "
            f"converted one; restore {CONFIG_NAME}, or remove {PLAN_NAME} to use the other model"
        )
    if kind != MODEL_TYPE:
        raise _no_checkpoint(
            directory, f"its {CONFIG_NAME} is of a source model, model_type {kind!r}"
        )
    if not plan.is_file():
        raise _no_checkpoint(directory, f"its {PLAN_NAME} is missing")


def _no_checkpoint(directory: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{directory} is no checkpoint of a converted model: {reason}; convert_to_mla makes one "
        "from a source model, save_mla_model writes it"
    )


def _other_version(directory: Path, version: object) -> CheckpointError:
    return CheckpointError(
        f"{directory} has format version {version}; this package reads {FORMAT_VERSION}, so "
        "use the package version that wrote it, or convert the source again"
    )


def _planned_layout(
    config: PretrainedConfig, plan: CompressionPlan, values: dict[str, Any]
) -> PlannedLayout:
    """What the model stores in the type that a config.json of these values names."""
    dtype = getattr(torch, str(values.get("dtype")), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype={values.get('dtype')!r} is no type of weights, such as bfloat16")
    return planned_layout(model_spec(config), plan.latents, plan.states, dtype=dtype)


def _digest(config: PretrainedConfig, plan: CompressionPlan, values: dict[str, Any]) -> str:
    """Of that, and of what the model stores of an encoder's output."""
    spec, own = model_spec(config), _planned_layout(config, plan, values)
    if spec.cross is None or plan.cross is None:
        return own.layout.digest
    dtype = getattr(torch, values["dtype"])
    cross = planned_layout(spec.cross, plan.cross.latents, dtype=dtype)
    return f"{own.layout.digest}-{cross.layout.digest}"


def _other_layout(directory: Path, saved: object, computed: str) -> CheckpointError:
    return CheckpointError(
        f"{directory} was saved with the cache layout {str(saved)[:16]}, and its {PLAN_NAME} and "
        f"{CONFIG_NAME} now give {computed[:16]}: one of them was edited, or this "
        "package lays frames out otherwise than the one that wrote it; restore the files, or load "
        "and save it again with the package that wrote it"
    )


def check_weights(directory: Path, digests: dict[str, str], verify: bool) -> None:
    """The weights' files are those that were saved, open, and have not changed."""
    present = {path.name for path in directory.iterdir() if is_weights_name(path.name)}
    if not present:
        pickles = [p.name for pattern in PICKLE_PATTERNS for p in directory.glob(pattern)]
        found = (
            f"it has pickled weights ({', '.join(pickles)}), which are not read" if pickles else ""
        )
        raise CheckpointError(
            f"{directory} has no {WEIGHTS_NAME}; {found or 'it is incomplete'}; save the model "
            "again with save_mla_model"
        )
    for name in digests:
        try:
            with safe_open(directory / name, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{directory / name} cannot be read ({error}); copy the checkpoint again"
            ) from error
    others = present - set(digests) - {INDEX_NAME}
    if others:
        raise CheckpointError(
            f"{directory} has weights that are not of this checkpoint ({shown(others)}), beside "
            f"{shown(digests)}; a save was interrupted or another model copied over it: save it "
            "again to another directory"
        )
    changed = (
        [n for n, d in sha256_of(directory, digests).items() if d != digests[n]] if verify else []
    )
    if changed:
        raise CheckpointError(
            f"{shown(changed)} in {directory} changed since the model was saved (SHA-256 differs "
            f"from that in {CONFIG_NAME}); copy the checkpoint again, or, if they were changed on "
            "purpose, load with verify_weights=False and save again"
        )
