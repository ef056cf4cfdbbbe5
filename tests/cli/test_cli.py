"""The console command, run as a user would, on the shipped model and on tiny ones."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cacheshrink_hybrid import load_mla_model
from cacheshrink_hybrid.cli import OUTPUT_CLOSED, PROGRAMS, main, perplexity
from cacheshrink_hybrid.cli.recall import at_chance
from cacheshrink_hybrid.demo import model_path
from tests.families.encoder_configs import tiny_model as encoder_model
from tests.families.tiny_configs import COMMON, tiny_model
from tests.texts import CHAT, TEXTS, chat_tokenizer, word_tokenizer

MODEL = str(model_path())
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model at 4x, through the command line."""
    directory = tmp_path_factory.mktemp("cli") / "small"
    arguments = [MODEL, str(directory), "--num-calibration-samples", "4", "--dtype", "float32"]
    assert main(["convert", *arguments, "--max-calibration-length", "128"]) == 0
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "Return the sum of all items.\n<|endoftext|>\nRaise an error.", encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_explains_itself(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([program, "--help"])
    assert exit_info.value.code == 0
    assert f"cacheshrink-hybrid {program}" in capsys.readouterr().out


def test_export_writes_what_transformers_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "source"
    tiny_model("llama").save_pretrained(source)
    word_tokenizer().save_pretrained(source)
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    few = ["--num-calibration-samples", "4", "--max-calibration-length", "32"]
    method = ["--compression-method", "decoupled_rope", "--compression-ratio", "2"]
    assert main(["convert", str(source), ours, *few, *method]) == 0
    assert main(["export", ours, theirs]) == 0
    assert "saved to" in capsys.readouterr().out
    assert AutoConfig.from_pretrained(theirs).model_type == "deepseek_v3"
    assert len(AutoTokenizer.from_pretrained(theirs)) == len(word_tokenizer())
    assert main(["export", str(source), str(tmp_path / "other")]) == 2
    assert "is not converted" in capsys.readouterr().err


def test_inspect_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text((model_path() / "config.json").read_text())
    assert main(["inspect", str(tmp_path)]) == 0
    assert "768 KV bytes per token" in capsys.readouterr().out


@pytest.mark.parametrize("length", [1, 100_000])
def test_a_reader_that_goes_away_ends_the_program(
    length: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cacheshrink_hybrid.cli.inspect.run", lambda given: print("-" * length))
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert main(["inspect", MODEL]) == OUTPUT_CLOSED
    assert capfd.readouterr().err == ""


def test_other_broken_pipes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(given: object) -> int:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("cacheshrink_hybrid.cli.inspect.run", fail)
    with pytest.raises(BrokenPipeError, match="worker"):
        main(["inspect", MODEL])


def test_inspect_tries_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    AutoConfig.for_model("qwen3", **COMMON).to_json_file(file)
    assert main(["inspect", str(file), "--try-row"]) == 0
    out = capsys.readouterr().out
    assert "qwen3 has a row already. 1 guessed" in out
    assert '    Family(model_type="qwen3", norms=("q_norm", "k_norm"))\n' in out
    assert "computes what the source computes" in out
    AutoConfig.for_model("bloom").to_json_file(file)
    assert main(["inspect", str(file), "--try-row"]) == 2
    assert "biased by distance (ALiBi)" in capsys.readouterr().err


def test_inspect_shows_the_plan(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(converted)]) == 0
    out = capsys.readouterr().out
    assert "absorb" in out
    assert "768 -> 19" in out  # 192 or a little less
    saved = json.loads((converted / "config.json").read_text())["cache_layout"]
    assert f"layout {saved[:16]}" in out


def test_perplexity(converted: Path, text: Path, tmp_path: Path) -> None:
    json_file, plot = tmp_path / "p.json", tmp_path / "p.png"
    arguments = [MODEL, str(converted), "--dtype", "float32", "--text", str(text)]
    files = ["--json", str(json_file), "--plot", str(plot)]
    assert main(["perplexity", *arguments, *files, "--by-position"]) == 0
    first, second = json.loads(json_file.read_text())["models"]
    assert first["ratio"] == 1 and second["ratio"] >= 4
    assert second["perplexity"] == pytest.approx(first["perplexity"], rel=0.2)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_memory(converted: Path, tmp_path: Path) -> None:
    json_file = tmp_path / "m.json"
    arguments = [MODEL, str(converted), "--lengths", "16", "--dtype", "float32"]
    assert main(["memory", *arguments, "--json", str(json_file)]) == 0
    models = json.loads(json_file.read_text())["models"]
    live = [models[name]["per_sequence_length"]["16"] for name in (MODEL, str(converted))]
    assert all(values["live_bytes"] == values["expected_bytes"] for values in live)
    assert live[1]["exact_bytes"] > 0 == live[0]["exact_bytes"]
    assert live[0]["live_bytes"] >= 4 * (live[1]["live_bytes"] - live[1]["exact_bytes"])


def test_recall(converted: Path, tmp_path: Path) -> None:
    json_file = tmp_path / "r.json"
    arguments = [str(converted), "--distances", "64", "--exercises", "2", "--dtype", "float32"]
    assert main(["recall", *arguments, "--json", str(json_file)]) == 0
    measured = json.loads(json_file.read_text())["models"][str(converted)]["64"]
    assert measured["mean"] > 0.8


def test_retrieval(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file = tmp_path / "r.json"
    arguments = [MODEL, str(converted), "--lengths", "320", "--texts", "2", "--questions", "1"]
    arguments += ["--tasks", "needle", "--dtype", "float32", "--json", str(json_file)]
    assert main(["retrieval", *arguments]) == 0
    models = json.loads(json_file.read_text())["models"]
    first, second = (models[name]["results"][0] for name in (MODEL, str(converted)))
    assert (first["task"], first["length"], first["questions"]) == ("needle", 320, 2)
    assert (first["log_probability_change"], first["log_probability_change_error"]) == (0, 0)
    change = second["log_probability"] - first["log_probability"]
    assert second["log_probability_change"] == pytest.approx(change)
    assert second["log_probability_change_error"] > 0
    pairs = zip(first["answers"], second["answers"], strict=True)
    assert all(a["code"] == b["code"] and a["depth"] == b["depth"] for a, b in pairs)
    out = capsys.readouterr().out
    assert f"read exactly by {MODEL}: all keys and values\n" in out
    assert f"read exactly by {converted}: the first 4 and the last 12 tokens\n" in out


def test_retrieval_beyond_the_positions_or_in_other_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "other")
    word_tokenizer().save_pretrained(tmp_path / "other")
    few = ["--texts", "1", "--questions", "1", "--tasks", "needle"]
    assert main(["retrieval", MODEL, "--lengths", "5000", *few]) == 2
    assert "5000 tokens are beyond the 4096 positions of this model; give" in (
        capsys.readouterr().err
    )
    assert main(["retrieval", MODEL, str(tmp_path / "other"), "--lengths", "300", *few]) == 2
    assert "has another tokenizer than" in capsys.readouterr().err
    assert main(["retrieval", str(tmp_path / "other"), *few]) == 2
    assert "has 256 positions, fewer than any usual length; give --lengths" in (
        capsys.readouterr().err
    )


def test_convert_on_chats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "source")
    chat_tokenizer().save_pretrained(tmp_path / "source")
    chats = tmp_path / "chats.jsonl"
    arguments = [str(tmp_path / "source"), str(tmp_path / "small"), "--calibration-chats"]
    chats.write_text("hello")
    assert main(["convert", *arguments, str(chats)]) == 2
    assert f"error: --calibration-chats: line 1 of {chats} is no JSON" in capsys.readouterr().err
    chats.write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(5)))
    assert main(["convert", *arguments, str(chats)]) == 0
    assert f"calibrating on {chats}: 5 sequences" in capsys.readouterr().out
    assert main(["convert", MODEL, str(tmp_path / "other"), *arguments[2:], str(chats)]) == 2
    assert "has no chat template, and conversations take one" in capsys.readouterr().err


