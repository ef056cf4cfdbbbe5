"""Every caller gets the outputs of its own requests, whoever makes the steps; what fails, stops or
is lost takes nobody along and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import NotSupportedError, SequenceError
from tests.dispatch import run_references
from tests.engine.failures import failing
from tests.engine.idle import assert_idle
from tests.engine.test_kernel_decoding import model_of as kernel_model_of
from tests.engine.test_llm import MEMORY, model_of, one_by_one, prompts, tokens_of

WISH = SamplingParams(max_tokens=8)


def engine(case: str = "llama", **settings) -> LLM:
    return LLM(model_of(case), **{"cache_memory": MEMORY, "prefill_chunk": 6, **settings})


def due(count: int, max_tokens: int = 8, case: str = "llama") -> list[tuple[int, ...]]:
    return one_by_one(model_of(case), prompts(count), max_tokens)


def collected(llm: LLM) -> dict:
    """Tokens of each request of `add_request`, in pieces as they come."""
    found: dict = {}
    while llm.has_requests:
        for output in llm.step():
            found.setdefault(output.request_id, []).extend(output.new_token_ids)
    return found


# Owners


def test_streams_side_by_side() -> None:
    llm = engine()
    streams = [llm.stream(prompt, WISH) for prompt in prompts(4)]
    found: list[list[int]] = [[] for _ in streams]
    for parts in zip(*streams, strict=True):
        for tokens, part in zip(found, parts, strict=True):
            assert len(part.new_token_ids) == 1
            tokens.extend(part.new_token_ids)
            assert part.token_ids == tuple(tokens)
            assert part.finished == (len(tokens) == 8)
    assert [tuple(tokens) for tokens in found] == due(4)
    assert_idle(llm)


def test_a_stream_that_others_have_finished() -> None:
    llm = engine()
    stream = llm.stream(prompts()[1], WISH)
    assert tokens_of(llm.generate(prompts(1), SamplingParams(max_tokens=30))) == due(1, 30)
    parts = list(stream)
    assert [len(part.new_token_ids) for part in parts] == [1] * 8
    assert [part.finished for part in parts] == [False] * 7 + [True]
    assert parts[-1].token_ids == due(2)[1]
    assert list(stream) == []
    assert_idle(llm)


def test_queued_requests_beside_generate_and_streams() -> None:
    llm = engine()
    llm.add_request(prompts()[0], WISH, request_id="a")
    llm.add_request(prompts()[1], SamplingParams(max_tokens=20), request_id="b")
    for _ in llm.stream(prompts()[2], SamplingParams(max_tokens=4)):
        llm.generate(prompts()[3], SamplingParams(max_tokens=2))
    assert llm.has_requests
    first = llm.step()
    assert {output.request_id for output in first} == {"a", "b"}
    found = {output.request_id: list(output.new_token_ids) for output in first}
    for name, tokens in collected(llm).items():
        found[name] += tokens
    assert tuple(found["a"]) == due(1)[0]
    assert tuple(found["b"]) == due(2, 20)[1]
    assert_idle(llm)


def test_a_finished_request_keeps_its_id_until_it_is_collected() -> None:
    llm = engine()
    llm.add_request(prompts()[0], WISH, request_id=0)
    llm.generate(prompts()[1], SamplingParams(max_tokens=12))
    with pytest.raises(SequenceError, match="request id 0 is in use"):
        llm.add_request(prompts()[0], WISH, request_id=0)
    with pytest.raises(SequenceError, match="may have finished"):
        llm.abort(0)
    assert [output.finished for output in llm.step()] == [True]
    llm.add_request(prompts()[0], WISH, request_id=0)
    assert tuple(collected(llm)[0]) == due(1)[0]


def test_one_token_each() -> None:
    llm = engine()
    wish = SamplingParams(max_tokens=1)
    assert [len(part.token_ids) for part in llm.stream(prompts()[0], wish)] == [1]
    assert tokens_of(llm.generate(prompts(3), wish)) == due(3, 1)
    assert_idle(llm)


# Aborts


@pytest.mark.parametrize("read", [0, 1, 3])
def test_an_aborted_stream_ends(read: int) -> None:
    llm = engine()
    stream = llm.stream(prompts()[0], SamplingParams(max_tokens=40))
    for _ in range(read):
        next(stream)
    aborted = llm.abort(stream.request_id)
    assert (aborted.finished, aborted.finish_reason) == (True, "abort")
    (last,) = list(stream)
    assert (last.finished, last.finish_reason, len(last.token_ids)) == (True, "abort", read)
    assert list(stream) == []
    assert_idle(llm)


def test_an_aborted_request_within_generate() -> None:
    llm = engine()
    other = threading.Thread(target=llm.abort, args=[1])

    def abort_in_step_three(*_: object) -> None:
        if llm.statistics.steps == 3 and other.ident is None:
            other.start()

    hook = llm.runner.model.register_forward_pre_hook(abort_in_step_three)
    outputs = llm.generate(prompts(3), SamplingParams(max_tokens=20))
    hook.remove()
    other.join()
    assert [output.finish_reason for output in outputs] == ["length", "abort", "length"]
    assert outputs[0].token_ids == due(1, 20)[0]
    assert due(2, 20)[1][: len(outputs[1].token_ids)] == outputs[1].token_ids
    assert_idle(llm)


def test_aborts_of_waiting_and_preempted_requests() -> None:
    llm = engine(cache_memory=12_000, max_batch=3)
    wish = SamplingParams(max_tokens=30)
    for number, prompt in enumerate(prompts(5)):
        llm.add_request(prompt, wish, request_id=number)
    while not llm.statistics.preemptions:
        llm.step()
    preempted = next(r for r in llm._scheduler.requests if r.preemptions)
    waiting = llm._scheduler.requests[-1]
    for request in (preempted, waiting):
        assert llm.abort(request.request_id).finish_reason == "abort"
    found = collected(llm)
    assert preempted.request_id not in found or waiting.request_id not in found
    for number, tokens in enumerate(due(5, 30)):
        if number not in (preempted.request_id, waiting.request_id):
            assert tokens[-len(found[number]) :] == tuple(found[number])
    assert_idle(llm)


# Streams that are left


@pytest.mark.slow
def test_streams_that_are_lost_or_closed() -> None:
    llm = engine()
    for end in ("close", "lose", "never started", "body fails"):
        stream = llm.stream(prompts()[0], SamplingParams(max_tokens=40))
        if end != "never started":
            next(stream)
        if end == "body fails":
            with pytest.raises(ZeroDivisionError):
                for _ in stream:
                    raise ZeroDivisionError
        if end == "close":
            stream.close()
            stream.close()
            assert list(stream) == []
        del stream
        gc.collect()
        assert_idle(llm)


def test_a_stream_closed_in_another_thread() -> None:
    llm = engine()
    stream = llm.stream(prompts()[0], SamplingParams(max_tokens=60))
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stream.close).result()
    assert list(stream) == []
    assert_idle(llm)


def test_a_stream_closed_while_another_thread_reads_it() -> None:
    llm = engine()
    stream = llm.stream(prompts()[0], SamplingParams(max_tokens=100))
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, stream)
        stream.close()
        assert len(rest.result(timeout=20)) < 99
    assert_idle(llm)


def test_a_stream_lost_within_a_step_goes_after_it() -> None:
    """Garbage is collected anywhere."""
    llm = engine()
    streams = [llm.stream(prompts()[0], SamplingParams(max_tokens=40))]
    hook = llm.runner.model.register_forward_pre_hook(lambda *_: streams.clear())
    assert tokens_of(llm.generate(prompts(2), WISH)) == due(2)
    hook.remove()
    assert_idle(llm)


# Failures


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("call", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failed_generate_ends_its_requests_and_no_others(error, call: int, late: bool) -> None:
    llm = engine()
    llm.add_request(prompts()[0], SamplingParams(max_tokens=12), request_id="stays")
    stream = llm.stream(prompts()[1], SamplingParams(max_tokens=12))
    parts = [next(stream), next(stream)]
    with failing(llm.runner.model, error("out of luck"), calls=(call,), late=late):
        try:
            llm.generate(prompts(4)[2:], WISH)
        except error:
            pass
        else:
            pytest.fail("nothing was raised")
    assert llm.statistics.waiting + llm.statistics.running == 2
    assert tuple(collected(llm)["stays"]) == due(1, 12)[0]
    parts += stream
    assert [len(part.new_token_ids) for part in parts] == [1] * 12
    assert parts[-1].token_ids == due(2, 12)[1]
    assert_idle(llm)


@pytest.mark.parametrize("call", [0, 2, 5])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_states_of_a_failed_step_are_not_used(backend: str, call: int, monkeypatch) -> None:
    """Nor by a prompt so short that nothing has been written in the place of theirs."""
    run_references(monkeypatch)
    model = kernel_model_of("mamba2-replay")
    fresh, llm = (LLM(model, cache_memory=MEMORY, backend=backend) for _ in range(2))
    failure = failing(model, RuntimeError("out of luck"), calls=(call,), late=True)
    with failure, pytest.raises(RuntimeError, match="out of luck"):
        llm.generate(prompts(4)[3], SamplingParams(max_tokens=12))
    assert_idle(llm)
    stored = []
    for one in (fresh, llm):
        one.add_request([7, 8], SamplingParams(max_tokens=6), request_id="short")
        digests = []
        for _ in range(4):
            one.step()
            digests.append(one.store.digest(("short", 0)))
        stored.append(digests)
    assert stored[0] == stored[1]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_end_of_the_step() -> None:
    llm = engine()
    llm.add_request(prompts()[0], SamplingParams(max_tokens=12), request_id="stays")
    llm.step()

    pressed = []

    def press(*_: object) -> None:
        if llm.statistics.steps == 3 and not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)

    hook = llm.runner.model.register_forward_pre_hook(press)
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompts(3)[1:], WISH)
    finally:
        hook.remove()
    assert (llm.statistics.running, llm.statistics.preemptions) == (1, 0)
    assert collected(llm)["stays"] == list(due(1, 12)[0][1:])
    assert_idle(llm)


def test_an_interrupted_step_costs_no_request_of_step() -> None:
    llm = engine()
    for number, prompt in enumerate(prompts(3)):
        llm.add_request(prompt, WISH, request_id=number)
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    with failing(llm.runner.model, KeyboardInterrupt(), calls=(1, 4, 9), late=True):
        interrupts = 0
        while llm.has_requests:
            try:
                outputs = llm.step()
            except KeyboardInterrupt:
                interrupts += 1
                assert (llm.store.seq_ids, llm.statistics.running) == ([], 0)
                continue
            for output in outputs:
                found[output.request_id] += output.new_token_ids
    assert interrupts == 3
    assert [tuple(found[number]) for number in range(3)] == due(3)
    assert_idle(llm)


def test_a_request_that_fails_alone_fails_its_owner_alone() -> None:
    """A prompt that the model cannot take, fed in a step of somebody else."""
    llm = engine()
    stream = llm.stream(prompts()[0], WISH)
    with failing(llm.runner.model, RuntimeError("bad prompt"), calls=(0,)):
        assert tokens_of(llm.generate(prompts(3)[1:], WISH)) == due(3)[1:]
    with pytest.raises(RuntimeError, match="bad prompt"):
        next(stream)
    assert list(stream) == []
    assert_idle(llm)


def test_logits_that_are_no_numbers_end_one_request(monkeypatch) -> None:
    llm = engine()
    decode = llm.runner.decode
    poisoned = ("b", 0)

    def with_nan(seq_ids, tokens):
        logits = decode(seq_ids, tokens)
        for row, seq_id in zip(logits, seq_ids, strict=True):
            if seq_id == poisoned:
                row.fill_(torch.nan)
        return logits

    monkeypatch.setattr(llm.runner, "decode", with_nan)
    llm.add_request(prompts()[0], WISH, request_id="a")
    llm.add_request(prompts()[1], WISH, request_id="b")
    found: dict[str, list[int]] = {"a": [], "b": []}
    refusals = 0
    while llm.has_requests:
        try:
            for output in llm.step():
                found[output.request_id] += output.new_token_ids
        except NotSupportedError as error:
            assert "highest logit" in str(error)
            refusals += 1
    assert refusals == 1
    assert tuple(found["a"]) == due(1)[0]
    assert tuple(found["b"]) == due(2)[1][:1]
    assert_idle(llm)


def test_calls_from_within_a_step_are_refused() -> None:
    llm = engine()
    calls: list[Callable] = [
        llm.step,
        lambda: llm.generate([5]),
        lambda: llm.add_request([5]),
        lambda: llm.abort(0),
    ]
    for call in calls:
        hook = llm.runner.model.register_forward_pre_hook(lambda *_, call=call: call() and None)
        with pytest.raises(NotSupportedError, match="within one of its own steps"):
            llm.generate(prompts(1), WISH)
        hook.remove()
        assert_idle(llm)


# Threads and processes


def test_eight_threads_share_an_engine() -> None:
    llm = engine()
    expected = due(6, 10)
    wish = SamplingParams(max_tokens=10)
    barrier = threading.Barrier(8)

    def work(number: int) -> list[list[tuple[int, ...]]]:
        barrier.wait()
        results = []
        for turn in range(3):
            mine = [(number + turn + i) % 6 for i in range(2)]
            given = [prompts()[i] for i in mine]
            if number % 2:
                results.append(tokens_of(llm.generate(given, wish)))
            else:
                streams = [llm.stream(prompt, wish) for prompt in given]
                results.append([list(stream)[-1].token_ids for stream in streams])
            assert results[-1] == [expected[i] for i in mine]
        return results

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(work, number) for number in range(8)]
        assert all(len(result.result(timeout=120)) == 3 for result in results)
    assert_idle(llm)
    assert llm.statistics.decoded_tokens < 8 * 3 * 2 * 10
    assert llm.statistics.steps < 8 * 3 * 2 * 10  # batched over threads


def test_threads_that_fail_and_close_beside_others() -> None:
    llm = engine()
    expected = due(6)

    def work(number: int) -> None:
        for turn in range(4):
            prompt = prompts()[number % 6]
            if number % 3 == 0:
                stream = llm.stream(prompt, WISH)
                next(stream)
                stream.close()
            elif number % 3 == 1:
                llm.abort(llm.add_request(prompt, WISH, request_id=("mine", number, turn)))
            else:
                assert tokens_of(llm.generate([prompt], WISH)) == [expected[number % 6]]

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(work, number) for number in range(8)]:
            result.result(timeout=120)
    assert_idle(llm)


def test_two_engines_and_generate_on_one_model() -> None:
    model = model_of("falcon_h1")
    first, second = (LLM(model, cache_memory=MEMORY) for _ in range(2))
    expected = one_by_one(model, prompts(3), 8)
    streams = [first.stream(prompts()[0], WISH), second.stream(prompts()[1], WISH)]
    parts = []
    for pair in zip(*streams, strict=True):
        parts.append(pair)
        assert one_by_one(model, prompts(3)[2:], 8) == expected[2:]
    assert [part.token_ids for part in parts[-1]] == expected[:2]
    assert_idle(first)
    assert_idle(second)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_goes_on_by_itself() -> None:
    llm = engine()
    stream = llm.stream(prompts()[0], WISH)
    next(stream)
    child = os.fork()
    if child == 0:
        right = [part.token_ids for part in stream][-1:] == due(1)
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [part.token_ids for part in stream][-1:] == due(1)
