"""Whether a model can be loaded, told before any of it is, and in one line when it cannot."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CacheShrinkError, ConfigError
from .files import CONFIG_NAME, PLAN_NAME
from .model_names import is_repo_id

if TYPE_CHECKING:
    import torch

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
GGUF_SUFFIX = ".gguf"
DAMAGED_GGUF = (
    "cannot reshape array",
    "buffer of at least",
    "mmap an empty file",
    "a divisor of the total size",
)
"""Parts of what is said of such files that are cut off, wherever that happens to be noticed."""
JSON_FAULT = "is not a valid JSON file"
PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Names by which transformers spreads a model over devices."""


def is_converted_directory(name: str | Path) -> bool:
    return (Path(name) / PLAN_NAME).is_file()


def model_fault(name: str | Path, cache_dir: str | Path | None = None) -> str | None:
    """What keeps `name`, a directory, a .gguf file or a name on the Hub, from being loaded, as far
    as can be told without loading it; None for nothing.

    Args:
        cache_dir: the Hub's cache, where it is not the usual one.
    """
    path = Path(name)
    if path.is_dir():
        return _directory_fault(path)
    if path.is_file():
        if path.suffix == GGUF_SUFFIX:
            return None
        return f"{name} is a file; give the directory of a model, or a .gguf file"
    if path.suffix == GGUF_SUFFIX or not is_repo_id(str(name)):
        return f"{name} does not exist; give the directory of a model, or a name on the Hub"
    if hub_is_offline() and not _is_cached(str(name), cache_dir):
        return (
            f"{name} is no directory here and not in the cache of the Hub, which cannot be asked "
            "(HF_HUB_OFFLINE is set); give the directory of a model"
        )
    return None


def _directory_fault(path: Path) -> str | None:
    if any(path.glob(f"*{GGUF_SUFFIX}")):
        return None  # its config is in there
    config = path / CONFIG_NAME
    if not config.is_file():
        return f"{path} holds no {CONFIG_NAME}; give the directory of a model"
    return config_fault(config)


def config_fault(config: Path) -> str | None:
    """What keeps a file from being a model's config; None for nothing."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{config} cannot be read as JSON ({first_line(error)}); give a model's own"
    if not isinstance(values, dict):
        return f"{config} holds no settings of a model; give another"
    return None


def hub_is_offline() -> bool:
    """Whether the environment forbids to ask the Hub."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _is_cached(name: str, cache_dir: str | Path | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, CONFIG_NAME, cache_dir=cache_dir), str)


def device_fault(device: str | torch.device | None) -> str | None:
    """Why torch cannot compute on `device`; None if it can."""
    if device is None or str(device) == "cpu":
        return None
    import torch

    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        return f"{device!s} is no torch device; give cpu, cuda or cuda:0"
    if wanted.type == "cpu":
        return None
    known = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if known is None or wanted.type != known.type:
        found = "none but the CPU" if known is None else f"{known.type} and the CPU"
        return f"torch finds no {wanted.type} device here, {found}; give one of these"
    count = torch.accelerator.device_count()
    if wanted.index is not None and wanted.index >= count:
        return f"{device!s} is beyond the {count} devices here; give a number below {count}"
    return None


def check_device_map(device_map: object) -> None:
    """Raise `ConfigError` if a `device_map` of transformers names a device that is not here."""
    devices = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    named = ("disk",) if isinstance(device_map, dict) else PLACEMENTS
    for device in devices:
        if device is None or str(device) in (*named, "meta"):
            continue
        fault = device_fault(device)
        if fault is not None:
            raise ConfigError(f"device_map={device_map!r}: {fault}, or one of {', '.join(named)}")


def weight_bytes(name: str | Path) -> int:
    """Bytes of the weights in a directory or file; 0 where they are not at hand."""
    path = Path(name)
    files = [path] if path.is_file() else path.iterdir() if path.is_dir() else []
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHT_SUFFIXES)


@contextmanager
def loading(name: str | Path, cache_dir: str | Path | None = None) -> Iterator[None]:
    """What transformers raises while it loads model `name`, as a `ConfigError` of one line."""
    fault = model_fault(name, cache_dir)
    if fault is not None:
        raise ConfigError(f"model {fault}")
    from safetensors import SafetensorError

    try:
        yield
    except CacheShrinkError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        SafetensorError,
        RuntimeError,
        struct.error,
    ) as error:
        said = first_line(error)
        if "mismatched_sizes" in said:
            said = f"its weights have other shapes than its {CONFIG_NAME} says"
        damaged = any(words in said for words in DAMAGED_GGUF)
        if JSON_FAULT in said and Path(name).is_file():  # where GGUF is not understood at all
            damaged = True
        if isinstance(error, struct.error) or damaged:
            said = f"its {GGUF_SUFFIX} file is cut off or damaged"
        raise ConfigError(
            f"model {str(name)!r} cannot be loaded: {said}; give the directory of a whole model, "
            "or a name on the Hub"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says first, without its full stop."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line.split(". ")[0].rstrip(".")
