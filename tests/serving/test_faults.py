"""What is wrong is told in OpenAI's error objects, never by a stack trace; the server lives on."""

from __future__ import annotations

import json
import logging

import httpx2
import openai
import pytest
from pydantic import ValidationError

from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.serving.faults import MOST_READ, Fault, fault_of
from cacheshrink_hybrid.serving.schema import ChatRequest, CompletionRequest
from tests.serving.live import NAME, Live, live_server, until

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TALK = [{"role": "user", "content": "hello"}]


def told(answer: httpx2.Response) -> dict:
    """The error object of an answer."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return body["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, "temperature=-1.0 must be finite"),
        (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, "temperature: input should be"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens=0 must be at least 1"),
        (COMPLETIONS, {"prompt": {}}, "valid string, or input should be a valid list"),
        (COMPLETIONS, {"prompt": "a", "store": True}, "store: input should be False"),
        (COMPLETIONS, {"prompt": "a", "n": 0}, "n=0 must be at least 1"),
        (COMPLETIONS, {"prompt": "a", "n": 129}, "n: input should be less than or equal to 128"),
        (COMPLETIONS, {"prompt": ["a"] * 9, "n": 128}, "asks for 1152 answers"),
        (COMPLETIONS, {"prompt": "a", "stop": ["x"] * 300}, "stop: "),
        (COMPLETIONS, {"prompt": "a", "bad_words": ["x"] * 300}, "bad_words: list should have"),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of=3 is not n=1"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs: input should be less than"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix: is not taken here; models that"),
        (CHAT, {"messages": TALK, "functions": []}, "functions: is not taken here; send tools"),
        (CHAT, {"messages": TALK, "reasoning_effort": "low"}, "send it in chat_template_kwargs"),
        (
            CHAT,
            {"messages": TALK, "modalities": ["text", "audio"]},
            "modalities[1]: input should be",
        ),
        (CHAT, {"messages": TALK, "service_tier": "flex"}, "service_tier: input should be"),
        (COMPLETIONS, {"prompt": "a", "magic": 1, "more": 2}, "magic: is not known; more: is"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"5": 1, "x": 1}}, "has keys such as 'x'"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"1_0": 1}}, "has keys such as '1_0'"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {" 5": 1}}, "has keys such as ' 5'"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"-1": 1}}, "lie outside the vocabulary"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"9999": 1}}, "lie outside the vocabulary"),
        (COMPLETIONS, {"prompt": "a", "stream_options": {}}, "stream_options goes with"),
        (COMPLETIONS, {"prompt": []}, "prompt is an empty list"),
        (COMPLETIONS, {"prompt": [5, 10**6]}, "lie outside the vocabulary"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "prompt: "),
        (COMPLETIONS, {"prompt": "a \ud800"}, "half of a pair"),
        (COMPLETIONS, {}, "prompt: field required"),
        (COMPLETIONS, [], "body: "),
        (CHAT, {"messages": []}, "messages: "),
        (CHAT, {"messages": TALK, "top_logprobs": 2}, "top_logprobs goes with logprobs"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content: has a part of type 'image_url', and text is all",
        ),
        (CHAT, {"messages": [{"role": "user", "content": [5]}]}, "has a part of type None"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "content[0].text: ",
        ),
        (CHAT, {"messages": TALK, "max_completion_tokens": 0}, "max_completion_tokens=0 must be"),
        (CHAT, {"messages": [{"content": "a"}]}, "messages[0].role: field required"),
        (CHAT, {"messages": TALK, "tool_choice": "required"}, "tool_choice asks for a call"),
        (CHAT, {"messages": TALK, "chat_template_kwargs": {"tokenize": 1}}, "has tokenize"),
        (CHAT, {"messages": TALK, "chat_template_kwargs": {"messages": []}}, "has messages"),
        (CHAT, {"messages": TALK, "chat_template_kwargs": {"thinks": 1}}, "does not read"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0] of role 'user' has no content"),
        (
            CHAT,
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]},
            "are no JSON",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(live: Live, path: str, body: object, message: str, stream: bool) -> None:
    if isinstance(body, dict):
        body = {**body, "stream": stream}
        if stream and "stream_options" in body:
            pytest.skip("goes with a stream")
    with live.http() as http:
        content = json.dumps(body)  # in ASCII: some hold what no UTF-8 can
        headers = {"Content-Type": "application/json"}
        answer = http.post(path, content=content, headers=headers)
        assert answer.status_code == 400, answer.text
        error = told(answer)
        assert error["type"] == "invalid_request_error"
        assert message in error["message"]
        assert http.get("/health").status_code == 200


MORE_BAD = [
    (COMPLETIONS, {"presence_penalty": 2.1}, "presence_penalty"),
    (COMPLETIONS, {"frequency_penalty": -2.1}, "frequency_penalty"),
    (CHAT, {"logit_bias": {"5": 1, "6": 101}}, "logit_bias.6"),
    (COMPLETIONS, {"allowed_token_ids": []}, "allowed_token_ids"),
    (COMPLETIONS, {"structured_outputs": {}}, "structured_outputs"),
    (COMPLETIONS, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    (COMPLETIONS, {"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    (COMPLETIONS, {"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice[1]"),
    (COMPLETIONS, {"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
    ),
    (CHAT, {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    (CHAT, {"stream_options": {"magic": 1}}, "stream_options.magic"),
    (COMPLETIONS, {"prompt": ["a", 5]}, "prompt[1]"),
    (CHAT, {"tool_choice": {"type": "function"}}, "tool_choice.function"),
    (CHAT, {"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    (
        CHAT,
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": []}}},
        "tool_choice.allowed_tools.mode",
    ),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "[0].text"),
    (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
    (CHAT, {"messages": [*TALK, {"role": "user", "content": "a", "foo": 1}]}, "messages[1]"),
    (CHAT, {"messages": [{"role": "", "content": "a"}]}, "messages[0].role"),
]


@pytest.mark.parametrize(("path", "wish", "param"), MORE_BAD)
def test_errors_name_the_whole_path(live: Live, path: str, wish: dict, param: str) -> None:
    own = {"prompt": "a"} if path == COMPLETIONS else {"messages": TALK}
    with live.http() as http:
        answer = http.post(path, json=own | wish)
    assert answer.status_code == 400
    error = told(answer)
    assert error["param"].endswith(param)
    assert error["message"].startswith(error["param"])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_a_body_of_another_type_is_told_the_header(live: Live, path: str, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    own = {"prompt": "a", "max_tokens": 1, "messages": TALK}
    own.pop("messages" if path == COMPLETIONS else "prompt")
    body = json.dumps(own).encode()
    with live.http() as http:
        answer = http.post(path, content=body, headers=headers)
        assert answer.status_code == 415
        assert "send the header 'Content-Type: application/json'" in told(answer)["message"]
        typed = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert http.post(path, content=body, headers=typed).status_code == 200


MANY = 2000
MANY_FAULTS = {
    "unknown fields": (COMPLETIONS, {"prompt": "a"} | {f"k{i}": 1 for i in range(MANY)}),
    "unknown fields inside": (CHAT, {"stream_options": {f"k{i}": 1 for i in range(MANY)}}),
    "numbers that are no ids": (COMPLETIONS, {"prompt": [1.5] * MANY}),
    "lists of such": (COMPLETIONS, {"prompt": [[1.5]] * MANY}),
    "empty messages": (CHAT, {"messages": [{}] * MANY}),
    "empty parts": (CHAT, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
    "empty tools": (CHAT, {"tools": [{}] * MANY}),
    "stops": (COMPLETIONS, {"prompt": "a", "stop_token_ids": ["a"] * MANY}),
    "choices": (CHAT, {"structured_outputs": {"choice": [1] * 200}}),
    "names as long as a book": (CHAT, {"x" * 100_000: 1}),
}


@pytest.mark.parametrize("name", MANY_FAULTS)
def test_of_many_faults_some_are_told(live: Live, name: str) -> None:
    """Each takes time to find and to tell, in which nobody else is answered."""
    path, body = MANY_FAULTS[name]
    body = {"messages": TALK} | body if path == CHAT else body
    kind = ChatRequest if path == CHAT else CompletionRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() <= MOST_READ
    with live.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert len(told(answer)["message"]) < 1000


NUMBER = b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"
DEEP = b"[" * 3000 + b"]" * 3000


@pytest.mark.parametrize(
    "body", [b"", b"{", b"hello", b"\xff\xfe", b'{"prompt": NaN', b"null", NUMBER, DEEP]
)
def test_bodies_that_are_no_request(live: Live, body: bytes) -> None:
    with live.http() as http:
        answer = http.post(COMPLETIONS, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        message = told(answer)["message"]
        assert "is no JSON" in message or body in (b"", b"null")
        assert told(http.get("/v2"))["message"].startswith("Not Found")
        assert http.get(COMPLETIONS).status_code == 405


def test_the_clients_own_exceptions(live: Live, client: openai.OpenAI) -> None:
    chat = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="is not served here") as missing:
        chat(model="gpt-4", messages=TALK)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature") as bad:
        chat(model=NAME, messages=TALK, temperature=-1)
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError, match="Bearer"):
        live.client(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="the context 4096") as long:
        client.completions.create(model=NAME, prompt="a" * 5000)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"magic": 1}, "magic"),
        ({"prompt": "a" * 5000}, None),
    ],
)
def test_errors_name_the_field(live: Live, wish: dict, param: str | None) -> None:
    with live.http() as http:
        assert told(http.post(COMPLETIONS, json={"prompt": "a", **wish}))["param"] == param


def test_texts_that_never_fit_are_not_read(
    live: Live, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheshrink_hybrid.engine.prompts.text_ids", None)
    for create in (
        lambda text: client.completions.create(model=NAME, prompt=text),
        lambda text: client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": text}]
        ),
    ):
        with pytest.raises(openai.BadRequestError, match=r"has 10000.. characters, and the model"):
            create("x" * 1_000_000)


def test_keys(live: Live) -> None:
    for header in ({}, {"Authorization": "secret"}, {"Authorization": "Basic secret"}):
        answer = httpx2.get(f"{live.url}/v1/models", headers=header)
        assert answer.status_code == 401
        assert told(answer)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx2.get(f"{live.url}/health").status_code == 200
    assert httpx2.get(f"{live.url}/metrics").status_code == 401


def test_what_is_nested_too_deeply() -> None:
    """Whoever reads it, a template or a schema."""
    fault = fault_of(RecursionError("maximum recursion depth exceeded"))
    assert (fault.status, fault.code) == (400, "nested_too_deeply")


def test_an_answer_that_took_too_long_is_not_asked_for_again() -> None:
    assert fault_of(TimeoutError()).response().headers["x-should-retry"] == "false"


def test_prompts_of_ten_megabytes(live: Live, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="4194304 are taken") as refused:
        client.completions.create(model=NAME, prompt="x" * 10_000_000)
    assert refused.value.status_code == 413
    assert client.completions.create(model=NAME, prompt="x", max_tokens=1).choices


def test_back_pressure_names_the_bytes() -> None:
    with live_server(limits={"max_open": 1}) as busy, busy.http() as http:
        client = busy.client(_strict_response_validation=False)
        stream = client.completions.create(
            model=NAME, prompt="a", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        body = {"prompt": "b", "max_tokens": 100}
        for streams in (False, True):
            answer = http.post(COMPLETIONS, json=body | {"stream": streams})
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            error = told(answer)
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            need = busy.llm.store.need(102) * busy.llm.store.layout.frame_bytes
            assert f"asks for {need} bytes" in error["message"]
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model=NAME, prompt="b")
        stream.close()
        patient = busy.client(max_retries=5)
        assert patient.completions.create(model=NAME, prompt="b", max_tokens=2).choices


def test_answers_that_take_too_long() -> None:
    with live_server(answer_seconds=0.5) as hasty:
        client = hasty.client()
        endless = {"model": NAME, "prompt": "a", "max_tokens": 4000}
        more = {"ignore_eos": True}
        with pytest.raises(openai.InternalServerError, match="took too long") as late:
            client.completions.create(**endless, extra_body=more)
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match="took too long"):
            for _ in hasty.client(_strict_response_validation=False).completions.create(
                **endless, stream=True, extra_body=more
            ):
                pass
        assert hasty.engine.open.requests == 0
        assert client.completions.create(model=NAME, prompt="a", max_tokens=1).choices


def test_internal_errors_keep_their_words_to_the_log(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise NotSupportedError("the secret of the house")

    client = live.client()
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(live.llm.runner, "prefill", broken)
        with pytest.raises(openai.InternalServerError, match="internal error") as failed:
            client.completions.create(model=NAME, prompt="abc", max_tokens=2)
    assert "secret" not in str(failed.value.body)
    until(lambda: any(one.message == "internal error" for one in caplog.records))
    (record,) = [one for one in caplog.records if one.message == "internal error"]
    assert "secret of the house" in str(record.exc_info[1])
    assert client.completions.create(model=NAME, prompt="abc", max_tokens=1).choices


def test_faults_are_faults() -> None:
    fault = Fault(400, "no", param="x")
    assert fault_of(fault) is fault
    assert fault_of(ZeroDivisionError("a secret")).message.startswith("an internal error")
    assert fault_of(TimeoutError()).status == 504
