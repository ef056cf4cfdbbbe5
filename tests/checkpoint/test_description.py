"""What lies beside weights decides whether a directory is a converted model, and no code of others
is run or asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cacheshrink_hybrid import load_mla_model, save_mla_model
from cacheshrink_hybrid.caches.planned_layout import layout_of
from cacheshrink_hybrid.checkpoint.savable_model import SavableModel
from cacheshrink_hybrid.cli.arguments import load_any
from cacheshrink_hybrid.cli.inspect import read_model
from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.errors import CacheShrinkError, CheckpointError
from tests.families.tiny_configs import tiny_model
from tests.models import pair
from tests.texts import word_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = pair("llama", "auto", ratio=4.0, metric="activation").converted
    save_mla_model(model, word_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_another_layout_is_refused(saved: Path) -> None:
    config = saved / "config.json"
    assert (
        json.loads(config.read_text())["cache_layout"]
        == layout_of(load_mla_model(saved)[0]).layout.digest
    )
    edit_json(config, cache_layout="0" * 64)
    with pytest.raises(CheckpointError, match=r"cache layout 0{16}"):
        load_mla_model(saved)


LOADERS: dict[str, Callable] = {
    "load_mla_model": load_mla_model,
    "any class": SavableModel.from_pretrained,
    "LLM": LLM,
    "commands": lambda path: load_any(
        str(path), device="cpu", dtype="auto", trust_remote_code=False
    ),
    "inspect": lambda path: read_model(str(path), trust_remote_code=False),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("model_type", ["llama", "zebra", None])
def test_a_config_of_another_type(
    model_type: str | None, load: Callable, saved: Path, monkeypatch
) -> None:
    """It still names the code that loads converted models, which nobody is asked to run."""
    edit_json(saved / "config.json", model_type=model_type)
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked on standard input"))
    message = rf"names the model_type {model_type!r} in place of 'cacheshrink_hybrid': .*restore"
    with pytest.raises(CheckpointError, match=message):
        load(saved)


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "inspect"])
def test_code_of_others_is_not_asked_for(name: str, saved: Path, monkeypatch) -> None:
    """Neither of a model nor of a tokenizer; `trust_remote_code=True` runs it."""
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked on standard input"))
    if name != "any class":
        auto_map = {"AutoTokenizer": [None, "code.Tokenizer"]}
        edit_json(saved / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Unheard")
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            LOADERS[name](saved)
    plain = saved / "plain"
    tiny_model("llama").save_pretrained(plain)
    word_tokenizer().save_pretrained(plain)
    auto_map = {"AutoConfig": "code.ZebraConfig"}
    edit_json(plain / "config.json", model_type="zebra", auto_map=auto_map)
    with pytest.raises(CacheShrinkError, match=r"contains custom code|no checkpoint"):
        LOADERS[name](plain)
