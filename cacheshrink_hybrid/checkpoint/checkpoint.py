"""Saving and loading converted models: safetensors, the source's config and the plan, side by side.

    config.json                        the source's values, model_type 'cacheshrink_hybrid', digests
    cacheshrink_plan.json              ranks, widths and read mode of every layer
    model.safetensors (or shards)      weights, every shared tensor once
    modeling_cacheshrink_hybrid.py     what `trust_remote_code=True` runs: an import of this package
    README.md                          a model card, if there was none
    tokenizer files, generation_config.json

How they replace those of an earlier save: `files`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import CheckpointError, ConfigError
from ..families import model_spec
from ..latents.attention.module import LatentAttention
from ..model.adapters import refuse_adapters
from ..model.installation import freeze_what_is_fixed
from ..model.latent_model import latent_model_class, plan_of, source_class_of
from ..states.mixers.mixer import RecurrentMixer
from .auto_config import CacheShrinkConfig
from .files import CARD_NAME, CONFIG_NAME, check_target, draft_of, shown
from .given_config import changed_values, source_of, unfit, with_values
from .loading import check_device_map, device_fault
from .pretrained_arguments import (
    HUB_ARGUMENTS,
    MODEL_ARGUMENTS,
    local_directory,
    refuse_for_saved_models,
    refuse_for_saving,
    refuse_unknown,
    taken,
)
from .saved_model import check_weights, read_checkpoint, write_description
from .uploads import UPLOAD_ARGUMENTS, check_repository, upload


def save_mla_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    save_directory: str | Path,
    *,
    max_shard_size: str | int = "5GB",
) -> None:
    """Write a converted model, and its tokenizer if there is one, to a directory.

    Files that a save of this function did not write stay as they are; if anything fails, so does
    the model that was there before.

    Raises:
        CheckpointError: if the model is not converted, the path is a file or holds another model,
            or cannot be written to.
    """
    save_model(model, save_directory, tokenizer=tokenizer, max_shard_size=max_shard_size)


def save_model(
    model: PreTrainedModel,
    save_directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: str | int = "5GB",
    token: str | bool | None = None,
    save_peft_format: bool = True,
    save_original_format: bool = True,
    **others: Any,
) -> str | None:
    """`save_pretrained` of converted models; see `save_mla_model`.

    Args:
        is_main_process: whether this process writes; the others return at once.
        state_dict: weights to save in place of the model's, all of them.
        push_to_hub: upload what was saved, to `repo_id` or a repository of the directory's name.
        token: see `uploads.upload`; of use with `push_to_hub` only.
        save_peft_format, save_original_format: as in transformers.
        others: of `UPLOAD_ARGUMENTS`, with `push_to_hub` only; and `save_function`, which
            accelerate's recipes give: weights are written by safetensors whatever it is, as
            transformers does.

    Returns:
        The address of the commit with `push_to_hub`.

    Raises:
        ConfigError: other arguments, or values that a converted model is not saved with.
    """
    refuse_for_saving(others)
    hub = {name: value for name, value in others.items() if name != "save_function"}
    refuse_unknown(
        {name: value for name, value in hub.items() if name not in UPLOAD_ARGUMENTS}
        if push_to_hub
        else hub,
        "save_pretrained of a converted model",
        UPLOAD_ARGUMENTS if push_to_hub else ("push_to_hub=True and what belongs to it",),
    )
    plan = plan_of(model)
    if not getattr(model, "_hf_peft_config_loaded", False):  # transformers saves its own adapters
        refuse_adapters(model, "saving")
    if not is_main_process:
        return None
    target = Path(save_directory).expanduser().resolve()
    hub = {"repo_id": target.name, **hub} if push_to_hub else {}
    if push_to_hub:
        check_repository(hub["repo_id"])
    check_target(target)
    with draft_of(target) as draft:
        kept = model.config.architectures, model.config.dtype
        try:
            source_class_of(model).save_pretrained(
                model,
                draft,
                state_dict=_state_dict(model, state_dict),
                max_shard_size=max_shard_size,
                save_peft_format=save_peft_format,
                save_original_format=save_original_format,
            )
        finally:
            model.config.architectures, model.config.dtype = kept
        if (draft / CONFIG_NAME).is_file():  # transformers saves adapters alone if there are any
            write_description(draft, model, plan, card=not (target / CARD_NAME).exists())
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        written = [str(path.relative_to(draft)) for path in draft.rglob("*") if path.is_file()]
    if not push_to_hub:
        return None
    return upload(target, written, token=token, **hub)


def push_model(model: PreTrainedModel, repo_id: str, **kwargs: Any) -> str:
    """`push_to_hub` of converted models: `save_model` to a directory that is then forgotten.

    Returns:
        The address of the commit.
    """
    with tempfile.TemporaryDirectory() as directory:
        address = save_model(model, directory, push_to_hub=True, repo_id=repo_id, **kwargs)
    assert address is not None
    return address


def _state_dict(
    model: PreTrainedModel, given: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor] | None:
    """Every weight under one name, without the source's that `store_original_weights` keeps
    beside those that replaced them; None for adapters, which transformers picks out itself.

    Raises:
        CheckpointError: if `given` lacks weights of the model or has others.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        return None if given is None else dict(given)
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
    tied = model.all_tied_weights_keys
    state: dict[str, torch.Tensor] = {}
    stored: set[int] = set()
    own = model.state_dict()
    # Names that the loader knows to be copies come last, so that their originals are stored.
    names = [name for name in sorted(own, key=tied.__contains__) if not name.startswith(kept)]
    values = own if given is None else given
    unlike = {n for n in given or () if not n.startswith(kept)} ^ set(names if given else ())
    lacking = {name for name in unlike if name in tied and tied[name] in values}
    if unlike - lacking:
        raise CheckpointError(
            f"state_dict lacks weights of the model or has others ({shown(unlike - lacking)}); "
            "give that of the whole model, unwrapped"
        )
    for name in names:
        tensor = values.get(name)
        same = own[name]
        on_device = same.numel() and same.device.type != "meta"
        copies = tied.get(name) in state or (on_device and same.data_ptr() in stored)
        if tensor is None or copies:
            continue
        state[name] = tensor
        if on_device:
            stored.add(same.data_ptr())
    return state


