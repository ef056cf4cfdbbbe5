"""Load on a server: many clients, requests of mixed lengths, some of which go away.

    python -m scripts.load_server --json load.json
    python -m scripts.load_server --requests 100 --clients 16

Starts `cacheshrink-hybrid serve` on the model that ships with the package (or MODEL), in a process
of its own, and sends it requests over as many connections as there are clients: prompts cut from
held-out documentation, streams and whole answers in turn. First all requests are let end, in
rounds, each with requests of its own, which an engine of the same batch in this process is given
too, before the server and after it in turn. The server is measured by it, by the median over the
rounds: in tokens per second, and per second of the processor, which tells also on a busy machine
what is lost to HTTP. Then others are sent, `--gone` of them by clients that close the connection
on the way.

At the end nothing may run, wait or hold frames but kept prefixes. What comes out: tokens per second
of both, times to the first token and between tokens, and the server's memory along the way; as last
line one JSON object. The clients take processor time too, beside the server: with `--threads` fewer
than the machine has cores they have one of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import held_out_text
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.named_model import load_named
from cacheshrink_hybrid.errors import CacheShrinkError
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import environment

SAMPLES = 8
"""How often the server's memory is looked at in each run."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One request.

    Attributes:
        body: of `/v1/completions`.
        gone_after: events of its stream after which the client goes away (0 for at once); None for
            a client that stays.
    """

    body: dict[str, Any]
    gone_after: int | None = None


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answered, refused, gone: requests by how they ended; a refusal is an error object.
        tokens: of answers that came to their end.
        first, between: seconds to the first event of streams, and between events.
    """

    answered: int = 0
    refused: int = 0
    gone: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def __add__(self, other: Seen) -> Seen:
        return Seen(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Speed:
    """Tokens per second, and per second of the processor."""

    wall: float
    processor: float


def mixed_work(
    count: int, gone: float, seed: int, *, max_prompt: int = 400, max_output: int = 64
) -> list[Work]:
    """Prompts of 10 to `max_prompt` characters, answers of 4 to `max_output` tokens.

    Args:
        gone: share of clients that go away.
    """
    random = np.random.default_rng(seed)
    text = "\n".join(held_out_text())
    work = []
    for number in range(count):
        begin = int(random.integers(len(text) - max_prompt))
        body = {
            "prompt": text[begin : begin + int(random.integers(10, max_prompt + 1))],
            "max_tokens": int(random.integers(4, max_output + 1)),
            "ignore_eos": True,
            "temperature": 0,
            "stream": number % 2 == 0,
        }
        after = int(random.integers(8)) if random.random() < gone else None
        work.append(Work(body=body, gone_after=after))
    return work


async def run_load(
    url: str,
    work: Sequence[Work],
    clients: int,
    *,
    look: Callable[[], None] = lambda: None,
) -> Seen:
    """Send all requests, so many at a time.

    Args:
        look: called `SAMPLES` times on the way.
    """
    seen, left = Seen(), iter(enumerate(work))
    every = max(1, len(work) // SAMPLES)

    async def client() -> None:
        for number, one in left:
            await _send(url, one, seen)
            if number % every == every - 1:
                look()

    await asyncio.gather(*(client() for _ in range(clients)))
    return seen


async def _send(url: str, work: Work, seen: Seen) -> None:
    """One request on a connection of its own."""
    place, began = urlsplit(url), time.perf_counter()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    body = work.body | ({"stream_options": {"include_usage": True}} if work.body["stream"] else {})
    content = json.dumps(body).encode()
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    )
    writer.write(content)
    try:
        await writer.drain()
        if work.gone_after is not None and not (body["stream"] and work.gone_after):
            await asyncio.sleep(0.01 * work.gone_after)
            seen.gone += 1
            return
        status = int((await reader.readline()).split()[1])
        if status != 200:
            answer = await reader.read()
            assert b'"error"' in answer, answer[:200]
            seen.refused += 1
        elif body["stream"]:
            await _follow(reader, work, seen, began)
        else:
            found = re.search(rb'"completion_tokens":\s*(\d+)', await reader.read())
            assert found is not None
            seen.tokens += int(found[1])
            seen.answered += 1
    finally:
        writer.close()


async def _follow(reader: asyncio.StreamReader, work: Work, seen: Seen, began: float) -> None:
    """The events of a stream that was asked for at `began`."""
    last, count, tokens = began, 0, 0
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            seen.tokens += tokens
            seen.answered += 1
            return
        now = time.perf_counter()
        (seen.between if count else seen.first).append(now - last)
        last, count = now, count + 1
        if count == work.gone_after:
            seen.gone += 1
            return
        event = json.loads(line[len(b"data: ") :])
        assert "error" not in event, event
        tokens = event["usage"]["completion_tokens"] if event.get("usage") else tokens
    raise AssertionError("a stream ended without its last event")


async def metrics(url: str) -> dict[str, float]:
    """The server's numbers."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(
        f"GET /metrics HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n".encode()
    )
    lines = (await reader.read()).decode().splitlines()
    writer.close()
    samples = [line.rsplit(" ", 1) for line in lines if line.startswith("cacheshrink_")]
    return {name: float(value) for name, value in samples}


async def leftovers(url: str) -> list[str]:
    """What is still there of requests that are over; the server has a moment to notice."""
    for _ in range(100):
        now = await metrics(url)
        busy = now["cacheshrink_requests_running"] + now["cacheshrink_requests_waiting"]
        of_prefixes = now["cacheshrink_prefix_bytes"] / now["cacheshrink_frame_bytes"]
        if not busy and of_prefixes == now["cacheshrink_frames_held"]:
            return []
        await asyncio.sleep(0.1)
    return [
        f"{busy:.0f} requests run or wait; {now['cacheshrink_frames_held']:.0f} frames are held, "
        f"{of_prefixes:.0f} of them by prefixes"
    ]


@contextmanager
def server(model: str, cache_memory: str, max_batch: int, threads: int):
    """A server in a process of its own, where torch has so many threads: its address and process
    id."""
    command = [sys.executable, "-m", "cacheshrink_hybrid", "serve", model, "--port", "0"]
    command += ["--dtype", "float32", "--cache-memory", cache_memory]
    command += ["--max-batch", str(max_batch)]
    if model == str(model_path()):
        command.append("--as-is")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                break
        else:
            raise SystemExit(f"error: the server of {model} did not start")
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield event["url"].removesuffix("/v1"), process.pid
        process.terminate()
        assert process.wait(60) == 0
        drain.wait(10)
    finally:
        process.kill()


def resident_mib(pid: int) -> float:
    """Memory of a process, on Linux."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _note_memory(found: list[float], pid: int) -> None:
    found.append(resident_mib(pid))


def processor_seconds(pid: int) -> float:
    """Of a process so far, all of its threads, on Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def direct_speed(llm: LLM, work: Sequence[Work]) -> Speed:
    """Of an engine in this process that is given the same requests."""
    wishes = [SamplingParams(max_tokens=w.body["max_tokens"], ignore_eos=True) for w in work]
    prompts = [w.body["prompt"] for w in work]
    llm.reset_prefix_cache()
    began, busy = time.perf_counter(), time.process_time()
    count = sum(len(output.token_ids) for output in llm.generate(prompts, wishes))
    return Speed(count / (time.perf_counter() - began), count / (time.process_time() - busy))


def _row(name: str, seen: Seen, seconds: float) -> dict[str, Any]:
    def times(values: Sequence[float], share: float) -> float:
        return 1000 * float(np.quantile(values, share)) if values else float("nan")

    return {
        "run": name,
        "answered": seen.answered,
        "refused": seen.refused,
        "gone": seen.gone,
        "tokens/s": seen.tokens / seconds,
        "first p50 ms": times(seen.first, 0.5),
        "first p99 ms": times(seen.first, 0.99),
        "between p50 ms": times(seen.between, 0.5),
        "between p99 ms": times(seen.between, 0.99),
    }


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=str(model_path()), metavar="MODEL")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument(
        "--staying", type=int, default=200, help="requests of a round in which all stay"
    )
    parser.add_argument("--rounds", type=int, default=5, help="in which all stay")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--max-batch",
        type=int,
        default=48,
        help="sequences at once; fewer than clients keep it full",
    )
    parser.add_argument("--gone", type=float, default=0.25, help="share of clients that go away")
    parser.add_argument("--max-prompt", type=int, default=400, help="characters of a prompt")
    parser.add_argument("--max-output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--cache-memory", default="64MiB")
    parser.add_argument("--threads", type=int, default=1, help="of torch, server and engine alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    sizes = {"max_prompt": given.max_prompt, "max_output": given.max_output}
    going = mixed_work(given.requests, given.gone, given.seed, **sizes)
    loaded, tokenizer = load_named(given.model)
    llm = LLM(loaded.float(), tokenizer, cache_memory=given.cache_memory, max_batch=given.max_batch)
    memory: list[float] = []
    left: list[str] = []
    served: list[Speed] = []
    direct: list[Speed] = []
    settings = given.cache_memory, given.max_batch, given.threads
    with server(given.model, *settings) as (url, pid):

        def serve(work: Sequence[Work]) -> tuple[Seen, float, float]:
            """What the clients saw, seconds, and seconds of the server's processor."""
            began, busy = time.perf_counter(), processor_seconds(pid)
            look = partial(_note_memory, memory, pid)
            seen = asyncio.run(run_load(url, work, given.clients, look=look))
            seconds = time.perf_counter() - began, processor_seconds(pid) - busy
            left.extend(asyncio.run(leftovers(url)))
            return seen, *seconds

        serve(going[: given.clients])  # warms up
        direct_speed(llm, going[: given.clients])
        all_stay, staying_seconds = Seen(), 0.0
        for number in range(given.rounds):
            work = mixed_work(given.staying, 0.0, given.seed + 1 + number, **sizes)
            if number % 2 == 0:
                direct.append(direct_speed(llm, work))
            seen, seconds, busy = serve(work)
            if number % 2 == 1:
                direct.append(direct_speed(llm, work))
            served.append(Speed(seen.tokens / seconds, seen.tokens / busy))
            all_stay, staying_seconds = all_stay + seen, staying_seconds + seconds
        some_go, going_seconds, _ = serve(going)
    rows = [_row("all stay", all_stay, staying_seconds), _row("some go", some_go, going_seconds)]
    print(format_table(rows))
    pairs = list(zip(served, direct, strict=True))
    share = statistics.median(server.wall / engine.wall for server, engine in pairs)
    processor_share = statistics.median(
        server.processor / engine.processor for server, engine in pairs
    )
    print(
        f"tokens/s of the server and of the engine itself, by round: "
        f"{', '.join(f'{server.wall:.0f} / {engine.wall:.0f}' for server, engine in pairs)}; "
        f"median of the ratios {share:.2f}, and {processor_share:.2f} by processor time"
    )
    print(f"resident memory of the server, MiB: {' '.join(f'{one:.0f}' for one in memory)}")
    for fault in left:
        print(f"error: {fault}", file=sys.stderr)
    result = {
        "program": "load_server",
        **{name: value for name, value in vars(given).items() if name != "json"},
        "model": Path(given.model).name,
        "runs": rows,
        "served": [asdict(one) for one in served],
        "direct": [asdict(one) for one in direct],
        "share": share,
        "share by processor time": processor_share,
        "resident MiB": memory,
        "load average": os.getloadavg(),
        "environment": environment(),
    }
    line = json.dumps(result, default=str)
    if given.json is not None:
        given.json.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 1 if left else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CacheShrinkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
