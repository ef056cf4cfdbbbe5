"""The program of prefix reuse tells what each strategy saves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import main, prefix
from cacheshrink_hybrid.cli.prefix import is_published
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.pool.prefixes.prefill_cost import PrefillCost


def test_cost_is_measured() -> None:
    cost = prefix.measured_cost(LLM(str(model_path()), cache_memory="256MiB", prefix_cache=False))
    assert 0 < cost.seconds(0, 100) < cost.seconds(0, 1000) < 60


@pytest.fixture
def linear_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "measured_cost", lambda llm: PrefillCost())


@pytest.mark.usefixtures("linear_cost")
def test_rows_tables_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "recorded.jsonl"
    entry = {"timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]}
    trace.write_text("\n".join([json.dumps(entry)] * 5))
    where = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "savings.png")]
    where += ["--requests-jsonl", str(tmp_path / "requests.jsonl")]
    where += ["--plot-requests", str(tmp_path / "requests.png")]
    what = ["--workloads", "chats", "--trace", str(trace), "--requests", "30", "--budgets", "9"]
    strategies = ["--placements", "branch", "learned", "--evictions", "lru", "learned"]
    widths = ["--widths", "bf16 states", "int8 states"]
    assert main(["prefix", *what, *strategies, *widths, *where]) == 0
    results = json.loads((tmp_path / "rows.json").read_text())
    rows = results["rows"]
    assert len(rows) == 2 * 2 * 2 * 2
    assert {row["workload"] for row in rows} == {"chats", "recorded"}
    for row in rows:
        assert row["saved_share"] == row["saved_tokens"] / row["asked_tokens"]
        assert row["budget_bytes"] > 0
    (found,) = {row["saved_tokens"] for row in rows if row["workload"] == "recorded"}
    assert found == 3 * 599  # the second request finds the state behind the last token only
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    assert len(requests) == sum(row["requests"] for row in rows) == 8 * (30 + 5)
    for row in rows:
        cell = {name: row[name] for name in ("workload", "width", "placement", "eviction")}
        own = [one for one in requests if cell.items() <= one.items()]
        assert sum(one["hit_tokens"] for one in own) == row["saved_tokens"]
        assert sum(one["prompt_tokens"] for one in own) == row["asked_tokens"]
        assert sum(one["saved_seconds"] for one in own) == pytest.approx(row["saved_seconds"])
        assert Counter(one["reason"] for one in own) == row["reasons"]
        assert {one["budget_bytes"] for one in own} == {row["budget_bytes"]}
    out = capsys.readouterr().out
    assert "beside the best of the others, int8 states" in out
    assert (tmp_path / "savings.png").stat().st_size > 1000
    assert (tmp_path / "requests.png").stat().st_size > 1000


@pytest.mark.usefixtures("linear_cost")
def test_without_ours_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    strategies = ["--placements", "last", "--evictions", "lru", "--budgets", "1"]
    assert main(["prefix", "--workloads", "chats", "--requests", "9", *strategies]) == 0
    assert "beside" not in capsys.readouterr().out


def test_budgets_for_less_than_a_state(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--workloads", "chats", "--requests", "9", "--budgets", "0.0001"]
    assert main(["prefix", *given]) == 2
    assert "give at least" in capsys.readouterr().err


def test_traces_are_read_before_anything_takes_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prefix, "measured_cost", lambda llm: pytest.fail("measured"))
    trace = tmp_path / "torn.jsonl"
    trace.write_text('{"timestamp": 0}\n')
    assert main(["prefix", "--trace", str(trace)]) == 2
    assert "torn.jsonl" in capsys.readouterr().err


def test_what_is_published() -> None:
    rows = [
        {"placement": placement, "eviction": eviction}
        for placement, eviction in (("dp_3", "lru"), ("grid", "lru"), ("dp_3", "learned"))
    ]
    assert [is_published(row) for row in rows] == [True, False, False]


@pytest.mark.usefixtures("linear_cost")
def test_real_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = tmp_path / "system.jsonl"
    texts = ["You are a helpful assistant. " * 12, "Answer in one word, and in French. " * 15]
    system.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    where = ["--json", str(tmp_path / "rows.json"), "--budgets", "3", "--requests", "20"]
    chosen = ["--placements", "learned", "--evictions", "marconi", "lru_cap_2"]
    assert main(["prefix", "--workloads", "--texts", str(system), *chosen, *where]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["workload"] for row in rows] == ["system", "system"]
    assert all(row["saved_share"] > 0.2 for row in rows)


def test_arguments_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = tmp_path / "chats.jsonl"
    twice.write_text('{"text": "one"}\n{"text": "two"}\n')
    wrong = ["--evictions", "lru_cap_0", "--placements", "best", "--beside", "0"]
    assert main(["prefix", "--texts", str(twice), *wrong]) == 2
    lines = capsys.readouterr().err
    for fault in ("--evictions lru_cap_0", "--placements best", "called chats", "--beside"):
        assert fault in lines
