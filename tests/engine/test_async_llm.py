"""Coroutines get what `generate()` gives, and what they give up leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from cacheshrink_hybrid.engine import LLM, AsyncLLM, SamplingParams, async_llm
from cacheshrink_hybrid.engine.ticket import MOST_UNREAD, Ticket
from cacheshrink_hybrid.errors import (
    ConfigError,
    EngineClosedError,
    NotSupportedError,
    QueueFullError,
)
from tests.engine.failures import failing
from tests.engine.idle import assert_idle
from tests.engine.test_llm import MEMORY, model_of, one_by_one, prompts, tokens_of

WISH = SamplingParams(max_tokens=8)
LONG = SamplingParams(max_tokens=200, ignore_eos=True)
SOME = SamplingParams(max_tokens=60, ignore_eos=True)


def engine(case: str = "llama", **settings) -> AsyncLLM:
    return AsyncLLM(LLM(model_of(case), cache_memory=MEMORY, prefill_chunk=6), **settings)


def run(one: AsyncLLM, program: Callable[[], Awaitable[None]]) -> None:
    """A program on an open engine, which is idle when it is closed again."""

    async def opened() -> None:
        async with one, asyncio.timeout(60):
            await program()

    before = set(threading.enumerate())  # a server of other tests has an engine, too
    asyncio.run(opened())
    assert_idle(one.llm)
    assert (one.open.requests, one.open.need_bytes) == (0, 0)
    assert "engine" not in {thread.name for thread in set(threading.enumerate()) - before}


@pytest.mark.parametrize("case", ["llama", "bamba"])
def test_many_at_once_are_those_of_generate(case: str) -> None:
    one = engine(case)
    due = one_by_one(model_of(case), prompts(), 8)

    async def program() -> None:
        async def streamed(prompt: list[int]) -> tuple[int, ...]:
            tokens: list[int] = []
            async for output in one.stream(prompt, WISH):
                assert len(output.new_token_ids) == 1
                tokens += output.new_token_ids
                assert output.token_ids == tuple(tokens)
            assert output.finished
            return output.token_ids

        whole = asyncio.gather(*(one.generate(prompt, WISH) for prompt in prompts()))
        assert await asyncio.gather(*map(streamed, prompts())) == due
        assert tokens_of([outputs[0] for outputs in await whole]) == due

    run(one, program)


def test_continuations_come_in_order() -> None:
    one = engine()
    wish = SamplingParams(n=3, max_tokens=5, temperature=1.0, seed=0)
    due = one.llm.generate(prompts(1), wish)

    async def program() -> None:
        outputs = await one.generate(prompts()[0], wish)
        assert tokens_of(outputs) == tokens_of(due)
        found = {output.index: output async for output in one.stream(prompts()[0], wish)}
        assert tokens_of([found[index] for index in range(3)]) == tokens_of(due)

    run(one, program)


def test_what_is_given_up_gives_its_frames_back() -> None:
    """By closing the stream, by breaking off and by cancelling the task."""
    one = engine()

    async def program() -> None:
        async with aclosing(one.stream(prompts()[0], LONG)) as stream:
            async for _ in stream:
                break
        tasks = [asyncio.ensure_future(one.generate(prompt, LONG)) for prompt in prompts()]
        await asyncio.sleep(0.05)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks[1:])
        assert one.open.requests <= 1
        assert len((await tasks[0])[0].token_ids) == 200
        due = one_by_one(model_of("llama"), prompts(1), 8)
        assert tokens_of(await one.generate(prompts()[0], WISH)) == due

    run(one, program)


def test_refusals_come_to_their_callers() -> None:
    one = engine()

    async def program() -> None:
        with pytest.raises(ConfigError, match="empty"):
            await one.generate([])
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            async for _ in one.stream([10**6]):
                pass
        assert (await one.generate(prompts()[0], WISH))[0].finished

    run(one, program)


@pytest.mark.parametrize("limits", [{"max_open": 2}, {"max_open_bytes": 60_000}])
def test_no_more_is_open_than_may_be(limits: dict) -> None:
    one = engine(**limits)

    async def program() -> None:
        tasks = [asyncio.ensure_future(one.generate(prompt, LONG)) for prompt in prompts()]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Exception)]
        assert 0 < len(refused) < len(tasks)
        assert not isinstance(results[0], Exception)
        for error in refused:
            assert isinstance(error, QueueFullError)
            assert "bytes of the cache" in str(error)
        assert (await one.generate(prompts()[-1], LONG))[0].finished

    run(one, program)


@pytest.mark.parametrize("limits", [{"max_open": 2}, {"max_open_bytes": 60_000}])
def test_what_alone_is_too_much_is_refused_for_good(limits: dict) -> None:
    one = engine(**limits)

    async def program() -> None:
        many = replace(LONG, n=40)
        with pytest.raises(ConfigError, match="the request asks for 40 answers"):
            await one.generate(prompts()[0], many)
        assert one.open.requests == 0
        assert (await one.generate(prompts()[0], LONG))[0].finished

    run(one, program)


def test_a_step_that_fails_ends_those_in_it_and_no_others() -> None:
    one = engine()

    async def program() -> None:
        async def drained(stream: AsyncIterator) -> None:
            async for _ in stream:
                pass

        streams = [one.stream(prompt, LONG) for prompt in prompts(3)]
        for stream in streams:
            await anext(stream)  # so that all are in the next step
        with failing(one.llm.runner.model, RuntimeError("out of memory"), calls=(0,)):
            results = await asyncio.gather(*map(drained, streams), return_exceptions=True)
        assert [str(result) for result in results] == ["out of memory"] * 3
        due = one_by_one(model_of("llama"), prompts(1), 8)
        assert tokens_of(await one.generate(prompts()[0], WISH)) == due

    run(one, program)


def test_closing_ends_what_is_open() -> None:
    one = engine()

    async def program() -> None:
        async with one:
            task = asyncio.ensure_future(one.generate(prompts()[0], LONG))
            other = asyncio.ensure_future(anext(one.stream(prompts()[1], LONG)))
            await other
        with pytest.raises(EngineClosedError):
            await task
        with pytest.raises(EngineClosedError):
            await one.generate(prompts()[0], WISH)
        async with one:  # and may be opened again
            assert (await one.generate(prompts()[0], WISH))[0].finished

    asyncio.run(program())
    assert_idle(one.llm)


@pytest.mark.parametrize("n", [1, 3])
def test_a_slow_caller_has_few_outputs_waiting(n: int) -> None:
    """The others stay in the engine as tokens: each output has all that came before it."""
    one = engine()
    wish = replace(SOME, n=n, temperature=1.0, seed=1)
    due = tokens_of(one.llm.generate(prompts()[0], wish))

    async def computed() -> Ticket:
        (ticket,) = one._tickets
        while not all(request.over for request in ticket.requests):
            await asyncio.sleep(0.01)
        return ticket

    async def program() -> None:
        found: list[list[int]] = [[] for _ in range(n)]
        stream = one.stream(prompts()[0], wish)
        first = await anext(stream)
        found[first.index] += first.new_token_ids
        ticket = await computed()
        assert ticket._outputs.qsize() <= n * MOST_UNREAD
        async for output in stream:
            assert len(output.new_token_ids) == 1
            found[output.index] += output.new_token_ids
        assert [tuple(tokens) for tokens in found] == due
        given_up = one.stream(prompts()[0], wish)
        await anext(given_up)
        await computed()
        assert len(one._news) == n
        await given_up.aclose()
        while one._news:
            await asyncio.sleep(0.01)

    run(one, program)


def test_a_slow_caller_of_an_engine_that_closes() -> None:
    one = engine()

    async def program() -> None:
        async with one:
            stream = one.stream(prompts()[0], LONG)
            await anext(stream)
            (ticket,) = one._tickets
            while ticket.requests[0].num_generated < 40:
                await asyncio.sleep(0.01)
        count = 1
        with pytest.raises(EngineClosedError):
            async for output in stream:
                count += len(output.new_token_ids)
        assert count >= 40

    asyncio.run(program())
    assert_idle(one.llm)


def test_the_engine_is_looked_at_between_steps() -> None:
    one = engine()

    async def program() -> None:
        task = asyncio.ensure_future(one.generate(prompts()[0], LONG))
        await asyncio.sleep(0.05)
        assert (await one.between_steps(lambda: one.llm.statistics)).running == 1
        with pytest.raises(ZeroDivisionError):
            await one.between_steps(lambda: 1 // 0)
        await task

    run(one, program)


def test_others_may_call_the_engine_meanwhile() -> None:
    one = engine()
    due = one_by_one(model_of("llama"), prompts(2), 8)

    async def program() -> None:
        task = asyncio.ensure_future(one.generate(prompts()[0], WISH))
        outputs = await asyncio.to_thread(one.llm.generate, prompts()[1], WISH)
        assert tokens_of(outputs) == due[1:]
        assert tokens_of(await task) == due[:1]

    run(one, program)


def test_logits_that_are_no_numbers_end_one_request(monkeypatch) -> None:
    one = engine()
    prefill = one.llm.runner.prefill
    monkeypatch.setattr(
        one.llm.runner,
        "prefill",
        lambda seq_id, tokens, **settings: (
            prefill(seq_id, tokens, **settings) * (float("nan") if tokens[0] == 5 else 1)
        ),
    )

    async def program() -> None:
        tasks = [asyncio.ensure_future(one.generate([first, 6], WISH)) for first in (4, 5)]
        fine, refused = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(refused, NotSupportedError)
        assert fine[0].finished

    run(one, program)


def test_freed_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps from time to time, and once where nothing is left to do."""
    one, calls = engine(), list[bool]()
    monkeypatch.setattr(async_llm, "RETURN_SECONDS", 0.02)
    monkeypatch.setattr(
        async_llm, "return_freed_memory", lambda: calls.append(one.open.requests > 0)
    )

    async def program() -> None:
        await one.generate(prompts()[0], LONG)
        assert any(calls)
        await asyncio.sleep(0.3)
        idle = len(calls)
        assert not calls[-1]
        await asyncio.sleep(0.2)
        assert len(calls) == idle

    run(one, program)
