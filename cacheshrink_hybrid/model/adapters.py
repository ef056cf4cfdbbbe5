"""Adapters of peft: refused where weights are rewritten or written out, and where they name modules
that a converted model does not have. On a converted model they act as on any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..errors import ConfigError, UnsupportedModelError
from ..latents.attention.module import LatentAttention

SHOWN_NAMES = 3


def is_of_peft(module: nn.Module) -> bool:
    """Whether a module is one of peft's, which wrap others; peft need not be installed."""
    return any(cls.__module__.partition(".")[0] == "peft" for cls in type(module).__mro__)


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules that adapters of peft wrap or replace."""
    names = [name for name, module in model.named_modules() if is_of_peft(module)]
    return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]


def refuse_adapters(model: nn.Module, purpose: str) -> None:
    """Refuse a model of peft, and a model that carries adapters.

    Args:
        purpose: what it was given for, such as "converting".

    Raises:
        UnsupportedModelError: naming what carries them.
    """
    if is_of_peft(model):
        raise UnsupportedModelError(
            f"{purpose} takes the plain model that this {type(model).__name__} of peft wraps; give "
            "model.merge_and_unload(), or model.unload() to drop the adapter"
        )
    names = adapted_modules(model)
    if names:
        more = len(names) - SHOWN_NAMES
        shown = ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        raise UnsupportedModelError(
            f"the model carries adapters of peft on {shown}, and {purpose} takes models whose "
            "weights are all that there is: load the adapter with PeftModel.from_pretrained(base, "
            "directory) and give what its merge_and_unload() returns"
        )


class AdapterSettings:
    """`peft_config` of a model, as a descriptor: peft assigns it when it has put adapters in, and
    deletes it when it has taken them out."""

    def __get__(self, model: Any, owner: Any = None) -> Any:
        if model is None:
            return self
        try:
            return vars(model)["_peft_config"]
        except KeyError:
            raise AttributeError("peft_config") from None

    def __set__(self, model: Any, configs: dict[str, Any]) -> None:
        faults = _untargeted(model, configs)
        if faults:
            _take_out(model, set(faults))
            for adapter in faults:
                del configs[adapter]
            raise ConfigError("; ".join(faults.values()))
        vars(model)["_peft_config"] = configs

    def __delete__(self, model: Any) -> None:
        vars(model).pop("_peft_config", None)


def _untargeted(model: nn.Module, configs: dict[str, Any]) -> dict[str, str]:
    """What is wrong with adapters that are meant for projections which conversion has replaced, and
    that do not name what stands in their place.

    Args:
        configs: of peft, by the adapters' names, with the modules that they are for.
    """
    faults = {}
    for adapter, config in configs.items():
        if getattr(config, "target_modules", None) is None:
            continue
        missing: set[str] = set()
        there: set[str] = set()
        for path, module in model.named_modules():
            if isinstance(module, LatentAttention):
                old = set(_targeted(config, path, module.replaced_names))
                if old and not any(_targeted(config, path, module.new_names)):
                    missing |= old
                    there |= set(module.new_names)
                    there |= set(_targeted(config, path, ("q_proj", "o_proj")))
        if missing:
            faults[adapter] = (
                f"adapter {adapter!r} has target_modules for {', '.join(sorted(missing))}, which "
                "the attention of a converted model does not have: keys and values come from "
                "kv_a_proj (hidden state to latent), k_b_proj and v_b_proj (latent to both), and "
                "where tokens stay exact from kv_proj; give "
                f"target_modules={sorted(there)}, or 'all-linear'. An adapter that was trained on "
                "the source belongs into the source's weights before these are converted"
            )
    return faults


def _targeted(config: Any, path: str, names: tuple[str, ...]) -> Iterator[str]:
    """Which of these children of a module at `path` a config of peft is for."""
    from peft.tuners.tuners_utils import check_target_module_exists

    return (name for name in names if check_target_module_exists(config, f"{path}.{name}"))


def _take_out(model: Any, adapters: set[str]) -> None:
    """Leave these adapters out of a model again. peft has frozen its weights meanwhile."""
    for path, module in list(model.named_modules()):
        if not (is_of_peft(module) and hasattr(module, "base_layer")):
            continue
        for adapter in adapters & module._get_available_adapters():
            module.delete_adapter(adapter)
        if not module._get_available_adapters():
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.base_layer)
    if "_peft_config" not in vars(model):
        model._hf_peft_config_loaded = False
