"""Saving converted models: safetensors, the source's config and the plan, side by side.

    config.json                        the source's values, model_type 'cacheshrink_hybrid', digests
    cacheshrink_plan.json              ranks, widths and read mode of every layer
    model.safetensors (or shards)      weights, every shared tensor once
    modeling_cacheshrink_hybrid.py     what `trust_remote_code=True` runs: an import of this package
    README.md                          a model card, unless there is one of somebody else's
    tokenizer files, generation_config.json

How they replace those of an earlier save: `files`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import CacheShrinkWarning
from ..model.adapters import refuse_adapters
from ..model.attached_plan import plan_of
from ..model.latent_model import source_class_of
from ..plan import CompressionPlan
from .description import write_description
from .files import CARD_NAME, check_target, draft_of
from .model_card import is_own_card
from .pretrained_arguments import refuse_for_saving, refuse_unknown
from .saved_weights import saved_weights, weights_fingerprint, without_broken_conversions
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
    adapters_alone = getattr(model, "_hf_peft_config_loaded", False)  # as transformers saves them
    if not adapters_alone:
        refuse_adapters(model, "saving")
    if not is_main_process:
        return None
    target = Path(save_directory).expanduser().resolve()
    hub = {"repo_id": target.name, **hub} if push_to_hub else {}
    if push_to_hub:
        check_repository(hub["repo_id"])
    check_target(target)
    weights = saved_weights(model, state_dict)
    if weights is not None and not adapters_alone:
        plan = _certified(plan, weights)
    with draft_of(target) as draft:
        kept = model.config.architectures, model.config.dtype
        try:
            with without_broken_conversions(model, weights):
                source_class_of(model).save_pretrained(
                    model,
                    draft,
                    state_dict=weights,
                    max_shard_size=max_shard_size,
                    save_peft_format=save_peft_format,
                    save_original_format=save_original_format,
                )
        finally:
            model.config.architectures, model.config.dtype = kept
        if not adapters_alone:
            write_description(draft, model, plan, card=is_own_card(target / CARD_NAME))
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


def _certified(plan: CompressionPlan, weights: dict[str, torch.Tensor]) -> CompressionPlan:
    """The plan, without its certificate if that was measured on other weights; where some are not
    at hand, they are taken for the same."""
    if plan.certificate is None:
        return plan
    found = weights_fingerprint(weights)
    if found is None or found == plan.certificate.weights:
        return plan
    warnings.warn(
        "the weights, or their type, are not those that the certificate was measured on, so it is "
        "left out of what is saved; `cacheshrink-hybrid perplexity` measures the model as it is",
        CacheShrinkWarning,
        stacklevel=4,
    )
    return replace(plan, certificate=None)
