"""What kind of body a request says that it has."""

from __future__ import annotations

from fastapi import Request

from .faults import Fault

JSON = "application/json"


def check_content_type(request: Request) -> None:
    """Raise `Fault` for a body that is not said to be JSON, whatever it is."""
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind != JSON:
        raise Fault(
            415,
            f"the request has Content-Type {given!r:.80}, and {JSON} is what is taken here; send "
            f"the header 'Content-Type: {JSON}'",
            "unsupported_content_type",
        )
