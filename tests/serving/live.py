"""A server of the shipped model on a free port, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socket import SO_SNDBUF, SOL_SOCKET

import httpx2
import openai

from cacheshrink_hybrid.engine import LLM, AsyncLLM
from cacheshrink_hybrid.serving.app import ServerSettings, make_app
from cacheshrink_hybrid.serving.server import Server, listening_socket
from tests.engine.shipped import shipped_model

NAME = "shipped"


@dataclass(frozen=True)
class Live:
    """A server that runs, and clients of it."""

    llm: LLM
    engine: AsyncLLM
    server: Server
    url: str
    key: str

    def client(self, **settings) -> openai.OpenAI:
        given = {"base_url": f"{self.url}/v1", "api_key": self.key, "max_retries": 0, "timeout": 60}
        return openai.OpenAI(**{**given, "_strict_response_validation": True, **settings})

    def http(self, **settings) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, **settings)


@contextmanager
def live_server(
    *,
    cache_memory: str = "16MiB",
    limits: dict | None = None,
    speculative_config: dict | None = None,
    wait_seconds: float = 60,
    stop_seconds: int = 5,
    send_buffer: int | None = None,
    **settings,
) -> Iterator[Live]:
    """Serve until the block is over; the pool must be empty then.

    Args:
        limits: of the engine's queue.
        speculative_config: of the engine.
        wait_seconds, stop_seconds: of the server.
        send_buffer: bytes that the system takes for a client who does not read.
        settings: of the application.
    """
    model, tokenizer = shipped_model()
    llm = LLM(model, tokenizer, cache_memory=cache_memory, speculative_config=speculative_config)
    engine = AsyncLLM(llm, **(limits or {}))
    settings = {"model": NAME, "api_keys": ("secret",), **settings}
    ready = threading.Event()
    socket = listening_socket("127.0.0.1", 0)
    if send_buffer is not None:
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, send_buffer)
    server = Server(
        make_app(engine, ServerSettings(**settings)),
        wait_seconds=wait_seconds,
        stop_seconds=stop_seconds,
        give_up=engine.close,
        ready=ready.set,
    )
    thread = threading.Thread(target=server.run, args=([socket],), name="server")
    thread.start()
    try:
        assert ready.wait(30)
        url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        yield Live(llm, engine, server, url, "".join(settings["api_keys"][:1]))
    finally:
        server.should_exit = True
        thread.join(30)
        socket.close()
    assert not thread.is_alive()


def until(happens: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)
