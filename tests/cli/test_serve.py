"""The server as a user starts and stops it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx2
import openai
import pytest

from cacheshrink_hybrid.cli import main, serve
from cacheshrink_hybrid.cli.parsers.serve import parser
from cacheshrink_hybrid.conversion.convert import convert_to_mla
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.model.attached_plan import is_converted
from tests.engine.shipped import CHAT_TEMPLATE
from tests.subprocesses import ROOT

MODEL = str(model_path())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MODEL], "is not converted; run cacheshrink-hybrid convert"),
        ([MODEL, "--as-is", "--compression-ratio", "4"], "exclude each other"),
        (["/no/such", "--as-is"], "/no/such does not exist"),
        ([MODEL, "--as-is", "--max-body", "much"], "--max-body: 'much' is no amount"),
        ([MODEL, "--as-is", "--max-body", "0"], "--max-body: 0 must be positive"),
        ([MODEL, "--as-is", "--port", "70000"], "--port: 70000 must be at most 65535"),
        ([MODEL, "--as-is", "--api-key", ""], "--api-key is empty"),
        ([MODEL, "--as-is", "--speculative-config", "5"], "must map num_speculative_tokens"),
        ([MODEL, "--as-is", "--speculative-config", "{"], "is no JSON ("),
        (
            [MODEL, "--as-is", "--speculative-config", '{"num_speculative_tokens": 0}'],
            "num_speculative_tokens=0 must be a whole number >= 1",
        ),
        ([MODEL, "--as-is", "--chat-template", "/no/such"], "--chat-template: "),
        ([MODEL, "--as-is", "--host", "no.such.host"], "no.such.host:8000 cannot be listened on"),
        ([MODEL, "--as-is", "--host", "no.such.host"], "give a --host of this machine"),
        ([MODEL, "--as-is", "--name", " "], "--name: an empty name is none"),
        ([MODEL, "--as-is", "--allow-origin", "chat.example.org"], "give such as https://"),
        ([MODEL, "--as-is", "--allow-origin", "https://a.example/b"], "is no origin"),
        ([MODEL, "--as-is", "--host", "192.0.2.1"], "give a --host of this machine"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", MODEL, "--as-is", "--port", port]) == 2
    told = capsys.readouterr().err
    assert f"127.0.0.1:{port} cannot be listened on" in told
    assert "give another --port" in told and "--host" not in told


def test_one_fault_of_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "/no/such"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/no/such does not exist" in line


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name)
    )
    assert main(["serve", MODEL, "--as-is"]) == 2
    assert "serve needs fastapi, not installed here; pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_converted_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"num_calibration_samples": 2, "max_calibration_length": 64}
    monkeypatch.setattr(serve, "convert_to_mla", partial(convert_to_mla, **short))
    given = parser().parse_args([MODEL, "--compression-ratio", "4"])
    model, tokenizer = serve._model(given)
    assert is_converted(model) and tokenizer is not None


@pytest.mark.slow
def test_from_start_to_sigterm(tmp_path: Path) -> None:
    """An open stream comes to its end after SIGTERM."""
    template = tmp_path / "template.jinja"
    template.write_text(CHAT_TEMPLATE, encoding="utf-8")
    command = ["-m", "cacheshrink_hybrid", "serve", MODEL, "--as-is"]
    command += ["--port", "0", "--name", "small", "--cache-memory", "16MiB", "--dtype", "float32"]
    command += ["--chat-template", str(template)]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CACHESHRINK_API_KEY": "k"}
    process = subprocess.Popen(
        [sys.executable, *command], env=os.environ | own, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = []
        while not lines or lines[-1].get("event") != "serving":
            line = process.stderr.readline()
            assert line, lines
            lines.append(json.loads(line) if line.startswith("{") else {"text": line})
        events = [line["event"] for line in lines if "event" in line]
        assert events == ["loading", "warming up", "serving"]
        url = lines[-1]["url"]
        assert httpx2.get(f"{url}/models").status_code == 401
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        talk = [{"role": "user", "content": "Return"}]
        stream = client.chat.completions.create(
            model="small", messages=talk, max_tokens=200, stream=True, temperature=0
        )
        parts = [next(stream).choices[0].delta.content]
        process.send_signal(signal.SIGTERM)
        parts += [chunk.choices[0].delta.content or "" for chunk in stream]
        assert len("".join(parts)) == 200
        assert process.wait(30) == 0
        rest = [json.loads(line) for line in process.stderr]
        assert [line["event"] for line in rest] == ["request", "stopping", "request", "stopped"]
    finally:
        process.kill()
        process.wait()
