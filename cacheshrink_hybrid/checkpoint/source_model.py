"""The source of a conversion: loaded by name, path or GGUF file, and refused if its weights are
quantised, since a conversion reads them as numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FineGrainedFP8Config,
    GgufConfig,
    Mxfp4Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import ConfigError, UnsupportedModelError
from ..families import model_spec
from ..spec import ModelSpec
from .files import CONFIG_NAME, shown
from .load_faults import GGUF_SUFFIX, check_device_map, device_fault
from .load_faults import loading as readable
from .model_class import auto_class_of
from .pretrained_arguments import HUB_ARGUMENTS, MODEL_ARGUMENTS, refuse_unknown, taken
from .tokenizer_files import load_tokenizer

SOURCE_ARGUMENTS = (*HUB_ARGUMENTS, *MODEL_ARGUMENTS, "gguf_file")
"""Arguments of `from_pretrained` that a source is loaded with."""
UNPACKED_WHEN_LOADED: dict[str, Any] = {
    "gguf": GgufConfig,
    "mxfp4": Mxfp4Config,
    "fp8": FineGrainedFP8Config,
}
"""Quantisations that transformers undoes while it loads, by their configs' `dequantize`."""


def load_source(
    name: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    check: Callable[[ModelSpec], None] = lambda spec: None,
    check_tokenizer: Callable[[PreTrainedTokenizerBase], None] = lambda tokenizer: None,
    **loading: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A source model in evaluation mode, and its tokenizer unless one is given.

    Weights in GGUF blocks, MXFP4 or FP8 are unpacked, and take as many bytes as those of any model
    in `dtype`.

    Args:
        name: Hub name, local directory, or a GGUF file.
        check: raises if a model of this spec is not wanted, before its weights are loaded.
        check_tokenizer: raises if such a tokenizer is not, before that as well.
        loading: of `SOURCE_ARGUMENTS`.

    Raises:
        ConfigError: another argument; no such model or device.
        UnsupportedModelError: a family that is not supported, or another quantisation. Nothing but
            the config was loaded then.
    """
    refuse_unknown(
        {n: v for n, v in loading.items() if n not in SOURCE_ARGUMENTS},
        "loading a source model",
        SOURCE_ARGUMENTS,
    )
    fault = device_fault(device)
    if fault is not None:
        raise ConfigError(f"device {fault}")
    check_device_map(loading.get("device_map"))
    directory = Path(name) / (loading.get("subfolder") or "")
    _refuse_adapter_directory(directory)
    located = loading.get("gguf_file") or loading.get("subfolder")
    given, (name, file) = name, (name, {}) if located else gguf_location(name)
    loading |= file
    how = taken(loading, MODEL_ARGUMENTS)
    where = {**loading, "trust_remote_code": trust_remote_code}
    with readable(directory if directory.is_dir() else given, loading.get("cache_dir")):
        config = AutoConfig.from_pretrained(name, **where)
        check(model_spec(config))
        method = "gguf" if loading.get("gguf_file") is not None else quantisation_of(config)
        if method is not None:
            if method not in UNPACKED_WHEN_LOADED:
                raise _quantised(str(name), method)
            how["quantization_config"] = UNPACKED_WHEN_LOADED[method](dequantize=True)
        if tokenizer is None:
            tokenizer = load_tokenizer(name, **where)
        check_tokenizer(tokenizer)
        how |= {"auto_class": auto_class_of(config), "dtype": dtype or "auto"}
        model = whole_model(name, **how, **where)
    if device is not None or "device_map" not in how:
        model = model.to(device or "cpu")
    if file:
        model.name_or_path = str(given)
    return model.eval(), tokenizer


def whole_model(
    name: str | Path, *, auto_class: Any = AutoModelForCausalLM, **options: Any
) -> PreTrainedModel:
    """A causal language model all of whose weights are there; transformers fills in random ones.

    Args:
        auto_class: of transformers, that loads it.
        options: of `from_pretrained`.

    Raises:
        ConfigError: weights are missing.
    """
    model, found = auto_class.from_pretrained(name, output_loading_info=True, **options)
    missing = found["missing_keys"]
    if missing:
        raise ConfigError(
            f"{options.get('gguf_file') or name} lacks {len(missing)} weights of a "
            f"{type(model).__name__} ({shown(missing)}), which would be random; give a whole model"
        )
    return model


def check_language_model(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` if a model is of another family, or does not tell next tokens:
    a classifier, or a model without a head."""
    model_spec(model.config)
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head, so it decodes nothing from a "
            "cache and has no next tokens to calibrate on; give the causal language model of its "
            "family (AutoModelForCausalLM)"
        )


def _refuse_adapter_directory(path: Path) -> None:
    """Refuse a directory in which peft has written an adapter and nothing else."""
    settings = path / "adapter_config.json"
    if not settings.is_file() or (path / "config.json").is_file():
        return
    base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    raise UnsupportedModelError(
        f"{path} holds an adapter of peft for the model {base!r}, not a model; load that model, "
        "merge the adapter (PeftModel.from_pretrained(base, directory).merge_and_unload()), and "
        "convert the result"
    )


def gguf_location(name: str | Path) -> tuple[str | Path, dict[str, str]]:
    """Where transformers finds a model: of a GGUF file, or a directory with nothing but one, the
    directory and `gguf_file`.

    Raises:
        ConfigError: a directory with several GGUF files, none of which is the model.
    """
    path = Path(name).expanduser()
    if path.suffix == GGUF_SUFFIX and path.is_file():
        return path.parent, {"gguf_file": path.name}
    if not path.is_dir() or (path / CONFIG_NAME).is_file():
        return name, {}
    files = sorted(file.name for file in path.glob(f"*{GGUF_SUFFIX}"))
    if len(files) > 1:
        raise ConfigError(
            f"{name} holds no {CONFIG_NAME} and several GGUF files ({shown(files)}); give the path "
            "of one of them (or gguf_file=)"
        )
    return path, {"gguf_file": files[0]} if files else {}


def quantisation_of(config: PretrainedConfig) -> str | None:
    """Name of the method that a config says its weights are quantised by; None for none."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    given = settings if isinstance(settings, dict) else vars(settings)
    method = given.get("quant_method", "an unknown method")
    return str(getattr(method, "value", method))


def check_plain_weights(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` if a model's weights are not plain numbers."""
    method = quantisation_of(model.config)
    if method is not None and not _is_unpacked(model):
        raise _quantised(f"this {type(model).__name__}", method)


def _is_unpacked(model: PreTrainedModel) -> bool:
    settings = model.config.quantization_config
    if getattr(settings, "dequantize", False):
        return True
    # transformers unpacks GGUF files of most architectures without saying so in the config.
    is_gguf = quantisation_of(model.config) == "gguf"
    return is_gguf and all(p.is_floating_point() for p in model.parameters())


def _quantised(what: str, method: str) -> UnsupportedModelError:
    if method in UNPACKED_WHEN_LOADED:
        name = UNPACKED_WHEN_LOADED[method].__name__
        remedy = f"load it with quantization_config={name}(dequantize=True), or give its path"
    else:
        remedy = "convert the model that it was made from, or what model.dequantize() gives"
    return UnsupportedModelError(
        f"the weights of {what} are quantised ({method}), and a conversion needs them in floating "
        f"point; {remedy}"
    )


def forget_quantisation(model: PreTrainedModel) -> None:
    """Let a model whose weights were unpacked be one like any other, which can be saved."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    elif hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
