"""What the engine serves equals what `generate()` gives one by one, whatever happens beside it."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM, RequestOutput, SamplingParams
from cacheshrink_hybrid.engine.logit_rules import BadWords
from cacheshrink_hybrid.errors import CacheFullError, ConfigError, NotSupportedError, SequenceError
from tests.engine.idle import assert_idle
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, pair, random_ids
from tests.texts import TEXTS, word_tokenizer

CASES = (
    "gpt2",
    "llama",
    "mistral-window",
    "gemma3_text",
    "qwen3",
    "bamba",
    "jamba",
    "falcon_h1",
    "zamba2",
    "qwen3_next",
    "lfm2",
)
MEMORY = 4 << 20


def model_of(case: str) -> PreTrainedModel:
    return pair(case, "auto", ratio=4.0, metric="activation").converted


def prompts(count: int = 6) -> list[list[int]]:
    return [random_ids(1, 3 + 5 * i % 17, seed=i)[0].tolist() for i in range(count)]


def one_by_one(model: PreTrainedModel, given: list[list[int]], max_tokens: int) -> list[tuple]:
    results = []
    for prompt in given:
        ids = torch.tensor([prompt])
        output = model.generate(ids, do_sample=False, max_new_tokens=max_tokens)
        results.append(tuple(output[0, len(prompt) :].tolist()))
    return results


def tokens_of(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("converted", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_batched_results_are_those_of_generate(case: str, converted: bool) -> None:
    model = model_of(case) if converted else pair(case).source
    llm = LLM(model, cache_memory=MEMORY, prefill_chunk=6)
    outputs = llm.generate(prompts(), SamplingParams(max_tokens=12))
    assert tokens_of(outputs) == one_by_one(model, prompts(), 12)
    assert all(output.finished for output in outputs)
    assert_idle(llm)


@pytest.mark.parametrize("method", ["rotate_joint", "per_head"])
def test_other_ways_to_store_keys(method: str) -> None:
    model = converted_copy(tiny_model("llama"), 2.0, method, metric="activation")
    outputs = LLM(model, cache_memory=MEMORY).generate(prompts(), SamplingParams(max_tokens=8))
    assert tokens_of(outputs) == one_by_one(model, prompts(), 8)


@pytest.mark.parametrize("replay_length", [1, 5])
@pytest.mark.parametrize("case", ["bamba", "jamba", "qwen3_next", "falcon_h1"])
def test_coded_states(case: str, replay_length: int) -> None:
    """Prompts are fed whole, as by generate(): a state is coded where a piece ends."""
    model = converted_copy(
        tiny_model(case),
        2.0,
        "auto",
        metric="activation",
        state_dtype="float16",
        replay_length=replay_length,
    )
    outputs = LLM(model, cache_memory=MEMORY).generate(prompts(), SamplingParams(max_tokens=12))
    assert tokens_of(outputs) == one_by_one(model, prompts(), 12)


def test_coded_rows() -> None:
    model = converted_copy(tiny_model("llama"), 4.0, "auto", metric="activation", cache_bits="auto")
    outputs = LLM(model, cache_memory=MEMORY).generate(prompts(), SamplingParams(max_tokens=12))
    assert tokens_of(outputs) == one_by_one(model, prompts(), 12)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "mistral-window", "bamba", "jamba"])
def test_a_pool_of_a_quarter_of_the_need_serves_all(case: str) -> None:
    model = model_of(case)
    roomy = LLM(model, cache_memory=MEMORY)
    frame_bytes = roomy.store.layout.frame_bytes
    longest = max(len(prompt) for prompt in prompts(8)) + 40
    need = 8 * roomy.store.need(longest)
    llm = LLM(model, cache_memory=(max(need // 4, roomy.store.need(longest)) + 1) * frame_bytes)
    outputs = llm.generate(prompts(8), SamplingParams(max_tokens=40))
    assert tokens_of(outputs) == one_by_one(model, prompts(8), 40)
    assert_idle(llm)
    if case == "llama":
        assert llm.statistics.preemptions > 0
        assert sum(output.preemptions for output in outputs) == llm.statistics.preemptions


def test_no_frame_is_lost_over_many_requests() -> None:
    llm = LLM(model_of("bamba"), cache_memory=300_000)
    for number in range(60):
        llm.add_request(random_ids(1, 1 + number % 9, seed=number)[0].tolist())
        if number % 7 == 3:
            llm.abort(llm._scheduler.requests[-1].request_id)
        llm.step()
    while llm.has_requests:
        llm.step()
    assert_idle(llm)


def test_prompts_of_one_token_and_chunks_that_leave_one() -> None:
    model = model_of("llama")
    given = [[5], [7, 8], random_ids(1, 9)[0].tolist(), random_ids(1, 5)[0].tolist()]
    llm = LLM(model, cache_memory=MEMORY, prefill_chunk=4)
    outputs = llm.generate(given, SamplingParams(max_tokens=6))
    assert tokens_of(outputs) == one_by_one(model, given, 6)


def test_more_requests_than_fit_a_batch() -> None:
    model = model_of("gpt2")
    llm = LLM(model, cache_memory=MEMORY, max_batch=2)
    for prompt in prompts():
        llm.add_request(prompt, SamplingParams(max_tokens=5))
    most = 0
    while llm.has_requests:
        llm.step()
        most = max(most, llm.statistics.running)
    assert most == 2


def test_samples_do_not_depend_on_the_batch() -> None:
    model = model_of("llama")
    wish = SamplingParams(max_tokens=10, temperature=0.8, top_k=20, top_p=0.9, seed=4)
    llm = LLM(model, cache_memory=MEMORY)
    alone = llm.generate(prompts()[2], wish)[0]
    others = [SamplingParams(max_tokens=10, temperature=1.0, seed=i) for i in range(6)]
    others[2] = wish
    assert llm.generate(prompts(), others)[2].token_ids == alone.token_ids
    different = llm.generate(prompts()[2], SamplingParams(max_tokens=10, temperature=0.8, seed=5))
    assert different[0].token_ids != alone.token_ids


def text_behind(tokenizer, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """What these tokens add to the text of the prompt."""
    begin, whole = (
        tokenizer.decode(list(ids), skip_special_tokens=True)
        for ids in (prompt_ids, [*prompt_ids, *token_ids])
    )
    return whole.removeprefix(begin)


def test_text_stops_and_ends() -> None:
    model, tokenizer = model_of("llama"), word_tokenizer()
    llm = LLM(model, tokenizer, cache_memory=MEMORY)
    whole = llm.generate(TEXTS[0], SamplingParams(max_tokens=12))[0]
    assert whole.finish_reason == "length"
    assert whole.text == text_behind(tokenizer, whole.prompt_ids, whole.token_ids)
    word = whole.text.split()[-1]
    cut = llm.generate(TEXTS[0], SamplingParams(max_tokens=12, stop=word))[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.find(word)]
    assert len(cut.token_ids) <= len(whole.token_ids)
    llm._intake.end_tokens = frozenset([whole.token_ids[5]])
    first = whole.token_ids.index(whole.token_ids[5])
    ended = llm.generate(TEXTS[0], SamplingParams(max_tokens=12))[0]
    assert (ended.finish_reason, len(ended.token_ids)) == ("stop", first + 1)
    on = llm.generate(TEXTS[0], SamplingParams(max_tokens=12, ignore_eos=True))[0]
    assert on.token_ids == whole.token_ids


def test_stop_tokens_and_the_least_number_of_tokens() -> None:
    tokenizer = word_tokenizer()
    llm = LLM(model_of("llama"), tokenizer, cache_memory=MEMORY)
    whole = llm.generate(TEXTS[0], SamplingParams(max_tokens=12, ignore_eos=True))[0]
    last = whole.token_ids[4]
    first = whole.token_ids.index(last)
    wish = {"max_tokens": 12, "ignore_eos": True, "stop_token_ids": [last]}
    cut = llm.generate(TEXTS[0], SamplingParams(**wish))[0]
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[: first + 1], "stop")
    assert cut.text == text_behind(tokenizer, cut.prompt_ids, cut.token_ids[:-1])
    shown = llm.generate(TEXTS[0], SamplingParams(include_stop=True, **wish))[0]
    assert shown.text == text_behind(tokenizer, cut.prompt_ids, cut.token_ids)
    late = llm.generate(TEXTS[0], SamplingParams(min_tokens=9, **wish))[0]
    assert last not in late.token_ids[:9]
    assert len(late.token_ids) > 9


def test_greedy_with_penalties_is_that_of_generate() -> None:
    model = model_of("llama")
    llm = LLM(model, cache_memory=MEMORY)
    for prompt in prompts(3):
        due = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            repetition_penalty=1.5,
            bad_words_ids=[[9], [4, 4]],
            min_new_tokens=8,
        )
        wish = SamplingParams(max_tokens=12, repetition_penalty=1.5, min_tokens=8)
        requests = llm._intake.requests(tuple(prompt), wish, llm._loose)
        requests[0].rules.insert(0, BadWords([(9,), (4, 4)]))
        llm._dispatcher.submit(requests)
        while llm.has_requests:
            output = llm.step()[0]
        assert output.token_ids == tuple(due[0, len(prompt) :].tolist())


@pytest.mark.parametrize("length", [1, 3, 9])
def test_stop_strings_of_any_length_end_where_the_text_has_them(length: int) -> None:
    model, tokenizer = model_of("llama"), word_tokenizer()
    llm = LLM(model, tokenizer, cache_memory=MEMORY)
    whole = llm.generate(TEXTS[1], SamplingParams(max_tokens=40))[0]
    stop = whole.text[len(whole.text) // 2 :][:length]
    cut = llm.generate(TEXTS[1], SamplingParams(max_tokens=40, stop=stop))[0]
    assert cut.text == whole.text[: whole.text.find(stop)]
    decoded = [
        text_behind(tokenizer, whole.prompt_ids, whole.token_ids[:n])
        for n in range(1, len(whole.token_ids) + 1)
    ]
    assert len(cut.token_ids) == 1 + next(n for n, text in enumerate(decoded) if stop in text)


def test_streams_beside_other_requests() -> None:
    model = model_of("llama")
    llm = LLM(model, cache_memory=MEMORY)
    llm.add_request(prompts()[0], SamplingParams(max_tokens=4), request_id="other")
    parts = list(llm.stream(prompts()[1], SamplingParams(max_tokens=6)))
    assert [len(part.new_token_ids) for part in parts] == [1] * 6
    assert [part.finished for part in parts] == [False] * 5 + [True]
    assert parts[-1].token_ids == one_by_one(model, [prompts()[1]], 6)[0]
    stream = llm.stream(prompts()[2])
    next(stream)
    stream.close()
    assert [output.new_token_ids for output in llm.step()] == one_by_one(model, [prompts()[0]], 4)
    assert_idle(llm)


def test_the_models_length_ends_a_request() -> None:
    model = model_of("gpt2")
    limit = model.config.max_position_embeddings
    llm = LLM(model, cache_memory=MEMORY)
    prompt = random_ids(1, limit - 3)[0].tolist()
    output = llm.generate(prompt, SamplingParams(max_tokens=50))[0]
    assert (len(output.token_ids), output.finish_reason) == (3, "length")


def test_cancelled_within_a_prompt() -> None:
    model = model_of("bamba")
    llm = LLM(model, cache_memory=MEMORY, prefill_chunk=4)
    llm.add_request(prompts()[1], SamplingParams(max_tokens=20), request_id="stays")
    llm.add_request(random_ids(1, 30)[0].tolist(), request_id="goes")
    llm.add_request(prompts()[2], request_id="waits")
    goes = next(request for request in llm._scheduler.requests if request.request_id == "goes")
    outputs: list[RequestOutput] = []
    while goes.num_computed < 8:
        outputs += llm.step()
    assert goes.num_computed < 30
    output = llm.abort("goes")
    assert (output.finish_reason, output.token_ids) == ("abort", ())
    llm.abort("waits")
    llm.store.check_integrity()
    while llm.has_requests:
        outputs += llm.step()
    assert {output.request_id for output in outputs} == {"stays"}
    assert outputs[-1].token_ids == one_by_one(model, [prompts()[1]], 20)[0]
    with pytest.raises(SequenceError, match="neither waiting nor running"):
        llm.abort("goes")


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ([], {}, ConfigError, "prompt is empty"),
        ([1, 10**6], {}, ConfigError, "outside the vocabulary"),
        ([-1], {}, ConfigError, "outside the vocabulary"),
        ("text", {}, ConfigError, "needs the tokenizer"),
        ([1], {"request_id": "taken"}, SequenceError, "'taken' is in use"),
        ([1], {"request_id": [1]}, ConfigError, "must be hashable"),
        ([5] * 100_000, {}, ConfigError, "has positions for"),
        ([5], {"params": SamplingParams(stop=("x",))}, ConfigError, "stop strings and bad words"),
        ([5], {"params": SamplingParams(bad_words="x")}, ConfigError, "stop strings and bad words"),
        ([5], {"params": SamplingParams(logit_bias={999: 1})}, ConfigError, r"tokens \[999\]"),
        ([5], {"params": SamplingParams(stop_token_ids=[-1])}, ConfigError, r"tokens \[-1\]"),
        ([5] * 90, {"params": SamplingParams(max_tokens=30)}, CacheFullError, "cache_memory of"),
    ],
)
def test_refused_requests_change_nothing(prompt, settings, error, message: str) -> None:
    llm = LLM(model_of("llama"), cache_memory=10_000)
    llm.add_request([5, 6], request_id="taken")
    llm.step()
    before = llm.statistics
    with pytest.raises(error, match=message):
        llm.add_request(prompt, **settings)
    assert llm.statistics == before
    while llm.has_requests:
        llm.step()


def test_one_refused_prompt_refuses_its_batch() -> None:
    llm = LLM(model_of("llama"), cache_memory=MEMORY)
    with pytest.raises(ConfigError, match="empty"):
        llm.generate([[5], []])
    with pytest.raises(ConfigError, match="give one for each"):
        llm.generate([[5], [6]], [SamplingParams()])
    assert not llm.has_requests
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"cache_memory": 100}, CacheFullError, "give at least"),
        ({"cache_memory": "2 cats"}, ConfigError, "no amount of memory"),
        ({"max_batch": 0}, ConfigError, "max_batch=0 must be a whole number >= 1"),
        ({"prefill_chunk": "x"}, ConfigError, "prefill_chunk=.x. must be a whole number"),
    ],
)
def test_engines_that_cannot_be(settings: dict, error, message: str) -> None:
    with pytest.raises(error, match=message):
        LLM(model_of("bamba"), **settings)


@pytest.mark.parametrize("kind", ["list", "tuple", "numpy", "torch", "padded", "one"])
def test_prompts_in_any_container(kind: str) -> None:
    model = model_of("llama")
    llm = LLM(model, cache_memory=MEMORY)
    ids = random_ids(2, 7)
    given: object = {
        "list": ids.tolist(),
        "tuple": tuple(map(tuple, ids.tolist())),
        "numpy": ids.numpy(),
        "torch": ids,
        "padded": {
            "input_ids": torch.nn.functional.pad(ids, (3, 1)),
            "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (3, 1)),
        },
        "one": ids[0].numpy(),
    }[kind]
    expected = one_by_one(model, ids.tolist(), 5)[: 1 if kind == "one" else 2]
    assert tokens_of(llm.generate(given, SamplingParams(max_tokens=5))) == expected
    if kind == "one":
        llm.add_request(given, SamplingParams(max_tokens=5))
        assert list(llm.stream(given, SamplingParams(max_tokens=5)))[-1].token_ids == expected[0]
    else:
        with pytest.raises(ConfigError, match="2 were given"):
            llm.stream(given)


def test_errors_of_a_stream_come_at_once() -> None:
    llm = LLM(model_of("llama"), cache_memory=MEMORY)
    with pytest.raises(ConfigError, match="empty"):
        llm.stream([])
    for wrong in ({"max_tokens": 3}, 5):
        with pytest.raises(ConfigError, match="must be SamplingParams"):
            llm.generate([5], wrong)
    assert not llm.has_requests


def test_samples_without_a_seed_differ() -> None:
    llm = LLM(model_of("llama"), cache_memory=MEMORY)
    wish = SamplingParams(max_tokens=12, temperature=1.0)
    first = tokens_of(llm.generate([prompts()[0]] * 4, wish))
    assert len(set(first)) == 4
    assert tokens_of(llm.generate([prompts()[0]] * 4, wish)) != first
    torch.manual_seed(0)
    again = tokens_of(llm.generate([prompts()[0]] * 4, wish))
    torch.manual_seed(0)
    assert tokens_of(llm.generate([prompts()[0]] * 4, wish)) == again


def test_preempted_samples_are_those_of_an_ample_pool() -> None:
    wishes = [SamplingParams(max_tokens=40, temperature=0.9, seed=i) for i in range(6)]
    ample = LLM(model_of("llama"), cache_memory=MEMORY)
    tight = LLM(model_of("llama"), cache_memory=12_000)
    expected = tokens_of(ample.generate(prompts(), wishes))
    assert tokens_of(tight.generate(prompts(), wishes)) == expected
    assert tight.statistics.preemptions > 0


@pytest.mark.parametrize(
    ("room", "case"),
    [("positions", "llama"), ("pool", "llama"), ("pool", "bamba"), ("pool", "mistral-window")],
)
def test_no_limit_ends_with_the_positions_or_the_pool(room: str, case: str) -> None:
    model = model_of(case)
    ample = LLM(model, cache_memory=MEMORY)
    limit = model.config.max_position_embeddings
    memory = MEMORY
    if room == "pool":
        limit = 4 * ample.store.layout.classes[0].tokens_per_frame + 5
        memory = (ample.store.need(limit) + 1) * ample.store.layout.frame_bytes
    llm = LLM(model, cache_memory=memory)
    wish = SamplingParams(max_tokens=None, ignore_eos=True)
    outputs = llm.generate(prompts(3), wish)
    for prompt, output in zip(prompts(3), outputs, strict=True):
        total = len(prompt) + len(output.token_ids)
        assert output.finish_reason == "length"
        assert ample.store.need(total) == ample.store.need(limit)
        assert room == "pool" or total == limit
    (due,) = one_by_one(model, prompts(1), 20)  # which ends with the text
    assert outputs[0].token_ids[: len(due)] == due
    assert_idle(llm)


def test_no_limit_where_nothing_ends_a_request() -> None:
    llm = LLM(tiny_model("mamba2"), cache_memory=MEMORY)
    assert llm.max_length is None
    with pytest.raises(ConfigError, match="would never end"):
        llm.generate([5], SamplingParams(max_tokens=None, ignore_eos=True))
    llm._intake.end_tokens = frozenset(range(96))
    assert len(llm.generate([5], SamplingParams(max_tokens=None))[0].token_ids) == 1


@pytest.mark.parametrize("case", ["llama", "bamba", "gemma3_text"])
def test_inference_mode_may_come_and_go(case: str) -> None:
    model = converted_copy(tiny_model(case), 2.0, "auto", metric="activation")
    wish = SamplingParams(max_tokens=6)
    expected = one_by_one(model, prompts(3), 6)
    outside = LLM(model, cache_memory=MEMORY)
    with torch.inference_mode():
        inside = LLM(model, cache_memory=MEMORY)
        assert tokens_of(outside.generate(prompts(3), wish)) == expected
        stream = inside.stream(prompts()[0], wish)
        next(stream)
    for llm in (outside, inside):
        assert not llm.store.pool.arena.is_inference()
        assert tokens_of(llm.generate(prompts(3), wish)) == expected
        with torch.inference_mode():
            assert tokens_of(llm.generate(prompts(3), wish)) == expected
    assert list(stream)[-1].token_ids == expected[0]
    with torch.no_grad():
        assert tokens_of(inside.generate(prompts(3), wish)) == expected
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("case", ["llama", "bamba"])
def test_a_model_of_another_dtype_needs_another_engine(case: str) -> None:
    """Where rows or states are of the model's dtype; nothing stays behind of what was refused."""
    model = copy.deepcopy(model_of(case))
    llm = LLM(model, cache_memory=MEMORY)
    llm.generate(prompts(1), SamplingParams(max_tokens=2))
    model.to(torch.bfloat16)
    with pytest.raises(NotSupportedError, match=r"was torch.float32 .* make a new LLM"):
        llm.generate(prompts(1), SamplingParams(max_tokens=2))
    assert (llm.statistics.running, llm.store.pool.num_held) == (0, 0)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda llm: pickle.loads(pickle.dumps(llm))])