def test_convert_on_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder_model("t5").save_pretrained(tmp_path / "source")
    word_tokenizer().save_pretrained(tmp_path / "source")
    path = tmp_path / "pairs.jsonl"
    arguments = [str(tmp_path / "source"), str(tmp_path / "small")]
    few = [*arguments, "--compression-ratio", "2", "--calibration-pairs", str(path)]
    assert main(["convert", *few]) == 2
    assert f"--calibration-pairs: {path} is no file" in capsys.readouterr().err
    path.write_text("\n".join(json.dumps({"de": text, "en": text[:20]}) for text in TEXTS))
    assert main(["convert", *few]) == 2
    assert f"pair 1 of {path} lacks input and target and has de, en" in capsys.readouterr().err
    assert main(["convert", *arguments, "--pair-fields", "de", "en"]) == 2
    assert "--pair-fields are of a file of pairs" in capsys.readouterr().err
    assert main(["convert", *arguments]) == 2
    assert "a file of pairs of texts (--calibration-pairs)" in capsys.readouterr().err
    assert main(["convert", *few, "--pair-fields", "de", "en"]) == 0
    told = capsys.readouterr().out
    assert f"calibrating on pairs of {path}: {len(TEXTS)} sequences" in told
    loaded, tokenizer = load_mla_model(tmp_path / "small")
    given = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    assert loaded.generate(given, max_new_tokens=3, min_new_tokens=3).shape == (1, 4)
    assert main(["inspect", str(tmp_path / "small")]) == 0
    assert "of what the encoder puts out" in capsys.readouterr().out