def load_mla_model(
    load_directory: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Read a converted model back, in evaluation mode, and its tokenizer if one was saved.

    Args:
        load_directory: directory that `save_mla_model` wrote, or a name on the Hub.
        device: where to put the model; None for the CPU.
        dtype: precision; None for that of the checkpoint.
        kwargs: see `load_model`.

    Raises:
        CheckpointError: no checkpoint of ours, pickled weights, or tensors that are missing, extra,
            torn, changed or of another shape.
    """
    where = taken(kwargs, HUB_ARGUMENTS)
    fault = None if str(device) == "meta" else device_fault(device)
    if fault is not None:
        raise ConfigError(f"device {fault}")
    directory = local_directory(load_directory, where)
    if device is not None and torch.device(device).type != "cpu":
        kwargs.setdefault("device_map", device)  # no copy on the way
    trusted = bool(kwargs.pop("trust_remote_code", False))  # None would ask on standard input
    model = load_model(directory, dtype=dtype if dtype is not None else "auto", **kwargs)
    tokenizer = None
    if (directory / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trusted)
    return model, tokenizer


def load_model(
    path: str | Path,
    *,
    config: PretrainedConfig | None = None,
    output_loading_info: bool = False,
    verify_weights: bool = True,
    **kwargs: Any,
) -> Any:
    """`from_pretrained` of converted models: arguments as in transformers, but strict.

    Args:
        path: directory that a save wrote, or a name on the Hub.
        config: the source's, or what `AutoConfig` reads from the directory, with other values.
        verify_weights: compare the weights' files with their digests; takes about as long as
            reading them once more.
        kwargs: of `HUB_ARGUMENTS` and `MODEL_ARGUMENTS`, and values of the config by name.

    Returns:
        The model, with `output_loading_info` in a pair with transformers' record of the loading.
    """
    refuse_for_saved_models(kwargs)
    check_device_map(kwargs.get("device_map"))
    for name in ("trust_remote_code", "code_revision"):
        kwargs.pop(name, None)
    directory = local_directory(path, taken(kwargs, HUB_ARGUMENTS))
    saved = read_checkpoint(directory)
    how = taken(kwargs, MODEL_ARGUMENTS)
    source = with_values(
        copy.deepcopy(saved.config) if config is None else source_of(config), kwargs
    )
    changed = changed_values(saved.config, source)
    if changed and model_spec(source) != model_spec(saved.config):
        raise unfit(directory, changed)
    check_weights(directory, saved.digests, verify_weights)
    cls = latent_model_class(AutoModelForCausalLM._model_mapping[type(source)])
    try:
        # The class's own from_pretrained leads here, so the one of transformers is called directly.
        model, info = PreTrainedModel.from_pretrained.__func__(
            cls,
            directory,
            config=source,
            plan=saved.plan,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **how,
        )
    except (RuntimeError, SafetensorError) as error:
        if changed:
            raise unfit(directory, changed) from error
        raise CheckpointError(
            f"the weights in {directory} do not fit its plan: {error}; the checkpoint is damaged "
            "or was edited, save it again"
        ) from error
    if changed and _incomplete(info):
        raise unfit(directory, changed)
    _check_complete(directory, info)
    model.source_name = saved.source_name
    freeze_what_is_fixed(model)
    return (model, info) if output_loading_info else model


def empty_model(config: CacheShrinkConfig, **kwargs: Any) -> PreTrainedModel:
    """A converted model with random weights, by the plan beside the config that `AutoConfig` read.

    Args:
        kwargs: as `AutoModelForCausalLM.from_config` takes them.
    """
    directory = local_directory(config.name_or_path, taken(kwargs, HUB_ARGUMENTS))
    source = config.source()
    cls = latent_model_class(AutoModelForCausalLM._model_mapping[type(source)])
    return cls._from_config(source, plan=read_checkpoint(directory).plan, **kwargs)


def _incomplete(info: dict[str, Any]) -> list[str]:
    """What of the weights was missing, too much or of another shape."""
    faults = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = [str(item) for item in info.get(kind) or []]
        if found:
            faults.append(f"{len(found)} {kind.replace('_', ' ')} ({shown(found)})")
    return faults


def _check_complete(directory: Path, info: dict[str, Any]) -> None:
    faults = _incomplete(info)
    if faults:
        raise CheckpointError(
            f"the weights in {directory} do not fit its plan: {'; '.join(faults)}; the checkpoint "
            "is damaged or was edited, save it again"
        )
