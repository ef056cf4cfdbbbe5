"""The benchmark of drafts: its tasks, and what it tells of them."""

from __future__ import annotations

import json
from pathlib import Path

from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import held_out_text
from scripts import bench_speculation
from scripts.bench_speculation import tasks
from scripts.figures.serving import drafts


def test_a_model_without_a_chat_template_goes_on_with_texts() -> None:
    passage = held_out_text()[0][:80]
    assert tasks(80, None) == {"quote": f"{passage}\n\n{passage[:20]}", "free": passage}
    chats = tasks(80, lambda question: question)
    assert list(chats) == ["edit", "quote", "free"]
    assert str(chats["quote"]).startswith(passage)


def test_what_is_told(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    arguments = [str(model_path()), "--tokens", "2", "--rounds", "1", "--max-tokens", "12"]
    arguments += ["--characters", "120", "--only", "quote", "--json", str(path)]
    assert bench_speculation.main(arguments) == 0
    result = json.loads(path.read_text())
    without, two = result["records"]
    assert (without["task"], without["drafts"], without["accepted"]) == ("quote", 0, None)
    assert without["prompt"] == 120 + 2 + 30 + 1
    assert (without["speed-up"], without["parts at"]) == (1, None)
    assert two["drafts"] == 2
    assert two["speed-up"] > 0
    (line,) = drafts([result]).splitlines()[2:]
    assert line.startswith("| model | quote | 2 | ")
