#!/usr/bin/env bash
# openai 3.57.0: with _strict_response_validation a stream of completions.create ends at its first chunk.
#
# A chunk before the last has no reason to end, finish_reason null. The package reads streams of
# completions by the model of a whole answer, whose finish_reason must be a string; that of chat chunks
# may be None.
# Seen: APIResponseValidationError from completions, None and "stop" from chat.completions, and from
# both without strictness.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 httpx2==2.16.2
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json

import httpx2
import openai


def answered(request):
    """A stream of two chunks of the kind that is asked for."""
    chat = "chat" in request.url.path
    events = []
    for text, reason in (("a", None), ("b", "stop")):
        content = {"delta": {"content": text}} if chat else {"text": text, "logprobs": None}
        choice = {"index": 0, "finish_reason": reason, **content}
        kind = "chat.completion.chunk" if chat else "text_completion"
        chunk = {"id": "1", "object": kind, "created": 1, "model": "m", "choices": [choice]}
        events.append(f"data: {json.dumps(chunk)}\n\n")
    body = "".join(events) + "data: [DONE]\n\n"
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=body)


seen = {}
for strict in (False, True):
    client = openai.OpenAI(
        api_key="none",
        base_url="http://localhost/v1",
        http_client=httpx2.Client(transport=httpx2.MockTransport(answered)),
        _strict_response_validation=strict,
    )
    messages = [{"role": "user", "content": "p"}]
    for name, start in (
        ("completions", lambda: client.completions.create(model="m", prompt="p", stream=True)),
        ("chat", lambda: client.chat.completions.create(model="m", messages=messages, stream=True)),
    ):
        try:
            seen[strict, name] = [chunk.choices[0].finish_reason for chunk in start()]
        except openai.APIResponseValidationError as error:
            seen[strict, name] = type(error).__name__
        print(f"{name}, strict={strict}: {seen[strict, name]}")
assert seen.pop((True, "completions")) == "APIResponseValidationError", "changed"
assert all(reasons == [None, "stop"] for reasons in seen.values())
PYTHON
