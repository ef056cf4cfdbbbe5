"""llama.cpp's own server as a peer: started with a quantized cache of so many bytes, and asked
through its OpenAI route."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE_TYPE = "q4_0"
BITS_PER_NUMBER = 4.5
"""Of that type: 32 numbers of 4 bits, and a scale of 16."""
CELLS = 256
"""Of which multiples make a context."""


class LlamaServer:
    """A server that runs.

    Args:
        url: of it.
        slots: requests that it computes at once.
    """

    def __init__(self, url: str, slots: int) -> None:
        self.url, self.slots = url, slots

    def serve(self, prompts: Sequence[Sequence[int]], num_new: int) -> int:
        """Answer all prompts, given at once, with `num_new` tokens each; tokens that came.

        Raises:
            RuntimeError: a request was refused.
        """
        with ThreadPoolExecutor(len(prompts)) as clients:
            return sum(clients.map(lambda prompt: self._answer(prompt, num_new), prompts))

    def _answer(self, prompt: Sequence[int], num_new: int) -> int:
        body = {
            "prompt": list(prompt),
            "max_tokens": num_new,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return int(json.load(answer)["usage"]["completion_tokens"])
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"llama-server refused a request: {error.read()[:200]!r}") from error


def cache_tokens(cache_bytes: int, num_numbers: int) -> int:
    """Tokens of a context that takes at most so many bytes.

    Args:
        num_numbers: that the source caches of one token.
    """
    fitting = int(cache_bytes / (num_numbers * BITS_PER_NUMBER / 8))
    return fitting // CELLS * CELLS


@contextmanager
def llama_server(
    binary: Path, gguf: Path, *, num_tokens: int, longest: int, clients: int, threads: int
) -> Iterator[LlamaServer]:
    """Run it until the block is over, on a free port of this machine.

    Args:
        num_tokens: of the cache, which all requests share.
        longest: tokens of a request.
        clients: most requests at once.

    Raises:
        RuntimeError: it does not start, or a request does not fit.
    """
    slots = min(clients, num_tokens // longest)
    if slots < 1:
        raise RuntimeError(
            f"llama-server has a cache of {num_tokens} tokens, and a request takes {longest}; let "
            "more requests fit (--fit)"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options: dict[str, Any] = {
        "--model": gguf,
        "--host": "127.0.0.1",
        "--port": port,
        "--ctx-size": num_tokens,
        "--parallel": slots,
        "--cache-type-k": CACHE_TYPE,
        "--cache-type-v": CACHE_TYPE,
        "--flash-attn": "on",
        "--threads": threads,
        "--cache-ram": 0,
    }
    command = [str(binary), "--kv-unified", *(str(x) for pair in options.items() for x in pair)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            yield LlamaServer(url, slots)
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen, url: str, log: Any, seconds: float = 120.0) -> None:
    """Until the model is loaded."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()[-3:]
    state = "did not answer" if process.poll() is None else f"ended with {process.returncode}"
    raise RuntimeError(f"llama-server {state}: {' | '.join(said)[:400]}")
