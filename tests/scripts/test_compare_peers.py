"""The comparison from a folder and two texts to a table and a picture, and how it goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cacheshrink_hybrid.demo.corpus import held_out_text, training_text
from cacheshrink_hybrid.errors import ConfigError
from scripts import compare_peers
from scripts.compare_peers import main
from scripts.figures.peers import methods_table
from scripts.peers import lineup
from scripts.peers.lineup import all_methods, chosen
from tests.real_model import real_model_folder
from tests.scripts.peers.small_llama import small_llama
from tests.texts import TEXTS, word_tokenizer

pytestmark = pytest.mark.slow(group="compare_peers")

CHOSEN = ["ours*", "int4*", "kivi_4bit residual 32*", "quanto_4bit", "llama.cpp q4_0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model and two texts."""
    place = tmp_path_factory.mktemp("peers")
    small_llama().save_pretrained(place / "model")
    word_tokenizer().save_pretrained(place / "model")
    (place / "test.txt").write_text(" ".join(TEXTS))
    (place / "valid.txt").write_text(" ".join(reversed(TEXTS)))
    return place


def arguments(place: Path, **changed: str) -> list[str]:
    flags = {
        "text": str(place / "test.txt"),
        "calibration": str(place / "valid.txt"),
        "json": str(place / "out" / "peers.json"),
        "windows": "2",
        "window-length": "128",
        "chunk-length": "32",
        "calibration-samples": "4",
        "calibration-length": "64",
        "tuning-steps": "4",
        "threads": "1",
    } | {name.replace("_", "-"): value for name, value in changed.items()}
    given = [str(place / "model"), "--ratios", "2", "8", "--methods", *CHOSEN]
    return given + [word for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def results(place: Path) -> Path:
    """The results of a whole run, in which no package of a peer is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_peers, "installed", lambda method: None)
        assert main(arguments(place)) == 0
    return place / "out" / "peers.json"


def records_of(file: Path) -> dict[str, dict]:
    return {record["method"]: record for record in json.loads(file.read_text())["records"]}


def test_every_chosen_method_has_a_record(results: Path) -> None:
    records = records_of(results)
    names = [m.name for m in chosen(all_methods([2, 8]), CHOSEN)]
    assert list(records) == names
    assert {"source", "ours 2x", "ours 8x", "llama.cpp f16"} <= set(names)
    for name in ("ours 2x", "int4_per_token_head read", "kivi_4bit residual 32 raw"):
        assert len(records[name]["losses"]) == 2
        assert records[name]["standard_error"] >= 0
    assert records["source"]["increase_percent"] == 0
    assert records["source"]["bytes_per_token"]["8192"] == 5 * 2 * 32 * 2
    assert records["quanto_4bit"]["left_out"] == "not installed: pip install optimum-quanto==0.2.7"
    assert "pip install llama-cpp-python" in records["llama.cpp q4_0"]["left_out"]


def test_our_bytes_are_those_of_the_plan(results: Path) -> None:
    """At 8x, and with exact tokens, which a default may keep, not more than the source has."""
    records = records_of(results)
    for ratio in (2, 8):
        sizes = records[f"ours {ratio}x"]["bytes_per_token"]
        exact = records[f"ours {ratio}x"]["exact_bytes_per_token"]
        rows = sizes["8192"] - exact["8192"]
        assert rows <= 5 * 2 * 32 * 2 / ratio
        assert rows > 0.9 * 5 * 2 * 32 * 2 / ratio


def test_fine_tuning_changes_what_is_read_and_no_byte(results: Path) -> None:
    records = records_of(results)
    plain, tuned = records["ours 8x"], records["ours 8x fine-tuned"]
    assert "ours 2x fine-tuned" not in records
    assert tuned["held"] == plain["held"]
    assert tuned["losses"] != plain["losses"]


def test_table_and_picture(results: Path) -> None:
    table = results.with_suffix(".md").read_text()
    assert table == methods_table([json.loads(results.read_text())]) + "\n"
    assert "| **ours 8x** |" in table
    assert "- quanto_4bit: not installed: pip install optimum-quanto==0.2.7" in table
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_measures_what_is_missing(results: Path, place: Path, monkeypatch) -> None:
    measured = []
    plain = compare_peers.measured

    def seen(begin, windows, chunk_length):
        measured.append(begin)
        return plain(begin, windows, chunk_length)

    monkeypatch.setattr(compare_peers, "measured", seen)
    monkeypatch.setattr(compare_peers, "installed", lambda method: None)
    here = {"commit": "one", "modified": False}
    monkeypatch.setattr(compare_peers, "environment", lambda: dict(here))
    known = json.loads(results.read_text())
    for record in known["records"]:
        record["commit"] = "one"
    half = place / "half.json"
    half.write_text(json.dumps(known | {"records": known["records"][:-4]}))
    left = [r for r in known["records"][-4:] if "losses" in r]
    assert left
    assert main(arguments(place, json=str(half))) == 0
    assert len(measured) == len(left)
    assert set(records_of(half)) == set(records_of(results))
    measured.clear()
    here["commit"] = "another"
    assert main(arguments(place, json=str(half))) == 0
    assert len(measured) == 5  # ours at two ratios in two kinds, and one of them fine-tuned
    assert records_of(half)["ours 2x"]["commit"] == "another"
    assert records_of(half)["source"]["commit"] == "one"


def test_losses_are_the_same_whoever_is_measured_before(results: Path, place: Path) -> None:
    """The source model is left as it was by conversions and by attention with a window."""
    alone = place / "alone.json"
    given = arguments(place, json=str(alone))
    given[given.index("--methods") + 1 : given.index("--methods") + 1 + len(CHOSEN)] = ["int4* raw"]
    assert main(given) == 0
    name = "int4_per_token_head raw"
    assert records_of(alone)[name]["losses"] == pytest.approx(records_of(results)[name]["losses"])


FAULTS = {
    "other settings": ({"chunk_length": "16"}, r"results of other settings \(chunk_length\)"),
    "short text": ({"windows": "90", "json": "new.json"}, "need 11520; give a longer text"),
    "odd chunks": ({"chunk_length": "128", "json": "new.json"}, "no even number of chunks"),
    "no text": ({"text": "nothing.txt"}, "nothing.txt cannot be read"),
    "no results": ({"json": "test.txt"}, "holds no results of this program"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_in_a_line(fault: str, results: Path, place: Path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    changed, said = FAULTS[fault]
    assert main(arguments(place, **changed)) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error: ")]
    assert re.search(said, line)


def test_unknown_methods_are_refused() -> None:
    methods = all_methods([4])
    with pytest.raises(ConfigError, match=r"no method is called zebra\*; known are source"):
        chosen(methods, ["ours*", "zebra*"])
    names = [method.name for method in methods]
    assert len(set(names)) == len(names)
    assert {m.base for m in methods} <= set(names)


def test_packages_are_pinned() -> None:
    for method in all_methods([4]):
        assert method.package is None or "==" in method.package
    assert lineup.installed(all_methods([4])[0]) is None


@pytest.mark.real_model
def test_the_real_model_on_documentation(tmp_path: Path) -> None:
    """At 4x ours loses less than a good format of 4 bits, in fewer bytes."""
    (tmp_path / "test.txt").write_text("\n\n".join(held_out_text()))
    (tmp_path / "valid.txt").write_text("\n\n".join(training_text()))
    given = [str(real_model_folder()), "--methods", "ours 4x", "int4* read", "--threads", "1"]
    given += ["--text", str(tmp_path / "test.txt"), "--calibration", str(tmp_path / "valid.txt")]
    given += ["--windows", "1", "--window-length", "512", "--ratios", "4"]
    given += ["--calibration-samples", "12", "--calibration-length", "256"]
    assert main([*given, "--json", str(tmp_path / "peers.json")]) == 0
    records = records_of(tmp_path / "peers.json")
    ours, int4 = records["ours 4x"], records["int4_per_token_head read"]
    assert 5 < records["source"]["perplexity"] < 40
    assert int4["bytes_per_token"]["8192"] == 6480
    assert ours["bytes_per_token"]["8192"] < 6000
    assert ours["increase_percent"] < int4["increase_percent"]
