"""Results are written whole, or what was there stays."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import main, plots, report
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.errors import CacheShrinkError, OutputError
from cacheshrink_hybrid.writing import write_text


@contextmanager
def little_room(num_bytes: int = 64) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "text": ("a.md", lambda path: write_text(path, "text\n" * 1000)),
    "json": ("a.json", lambda path: report.write_json(path, {"figures": list(range(1000))})),
    "plot": ("a.png", lambda path: plots.plot_losses(path, [{"step": 1, "loss": 2.0}], "title")),
    "svg": ("a.svg", lambda path: plots.plot_losses(path, [{"step": 1, "loss": 2.0}], "title")),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("earlier", [None, "earlier"])
def test_full_disk(name: str, write, earlier: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if earlier is not None:
        path.write_text(earlier)
    write(tmp_path / f"first-{name}")  # imports and caches of matplotlib take room of their own
    before = sorted(tmp_path.iterdir())
    with little_room(), pytest.raises(OutputError, match=r"cannot be written.*free some space"):
        write(path)
    assert sorted(tmp_path.iterdir()) == before
    assert earlier is None or path.read_text() == earlier
    write(path)
    assert path.stat().st_size > 64


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("earlier")
    with pytest.raises(OutputError, match=r"file/a\.md cannot be written"):
        write_text(tmp_path / "file" / "a.md", "text")
    assert (tmp_path / "file").read_text() == "earlier"


def test_program_prints_before_it_writes(tmp_path: Path, capsys) -> None:
    file = tmp_path / "memory.json"
    arguments = ["memory", str(model_path()), "--lengths", "4", "--json", str(file)]
    with little_room():
        assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "KV ratio" in captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {file} cannot be written (")
    assert not list(tmp_path.iterdir())


def test_links_and_devices_are_written_through(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    write_text(link, "text")
    assert link.is_symlink() and target.read_text() == "text"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


def test_other_errors_keep_their_name(tmp_path: Path) -> None:
    assert issubclass(OutputError, CacheShrinkError) and issubclass(OutputError, OSError)
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")
    assert not list(tmp_path.iterdir())
