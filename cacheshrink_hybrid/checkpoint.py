"""Saving and loading converted models: safetensors, the source's config and the plan, side by side.

    config.json                        model_type 'cacheshrink_hybrid', digest of the frames' layout
    source_config.json                 the source model's config, as it was
    cacheshrink_plan.json              ranks, widths and read mode of every layer
    model.safetensors (or shards)      weights, every shared tensor once
    modeling_cacheshrink_hybrid.py     what `trust_remote_code=True` runs: an import of this package
    tokenizer files, generation_config.json

A save goes to a temporary directory beside its target and is renamed when it is complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .adapters import refuse_adapters
from .auto import MODEL_TYPE, REMOTE_CODE_NAME, remote_code
from .cache.stored_rows import planned_layout
from .errors import CheckpointError
from .families import model_spec
from .latent_model import PLAN_ATTRIBUTE, latent_model_class, plan_of, source_class_of
from .modules.latent_attention import LatentAttention
from .modules.recurrent_mixer import RecurrentMixer
from .plan import CompressionPlan

FORMAT_VERSION = 2
"""2: a run holds the keys of one head after the other; 1 had them in step, one channel of each."""
CONFIG_NAME = "config.json"
LAYOUT_KEY = "cache_layout"
SOURCE_CONFIG_NAME = "source_config.json"
PLAN_NAME = "cacheshrink_plan.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def save_mla_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    save_directory: str | Path,
    *,
    max_shard_size: str | int = "5GB",
) -> None:
    """Write a converted model, and its tokenizer if there is one, to a directory.

    Raises:
        CheckpointError: if the model is not converted, or the path is a file or another directory
            that was not written by this function.
    """
    save_model(model, save_directory, tokenizer=tokenizer, max_shard_size=max_shard_size)


def save_model(
    model: PreTrainedModel,
    save_directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: str | int = "5GB",
    **kwargs: Any,
) -> None:
    """`save_pretrained` of converted models; see `save_mla_model`."""
    refuse_adapters(model, "saving")
    target = Path(save_directory).resolve()
    plan = plan_of(model)
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        state = kwargs.pop("state_dict", None) or _state_dict(model)
        source_class_of(model).save_pretrained(
            model, draft, state_dict=state, max_shard_size=max_shard_size, **kwargs
        )
        _write_config(draft, model.config, plan)
        (draft / f"{REMOTE_CODE_NAME}.py").write_text(remote_code(), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        draft.chmod(0o755)
        if target.exists():
            old = draft.with_name(f"{draft.name}.old")
            target.rename(old)
            try:
                draft.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every weight under one name, without the source's that `store_original_weights` keeps
    beside those that replaced them."""
    places: tuple[tuple[type, str], ...] = (
        (LatentAttention, "source_attention"),
        (RecurrentMixer, "source_weights"),
    )
    kept = tuple(
        f"{name}.{place}."
        for name, module in model.named_modules(remove_duplicate=False)
        for kind, place in places
        if isinstance(module, kind)
    )
    tied = set(model.all_tied_weights_keys)
    state: dict[str, torch.Tensor] = {}
    stored: set[int] = set()
    # Names that the loader knows to be copies come last, so that their originals are stored.
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: item[0] in tied):
        if name.startswith(kept) or tensor.data_ptr() in stored:
            continue
        state[name] = tensor
        if tensor.numel():
            stored.add(tensor.data_ptr())
    return state


def _check_target(target: Path) -> None:
    if target.is_file():
        raise CheckpointError(f"{target} is a file; give a directory to save to")
    if target.is_dir() and any(target.iterdir()) and not (target / PLAN_NAME).is_file():
        raise CheckpointError(
            f"{target} holds other files, and saving replaces a directory as a whole; give a new "
            "or empty directory, or one that holds a converted model"
        )


def _write_config(directory: Path, source_config: PretrainedConfig, plan: CompressionPlan) -> None:
    path = directory / CONFIG_NAME
    source = json.loads(path.read_text(encoding="utf-8"))
    source.pop(PLAN_ATTRIBUTE, None)
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["CacheShrinkForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{REMOTE_CODE_NAME}.CacheShrinkConfig",
            "AutoModelForCausalLM": f"{REMOTE_CODE_NAME}.CacheShrinkForCausalLM",
        },
        "format_version": FORMAT_VERSION,
        LAYOUT_KEY: _layout_digest(source_config, plan),
        "dtype": source.get("dtype"),
    }
    text = json.dumps(source, indent=2) + "\n"
    (directory / SOURCE_CONFIG_NAME).write_text(text, encoding="utf-8")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    values = json.dumps(plan.to_dict(), indent=2)
    (directory / PLAN_NAME).write_text(values + "\n", encoding="utf-8")


