"""Keyword arguments of transformers' `from_pretrained`: which go on, which are refused and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..errors import CheckpointError, ConfigError

HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
"""Where to find the files of a name on the Hub."""
MODEL_ARGUMENTS = (
    "adapter_kwargs",
    "allow_all_kernels",
    "attn_implementation",
    "device_map",
    "disable_mmap",
    "dtype",
    "experts_implementation",
    "generation_config",
    "kernel_config",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "torch_dtype",
    "tqdm_class",
    "use_kernels",
    "use_safetensors",
    "weights_only",
)
"""How to load the weights, of source and converted models alike."""
SAVED_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")

_REFUSED_WHEN_SAVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "variant": ((None, ""), "a converted model is saved in one precision; give dtype"),
    "use_safetensors": ((None, True), "pickled weights are not read"),
    "ignore_mismatched_sizes": ((False,), "loading is strict"),
    "state_dict": ((None,), "weights come from the checkpoint; use model.load_state_dict"),
    "key_mapping": ((None,), "weights have the names that saving gave them"),
    "gguf_file": ((None,), "a converted model is in safetensors"),
    "distributed_config": ((None,), "parallel plans do not know latent projections"),
    "device_mesh": ((None,), "parallel plans do not know latent projections"),
    "tp_plan": ((None,), "parallel plans do not know latent projections"),
    "tp_size": ((None,), "parallel plans do not know latent projections"),
    "quantization_config": ((None,), "latent projections are kept in floating point"),
    "fusion_config": ((None,), "fusions replace modules of the source"),
}

_REFUSED_BY_SAVING: dict[str, tuple[tuple[Any, ...], str]] = {
    "variant": ((None, ""), "a converted model is saved in the precision it has; use model.to()"),
    "distributed_checkpoint": ((False,), "parts are not saved by themselves"),
    "safe_serialization": ((True,), "pickled weights are not written"),
}
"""Argument of `from_pretrained` or `save_pretrained` -> values that ask for nothing, and why others
are refused."""


def taken(kwargs: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of `kwargs` with these names, which are removed from it."""
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def refuse_for_saved_models(kwargs: dict[str, Any]) -> None:
    """Raise `ConfigError` for arguments that a converted model cannot be loaded with, and take
    those away that ask for nothing."""
    faults = _taken_faults(kwargs, _REFUSED_WHEN_SAVED)
    if faults:
        raise ConfigError(
            f"a converted model cannot be loaded with {'; '.join(faults)}; leave it out"
        )


def refuse_for_saving(kwargs: dict[str, Any]) -> None:
    """The same for arguments that a converted model cannot be saved with."""
    faults = _taken_faults(kwargs, _REFUSED_BY_SAVING)
    if faults:
        raise ConfigError(
            f"a converted model cannot be saved with {'; '.join(faults)}; leave it out"
        )


def _taken_faults(
    kwargs: dict[str, Any], refused: Mapping[str, tuple[tuple[Any, ...], str]]
) -> list[str]:
    return [
        f"{name} ({reason})"
        for name, (neutral, reason) in refused.items()
        if name in kwargs and kwargs.pop(name) not in neutral
    ]


def refuse_unknown(kwargs: Mapping[str, Any], what: str, known: Iterable[str]) -> None:
    """Raise `ConfigError` if there are arguments left."""
    if kwargs:
        raise ConfigError(
            f"{what} takes no {', '.join(sorted(kwargs))}; beside its own arguments it takes "
            f"{', '.join(known)}"
        )


def local_directory(name: str | Path, where: dict[str, Any]) -> Path:
    """The directory of a saved model: `name` itself, or what the Hub has under that name.

    Args:
        where: of `HUB_ARGUMENTS`.

    Raises:
        CheckpointError: if there is no such directory.
    """
    subfolder = where.get("subfolder") or ""
    path = Path(name).expanduser()
    if path.is_dir():
        return path / subfolder
    folder = f"{subfolder}/" if subfolder else ""
    options = {n: v for n, v in where.items() if n not in ("subfolder", "proxies")}
    try:
        snapshot = snapshot_download(
            str(name), allow_patterns=[folder + pattern for pattern in SAVED_MODEL_FILES], **options
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} is no directory; give one that save_mla_model wrote, or a name on the Hub "
            f"({str(error).splitlines()[0]})"
        ) from error
    return Path(snapshot) / subfolder
