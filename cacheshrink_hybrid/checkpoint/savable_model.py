"""The class of a converted model: its source's, which computes in latents, saves and loads itself.

`LatentLlamaForCausalLM` of `LlamaForCausalLM`.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from ..derived_class import derived_class
from ..errors import CheckpointError
from ..families import model_spec
from ..model.installation import freeze_what_is_fixed
from ..model.latent_model import LatentModel
from .description import check_weights, read_checkpoint
from .files import shown
from .given_config import changed_values, source_of, unfit, with_values
from .load_faults import check_device_map
from .model_class import model_class_of
from .pretrained_arguments import (
    HUB_ARGUMENTS,
    MODEL_ARGUMENTS,
    local_directory,
    refuse_for_saved_models,
    taken,
)
from .save import push_model, save_model

WITH_ENCODER = (
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
"""Where transformers keeps the names of classes of encoder-decoder models."""


class SavableModel(LatentModel):
    """A converted model as its users have it."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs,
    ) -> str | None:
        kwargs |= {"is_main_process": is_main_process, "state_dict": state_dict}
        return save_model(self, save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        return push_model(self, repo_id, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        config: PretrainedConfig | None = None,
        output_loading_info: bool = False,
        verify_weights: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The converted model in a directory, of whatever class: arguments as in transformers, but
        strict.

        Args:
            path: directory that a save wrote, or a name on the Hub.
            config: the source's, or what `AutoConfig` reads from the directory, with other values.
            verify_weights: compare the weights' files with their digests; takes about as long as
                reading them once more.
            kwargs: of `HUB_ARGUMENTS` and `MODEL_ARGUMENTS`, and values of the config by name.

        Returns:
            The model, with `output_loading_info` in a pair with transformers' record of loading.
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
        model_class = savable_class(model_class_of(source))
        try:
            # That class's own is this method, so the one of transformers is called directly.
            model, info = PreTrainedModel.from_pretrained.__func__(
                model_class,
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
                f"the weights in {directory} do not fit its plan: {error}; the checkpoint is "
                "damaged or was edited, save it again"
            ) from error
        if changed and _incomplete(info):
            raise unfit(directory, changed)
        _check_complete(directory, info)
        model.source_name = saved.source_name
        freeze_what_is_fixed(model)
        return (model, info) if output_loading_info else model


@cache
def savable_class(source_class: Any) -> Any:
    """`source_class` as a converted model."""
    cls = derived_class(SavableModel, source_class)
    # By class name, transformers looks up here which models are causal: pipelines, and Trainer,
    # which shifts labels for them. No config has this type, so nothing else finds the entry.
    names = next(
        (table for table in WITH_ENCODER if source_class.__name__ in table.values()),
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    names[f"{cls.__module__}.{cls.__name__}"] = cls.__name__
    return cls


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
