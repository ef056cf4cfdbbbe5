"""The program `tasks`: its table and its refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.demo import model_path
from tests.models import pair
from tests.texts import TEXTS, word_tokenizer

MODEL = str(model_path())


@pytest.mark.slow("lm-eval")
def test_the_first_model_beside_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is an extra of its own")
    names = []
    for name, model in zip(("source", "small"), pair("llama", ratio=4.0).both(), strict=True):
        names.append(str(tmp_path / name))
        model.save_pretrained(names[-1])
        word_tokenizer().save_pretrained(names[-1])
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(" ".join(TEXTS[i : i + 14]) for i in range(4)))
    file = tmp_path / "t.json"
    arguments = [*names, "--text", str(text), "--limit", "3", "--json", str(file)]
    assert main(["tasks", *arguments]) == 0
    found = json.loads(file.read_text())["models"]
    first, second = ({(one["task"], one["metric"]): one for one in found[name]} for name in names)
    assert first.keys() == second.keys()
    assert first["last_word", "acc"]["change_error"] == 0
    change = second["last_word", "perplexity"]["value"] - first["last_word", "perplexity"]["value"]
    assert second["last_word", "perplexity"]["change"] == pytest.approx(change)
    assert change != 0
    assert second["last_word", "perplexity"]["change_error"] is None
    assert capsys.readouterr().out.count(names[1]) >= 5
    assert main(["tasks", *arguments, "--tasks", "first_word"]) == 2
    assert "defines no task first_word; it defines last_word" in capsys.readouterr().err


@pytest.mark.parametrize("installed", [True, False])
def test_refused_before_any_work(
    installed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (installed or None) if name == "lm_eval" else found(name),
    )
    text = tmp_path / "text.txt"
    text.write_text("some words")
    arguments = [MODEL, "--folder", str(tmp_path), "--text", str(text)]
    assert main(["tasks", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"--folder: {tmp_path} holds no .yaml file; give a folder with tasks" in error
    assert "--text is of tasks that are made of it, and --folder has others" in error
    assert ("pip install 'cacheshrink_hybrid[lm-eval]'" in error) is not installed
    assert main(["tasks", MODEL, "--folder", str(tmp_path / "none")]) == 2
    assert "none is no folder; give one with YAML files" in capsys.readouterr().err
