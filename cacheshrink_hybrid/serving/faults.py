"""Errors as OpenAI's error objects: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import (
    CacheFullError,
    ConfigError,
    EngineClosedError,
    PromptLengthError,
    QueueFullError,
)
from .neutral_fields import words_of_unread
from .schema import MOST_TOLD, ChatRequest, CompletionRequest

CLIENT_GONE = 499
"""Status in the log and the metrics of a request whose client did not wait for the whole answer."""
RETRY_SECONDS = 1
MOST_READ = 8 * MOST_TOLD
"""Of pydantic's errors, which has several where a field may be of several kinds."""
ROUTES = (
    "there are POST /v1/chat/completions and /v1/completions, GET /v1/models, /metrics and /health"
)


@dataclass(eq=False)
class Fault(Exception):
    """What is wrong with a request, or here.

    Attributes:
        status: of HTTP.
        message: for a person.
        code: for a program; None where the status says it all.
        param: the field at fault, if it is one.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None

    @property
    def kind(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def json(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):  # what still comes is no other request
            headers["Connection"] = "close"
        if self.status == 504:  # it would take as long again; OpenAI's clients look for this
            headers["x-should-retry"] = "false"
        return JSONResponse(self.json(), self.status, headers)


TOO_LONG = "context_length_exceeded"
NO_JSON = Fault(400, "the body is no JSON; send an object as of OpenAI's API", "invalid_json")
NO_HTTP = Fault(400, "this is no request of HTTP/1.1; send one, without TLS", "invalid_http")
TOLD: tuple[tuple[type[Exception], int, str | None, str | None], ...] = (
    (QueueFullError, 429, "queue_full", None),
    (CacheFullError, 400, TOO_LONG, None),
    (PromptLengthError, 400, TOO_LONG, None),
    (ConfigError, 400, None, None),
    (EngineClosedError, 503, "stopping", "the server is about to stop; send this again later"),
    (RecursionError, 400, "nested_too_deeply", "the body is nested too deeply; send fewer levels"),
    (TimeoutError, 504, "timeout", "it took too long and was given up; ask for less"),
)
"""Errors with their status, code and words; None for the error's own words."""


def fault_of(error: Exception) -> Fault:
    """How an error is told to the client; what is nobody's fault out there is an internal error,
    whose words stay here."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, RequestValidationError):
        return _fault_of_body(error)
    if isinstance(error, HTTPException):
        if error.status_code == 400:  # raised by FastAPI where a body cannot be read at all
            return NO_JSON
        return Fault(error.status_code, f"{error.detail}; {ROUTES}")
    for kind, status, code, words in TOLD:
        if isinstance(error, kind):
            return Fault(status, words or str(error), code, _field_of(str(error)))
    return Fault(500, "an internal error; the server's log has it", "internal_error")


def _field_of(message: str) -> str | None:
    """The field that a message of the engine is about, with whose name it begins then."""
    found = re.match(r"(\w+)(\.\w+|\[\d+\])*", message)
    if found is None:
        return None
    known = any(found[1] in kind.model_fields for kind in (CompletionRequest, ChatRequest))
    return found[0] if known else None


def _words(error: Mapping[str, Any], name: str) -> str:
    """What pydantic says of a field."""
    if error["type"] == "extra_forbidden":
        return words_of_unread(name)
    return str(error["ctx"]["error"] if error["type"] == "value_error" else error["msg"])


def _path(error: Mapping[str, Any], body: Any) -> str:
    """The field that an error is about, as `messages[0].content`. Pydantic's own place has names of
    types as well, where a field may be of several."""
    path, value = "", body
    place = error["loc"][1:]
    for number, part in enumerate(place):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and (
            part in value or (error["type"] == "missing" and number == len(place) - 1)
        ):
            path += f".{part:.80}"
            value = value.get(part)
    return path.removeprefix(".") or "body"


def _around(path: str) -> Iterator[str]:
    """Paths of what a field is in."""
    for found in re.finditer(r"[.\[]", path):
        yield path[: found.start()]


def _fault_of_body(error: RequestValidationError) -> Fault:
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        return NO_JSON
    told: dict[str, dict[str, None]] = {}
    for one in errors[:MOST_READ]:
        name = _path(one, error.body)
        said = _words(one, name)
        told.setdefault(name, {})[said[:1].lower() + said[1:]] = None
    # Where something inside is wrong, that the whole is of no other kind either says nothing.
    around = {outer for name in told for outer in _around(name)}
    told = {name: said for name, said in told.items() if name not in around}
    # What may be of several kinds is told what it lacks to be each of them.
    message = "; ".join(
        f"{name}: {', or '.join(said)}" for name, said in list(told.items())[:MOST_TOLD]
    )
    return Fault(400, message, param=next(iter(told)))
