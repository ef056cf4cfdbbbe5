"""llama.cpp's server in the comparison: how it is started, asked and stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from scripts.compare_serving import main
from scripts.llama_server import CELLS, cache_tokens, llama_server

STAND_IN = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "--kv-unified"
assert given["--cache-type-k"] == given["--cache-type-v"] == "q4_0", given
assert given["--model"].endswith(".gguf") and given["--flash-attn"] == "on"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, {{"status": "ok"}})

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fits = len(sent["prompt"]) + sent["max_tokens"] <= int(given["--ctx-size"])
        whole = sent["ignore_eos"] and not sent["cache_prompt"] and self.path == "/v1/completions"
        told = {{"usage": {{"completion_tokens": sent["max_tokens"]}}}}
        self.answer(200 if fits and whole else 400, told if fits else {{"error": "too long"}})

    def answer(self, status, said):
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-server"
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


def settings(**other: int) -> dict[str, int]:
    return {"num_tokens": 512, "longest": 100, "clients": 16, "threads": 1} | other


def test_it_is_asked_for_all_answers(tmp_path: Path) -> None:
    binary = program(tmp_path, STAND_IN)
    with llama_server(binary, Path("source.gguf"), **settings()) as server:
        assert server.slots == 5
        assert server.serve([[1, 2, 3]] * 7, 20) == 140
        with pytest.raises(RuntimeError, match=r"refused a request: .*too long"):
            server.serve([[1] * 500], 20)
        url = server.url
    with pytest.raises(URLError):
        urlopen(f"{url}/health", timeout=1)


def test_why_it_does_not_start(tmp_path: Path) -> None:
    binary = program(tmp_path, "#!{python}\nraise SystemExit('no such model')\n")
    with (
        pytest.raises(RuntimeError, match="ended with 1: no such model"),
        llama_server(binary, Path("source.gguf"), **settings()),
    ):
        pass
    with (
        pytest.raises(RuntimeError, match="cache of 512 tokens, and a request takes 600"),
        llama_server(binary, Path("source.gguf"), **settings(longest=600)),
    ):
        pass


def test_caches_of_equal_bytes() -> None:
    """32 numbers of q4_0 take 18 bytes."""
    tokens = cache_tokens(1_000_000, 320)
    assert tokens % CELLS == 0
    assert tokens * 320 // 32 * 18 <= 1_000_000 < (tokens + CELLS) * 320 // 32 * 18


def test_both_options_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["source", "converted", "--llama-server", "llama-server"])
    assert "--llama-server and --gguf go together" in capsys.readouterr().err
