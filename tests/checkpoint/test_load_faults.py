"""A model that cannot be loaded is refused in one line, and before anything heavy where that can
be told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid import convert_to_mla, load_mla_model
from cacheshrink_hybrid.checkpoint.load_faults import device_fault, first_line, weight_bytes
from cacheshrink_hybrid.cli.arguments import load_any
from cacheshrink_hybrid.errors import ConfigError
from tests.families.tiny_configs import tiny_model
from tests.texts import TEXTS, word_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def cut_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_shapes(model: Path) -> None:
    config = model / "config.json"
    text = config.read_text()
    assert '"hidden_size": 32' in text
    config.write_text(text.replace('"hidden_size": 32', '"hidden_size": 64'))


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def cut_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "lla')


def unknown_type(model: Path) -> None:
    config = model / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"zebra"'))


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


def no_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def gone(model: Path) -> None:
    shutil.rmtree(model)


BROKEN = {
    cut_weights: "cannot be loaded: Error while deserializing",
    other_shapes: "its weights have other shapes than its config.json says",
    no_weights: "cannot be loaded: .*model.safetensors",
    cut_config: "config.json cannot be read as JSON",
    unknown_type: "cannot be loaded: .*zebra",
    broken_tokenizer: "cannot be loaded: ",
    no_tokenizer: "holds no tokenizer",
    gone: "does not exist; give the directory of a model",
}


@pytest.mark.parametrize("program", [True, False], ids=["program", "convert_to_mla"])
@pytest.mark.parametrize(
    ("damage", "match"), BROKEN.items(), ids=[damage.__name__ for damage in BROKEN]
)
def test_broken_model(damage, match: str, program: bool, directory: Path) -> None:
    damage(directory)
    with pytest.raises(ConfigError, match=match) as caught:
        if program:
            load_any(str(directory), device="cpu", dtype="auto", trust_remote_code=False)
        else:
            convert_to_mla(directory, calibration_texts=TEXTS, verbose=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "auto", 77])
def test_devices_of_converted_models(device, directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"device .*; give"):
        load_mla_model(directory, device=device)


@pytest.mark.parametrize("device_map", ["banana", {"": "banana"}, "cuda:99", 77], ids=str)
def test_device_maps_of_sources(device_map, directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"device_map=.*give"):
        convert_to_mla(directory, calibration_texts=TEXTS, device_map=device_map, verbose=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_device_that_is_not_here(device: str, directory: Path) -> None:
    cut_weights(directory)  # it is said before they are read
    with pytest.raises(ConfigError, match=r"device .*; give"):
        convert_to_mla(directory, calibration_texts=TEXTS, device=device, verbose=False)


def test_devices() -> None:
    assert device_fault(None) is device_fault("cpu") is device_fault(torch.device("cpu")) is None


def test_model_with_nothing_to_compress_is_refused_before_its_weights(directory: Path) -> None:
    cut_weights(directory)
    with pytest.raises(ValueError, match="need recurrent states"):
        convert_to_mla(directory, calibration_texts=TEXTS, state_ratio=4.0, verbose=False)


def test_first_line() -> None:
    assert first_line(OSError("No file. Look elsewhere.\nOr not.")) == "No file"
    assert first_line(KeyError()) == "KeyError"


def test_weight_bytes(directory: Path) -> None:
    file = directory / "model.safetensors"
    assert weight_bytes(directory) == weight_bytes(file) == file.stat().st_size
    assert weight_bytes("no/such/model") == 0
