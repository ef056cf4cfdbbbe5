"""The allocator program says why there is nothing to compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import allocator, main


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "POOL_SIZES", (100,))


def test_nobody_waited(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(
        allocator, "plot_bars", lambda path, groups, *_, zero: drawn.append((groups, zero))
    )
    arguments = ["--requests", "2", "--traces", "chat", "--output", str(tmp_path)]
    assert main(["allocator", *arguments, "--models", "Jamba-v0.1"]) == 0
    out = capsys.readouterr().out
    assert "nobody waited" in out and "give more --requests" in out
    assert "nobody waited" in (tmp_path / "allocator.md").read_text()
    ((groups, zero),) = drawn
    assert zero == "nobody waited"
    assert 0.0 in groups["Jamba-v0.1"].values()


def test_some_waited(tmp_path: Path, capsys) -> None:
    arguments = ["--requests", "20", "--concurrency", "2", "--traces", "churn"]
    where = ["--models", "Jamba-v0.1", "--output", str(tmp_path)]
    assert main(["allocator", *arguments, *where]) == 0
    assert "| nobody waited" not in capsys.readouterr().out
    assert (tmp_path / "allocator.png").stat().st_size > 1000
