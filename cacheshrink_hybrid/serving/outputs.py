"""The engine's outputs of one HTTP request: of several prompts at once, within a time, as long as
the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any, TypeVar

from starlette.requests import Request

from ..engine import AsyncLLM, RequestOutput, SamplingParams
from ..engine.prompts import Ids
from .admission import Asked
from .faults import CLIENT_GONE, Fault

MOST_UNREAD = 16
"""Outputs that wait for the client; further ones stay in the engine, as tokens."""
Found = TypeVar("Found")


async def while_connected(request: Request, work: Awaitable[Found]) -> Found:
    """What some work gives, unless the client goes away before: then it is cancelled.

    Raises:
        Fault: the client is gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Fault(CLIENT_GONE, "the client went away")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def finished_outputs(
    engine: AsyncLLM, asked: Sequence[Asked], seconds: float
) -> list[RequestOutput]:
    """All continuations of all prompts, in order.

    Raises:
        TimeoutError: they took longer than `seconds`.
        Exception: as of `AsyncLLM.stream`; the other prompts are given up.
    """
    async with asyncio.timeout(seconds):
        found = await _all_of(engine.generate(*one) for one in asked)
    return [output for outputs in found for output in outputs]


async def outputs_as_they_come(
    engine: AsyncLLM, asked: Sequence[Asked], seconds: float
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Outputs for every token, each with the number of its choice. Raises as `finished_outputs`."""
    came: asyncio.Queue[tuple[int, RequestOutput] | Exception | None] = asyncio.Queue(MOST_UNREAD)

    async def follow(first: int, prompt: Ids, params: SamplingParams) -> None:
        async with aclosing(engine.stream(prompt, params)) as stream:
            async for output in stream:
                await came.put((first + output.index, output))

    firsts = accumulate((params.n for _, params in asked), initial=0)

    async def follow_all() -> None:
        end: Exception | None = None
        try:
            async with asyncio.timeout(seconds):
                await _all_of(
                    follow(first, *one) for first, one in zip(firsts, asked, strict=False)
                )
        except Exception as error:  # whoever reads gets it
            end = error
        await came.put(end)

    task = asyncio.ensure_future(follow_all())
    try:
        while (one := await came.get()) is not None:
            if isinstance(one, Exception):
                raise one
            yield one
    finally:
        task.cancel()


async def _all_of(works: Iterable[Coroutine[Any, Any, Found]]) -> list[Found]:
    """What each gives; when one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