def load_mla_model(
    load_directory: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Read a converted model back, in evaluation mode, and its tokenizer if one was saved.

    Args:
        load_directory: local directory that `save_mla_model` wrote.
        device: where to put the model; None for the CPU.
        dtype: precision; None for that of the checkpoint.

    Raises:
        CheckpointError: no checkpoint of ours, pickled weights, or tensors that are missing, extra,
            torn or of another shape.
    """
    directory = Path(load_directory)
    model = load_model(directory, dtype=dtype if dtype is not None else "auto")
    tokenizer = None
    if (directory / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(directory)
    return (model.to(device) if device is not None else model), tokenizer


def load_model(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """`from_pretrained` of converted models: arguments as in transformers, but strict."""
    directory = Path(path)
    config = source_config(directory)
    _check_weights(directory)
    source_class = AutoModelForCausalLM._model_mapping[type(config)]
    kwargs.pop("config", None)
    kwargs.pop("trust_remote_code", None)
    wants_info = kwargs.pop("output_loading_info", False)
    cls = latent_model_class(source_class)
    try:
        # The class's own from_pretrained leads here, so the one of transformers is called directly.
        model, info = PreTrainedModel.from_pretrained.__func__(
            cls,
            directory,
            config=config,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **kwargs,
        )
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights in {directory} do not fit its plan: {error}; the checkpoint is damaged "
            "or was edited, save it again"
        ) from error
    _check_complete(directory, info)
    return (model, info) if wants_info else model


def source_config(directory: Path):
    """The source model's config with the plan attached.

    Raises:
        CheckpointError: if the directory is no checkpoint of a converted model.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory; give one that save_mla_model wrote")
    try:
        config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
        plan = json.loads((directory / PLAN_NAME).read_text(encoding="utf-8"))
        source = json.loads((directory / SOURCE_CONFIG_NAME).read_text(encoding="utf-8"))
        version = config["format_version"]
        if version != FORMAT_VERSION:
            raise _other_version(directory, version)
        config_class = CONFIG_MAPPING[source["model_type"]]
        loaded = config_class.from_json_file(directory / SOURCE_CONFIG_NAME)
        digest = _layout_digest(loaded, CompressionPlan.from_dict(plan))
        if config[LAYOUT_KEY] != digest:
            raise _other_layout(directory, config[LAYOUT_KEY], digest)
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory} is no checkpoint of a converted model ({type(error).__name__}: {error}); "
            "convert_to_mla makes one from a source model, save_mla_model writes it"
        ) from error
    setattr(loaded, PLAN_ATTRIBUTE, plan)
    return loaded


def _other_version(directory: Path, version: object) -> CheckpointError:
    return CheckpointError(
        f"{directory} has format version {version}; this package reads {FORMAT_VERSION}, "
        "so use the package version that wrote it"
    )


def _layout_digest(config: PretrainedConfig, plan: CompressionPlan) -> str | None:
    layout = planned_layout(model_spec(config), plan)
    return None if layout is None else layout.digest


def _other_layout(directory: Path, saved: object, computed: str | None) -> CheckpointError:
    return CheckpointError(
        f"{directory} was saved with the cache layout {str(saved)[:16]}, and its {PLAN_NAME} and "
        f"{SOURCE_CONFIG_NAME} now give {str(computed)[:16]}: one of them was edited, or this "
        "package lays frames out otherwise than the one that wrote it; restore the files, or load "
        "and save it again with the package that wrote it"
    )


def _check_weights(directory: Path) -> None:
    """Every safetensors file that should be there is there and opens."""
    if (directory / INDEX_NAME).is_file():
        index = json.loads((directory / INDEX_NAME).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    elif (directory / WEIGHTS_NAME).is_file():
        files = [WEIGHTS_NAME]
    else:
        pickles = [p.name for pattern in PICKLE_PATTERNS for p in directory.glob(pattern)]
        found = (
            f"it has pickled weights ({', '.join(pickles)}), which are not read" if pickles else ""
        )
        raise CheckpointError(
            f"{directory} has no {WEIGHTS_NAME}; {found or 'it is incomplete'}; save the model "
            "again with save_mla_model"
        )
    for name in files:
        try:
            with safe_open(directory / name, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{directory / name} cannot be read ({error}); copy the checkpoint again"
            ) from error


def _check_complete(directory: Path, info: dict[str, Any]) -> None:
    faults = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = [str(item) for item in info.get(kind) or []]
        if found:
            shown = ", ".join(sorted(found)[:5]) + (", ..." if len(found) > 5 else "")
            faults.append(f"{len(found)} {kind.replace('_', ' ')} ({shown})")
    if faults:
        raise CheckpointError(
            f"the weights in {directory} do not fit its plan: {'; '.join(faults)}; the checkpoint "
            "is damaged or was edited, save it again"
        )
