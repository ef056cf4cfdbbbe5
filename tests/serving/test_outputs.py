"""Outputs of several prompts, for a client that takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from cacheshrink_hybrid.engine import RequestOutput, SamplingParams
from cacheshrink_hybrid.serving.outputs import MOST_UNREAD, outputs_as_they_come

ASKED = [((1,), SamplingParams()), ((2,), SamplingParams())]


class Endless:
    """An engine that has always one more output.

    Attributes:
        made: how many it was asked for.
        closed: streams that were.
    """

    def __init__(self) -> None:
        self.made = self.closed = 0

    async def stream(self, prompt, params) -> AsyncGenerator[RequestOutput, None]:
        given = {"finished": False, "finish_reason": None, "preemptions": 0}
        try:
            while True:
                self.made += 1
                yield RequestOutput(
                    request_id=0, prompt_ids=prompt, token_ids=(), new_token_ids=(), **given
                )
                await asyncio.sleep(0)
        finally:
            self.closed += 1


def test_what_nobody_takes_is_not_asked_for() -> None:
    async def program() -> None:
        engine = Endless()
        outputs = outputs_as_they_come(engine, ASKED, 60)
        async with aclosing(outputs):
            await anext(outputs)
            for _ in range(200):
                await asyncio.sleep(0)
            assert engine.made <= 1 + MOST_UNREAD + len(ASKED)
            for _ in range(100):
                await anext(outputs)
        while engine.closed < len(ASKED):
            await asyncio.sleep(0)

    asyncio.run(program())


def test_the_time_for_an_answer_is_also_that_of_its_reader() -> None:
    async def program() -> None:
        engine = Endless()
        outputs = outputs_as_they_come(engine, ASKED, 0.05)
        await anext(outputs)
        while engine.closed < len(ASKED):  # though nobody comes for more
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async for _ in outputs:
                pass

    asyncio.run(program())