def test_generate(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(converted), "--prompt", "Return the", "--max-new-tokens", "8"]
    assert main(["generate", *arguments, "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.startswith("Return the")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["perplexity", "no/such/model"], "MODEL: no/such/model does not exist"),
        (["perplexity", MODEL, "--text", "no/such/file"], "is no file"),
        (["inspect", "no/such/model"], "MODEL: no/such/model does not exist"),
        (["convert", MODEL, "out", "--compression-ratio", "0.5"], "must be a finite number >= 1"),
        (["convert", MODEL, "out", "--cache-bits", "3"], "cache_bits=3"),
    ],
)
def test_faults_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_output_names_what_was_calibrated_on(
    converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(converted)]) == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    assert re.fullmatch(
        r"calibrated on python-docs: 4 sequences, 512 tokens; [1-8] exercises in remembering", first
    )
    assert "nats/token on the calibration text itself" in out  # too few sequences to hold any out
    assert max(map(len, out.split("bytes per token")[0].splitlines())) <= 100


def test_perplexity_of_little_text_and_other_tokenizers(
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A change is one of the same tokens, and a few tokens are said to be few."""
    tiny_model("llama").save_pretrained(tmp_path / "other")
    word_tokenizer().save_pretrained(tmp_path / "other")
    file = tmp_path / "p.json"
    arguments = [MODEL, str(tmp_path / "other"), "--text", str(text), "--json", str(file)]
    drawn = []
    monkeypatch.setattr(
        perplexity, "plot_tradeoff", lambda *given, **how: drawn.append((given, how))
    )
    arguments += ["--plot", str(tmp_path / "p.png")]
    assert main(["perplexity", *arguments]) == 0
    first, second = json.loads(file.read_text())["models"]
    assert (first["change_percent"], second["change_percent"]) == (0, None)
    warnings = capsys.readouterr().err
    assert "warning: " + str(tmp_path / "other") + " has another tokenizer than" in warnings
    (((_, shown, _), how),) = drawn
    assert [record["model"] for record in shown] == [MODEL]
    assert how["left_out"] == [str(tmp_path / "other")]
    assert re.search(r"warning: only \d+ tokens were predicted", warnings)


def test_models_of_unknown_families(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are measured beside others, as far as it is known what they cache, and `inspect` says
    what else there is to do with them."""
    name, file, picture = str(tmp_path / "ctrl"), tmp_path / "p.json", tmp_path / "p.png"
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    sizes = {"vocab_size": len(tokenizer), "num_key_value_heads": 4}
    config = AutoConfig.for_model("ctrl", **COMMON | sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(name)
    tokenizer.save_pretrained(name)
    arguments = [name, MODEL, "--text", str(text), "--json", str(file), "--plot", str(picture)]
    assert main(["perplexity", *arguments]) == 0
    first, second = json.loads(file.read_text())["models"]
    assert first["tokens"] > 0
    assert "bytes_per_token" not in first
    assert second["bytes_per_token"] == 768
    assert "no bytes are shown of " + name in capsys.readouterr().err
    assert main(["perplexity", name, *arguments[2:]]) == 2
    assert "nothing to plot" in capsys.readouterr().err
    assert main(["inspect", name, "--try-row"]) == 1
    out = capsys.readouterr().out
    assert "ctrl has no row yet. 1 guessed from its attention, tried on 2 of its 3 layers" in out
    assert (
        '    Family(model_type="ctrl", attention="transformer.h.{}.multi_head_attention", ' in out
    )
    assert "comes nearest, and does not fit: layer 0 (transformer.h.0.multi_head_attention)" in out
    assert main(["inspect", name]) == 2
    error = capsys.readouterr().err
    assert "inspect MODEL --try-row" in error
    assert "model_type='ctrl' is unknown; supported are " in error
    assert "perplexity, recall and generate take" in error
    assert "the recipe 'A model family' in CONTRIBUTING.md" in error
    assert "### A model family" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_recall_at_chance_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert at_chance({64: {"letters": 0.02, "keys": 0.9, "mean": 0.46}, 256: {"keys": 1.0}}) == {
        64: ["letters"]
    }
    broken = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    broken.lm_head.weight.data.normal_()
    broken.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path)
    arguments = ["--distances", "16", "--exercises", "1", "--kinds", "letters"]
    assert main(["recall", str(tmp_path), *arguments]) == 0
    assert "is no better than guessing at letters over 16 tokens" in capsys.readouterr().out
    assert main(["recall", MODEL, *arguments]) == 0
    assert "guessing" not in capsys.readouterr().out


def test_nothing_of_transformers_is_printed(text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", MODEL, "--prompt", "Return", "--max-new-tokens", "2"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("Return")