def test_a_copy_goes_on_with_what_was_running(make: Callable[[LLM], LLM]) -> None:
    llm = LLM(model_of("llama"), word_tokenizer(), cache_memory=MEMORY)
    settings = SamplingParams(max_tokens=6, temperature=1.0, seed=3)
    llm.add_request(TEXTS[0], settings, request_id="first")
    llm.step()
    outputs = []
    for one in (make(llm), llm):
        while one.has_requests:
            last = one.step()[0]
        outputs.append((last.token_ids, last.text))
    assert outputs[0] == outputs[1]


def test_a_copied_engine_goes_its_own_way() -> None:
    llm = LLM(model_of("llama"), cache_memory=MEMORY)
    llm.add_request(prompts()[0], SamplingParams(max_tokens=5), request_id="first")
    llm.step()
    twin = copy.deepcopy(llm)
    for one in (llm, twin):
        assert one.step()[0].token_ids == one_by_one(model_of("llama"), prompts(1), 2)[0]
    twin.abort("first")
    assert llm.has_requests
    assert not twin.has_requests


def test_statistics_and_outputs_can_be_stored(tmp_path: Path) -> None:
    llm = LLM(model_of("llama"), word_tokenizer(), cache_memory=MEMORY)
    (output,) = llm.generate(TEXTS[0], SamplingParams(max_tokens=12))
    torch.save([llm.statistics, output], tmp_path / "kept.pt")
    kept = torch.load(tmp_path / "kept.pt", weights_only=False)
    assert kept == [llm.statistics, output]
    assert kept[1].text == output.text != ""
    for copied in (pickle.loads(pickle.dumps(llm.statistics)), copy.deepcopy(llm.statistics)):
        assert copied == llm.statistics
    counts = json.loads(json.dumps(dataclasses.asdict(llm.statistics)))
    assert counts["decoded_tokens"] == llm.statistics.decoded_tokens
    assert json.loads(json.dumps(dataclasses.asdict(llm.store.statistics())))


TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}ten"


def test_chat() -> None:
    tokenizer = copy.deepcopy(word_tokenizer())
    llm = LLM(model_of("llama"), tokenizer, cache_memory=MEMORY)
    wish = SamplingParams(max_tokens=4)
    first = [{"role": "user", "content": "one two"}]
    second = [*first, {"role": "assistant", "content": "three"}]
    with pytest.raises(ConfigError, match="chat template"):
        llm.chat(first, wish)
    tokenizer.chat_template = TEMPLATE
    expected = tokens_of(llm.generate(["one two ten", "one two three ten"], wish))
    assert tokens_of(llm.chat(first, wish)) == expected[:1]
    assert tokens_of(llm.chat([first, second], wish)) == expected
    assert llm.chat([], wish) == []
    with pytest.raises(ConfigError, match="no conversation"):
        llm.chat("hello", wish)
    for call in (llm.generate, llm.stream, llm.add_request):
        with pytest.raises(ConfigError, match=r"LLM.chat\(\)"):
            call(first)
    with pytest.raises(ConfigError, match="needs the tokenizer"):
        LLM(model_of("llama"), cache_memory=MEMORY).chat(first)


def test_streamed_texts_grow_and_hold_back_stop_strings() -> None:
    model, tokenizer = model_of("llama"), word_tokenizer()
    llm = LLM(model, tokenizer, cache_memory=MEMORY)
    whole = llm.generate(TEXTS[0], SamplingParams(max_tokens=30))[0].text
    stop = whole[len(whole) // 2 :][:7]
    parts = list(llm.stream(TEXTS[0], SamplingParams(max_tokens=30, stop=stop)))
    texts = [part.text for part in parts]
    assert parts[-1].finish_reason == "stop"
    assert texts[-1] == whole.partition(stop)[0]
    assert all(texts[-1].startswith(text) for text in texts)
    assert texts == sorted(texts, key=len)
    outputs = [output.text for output in parts]
    assert outputs == texts  # also when asked for again, in any order
