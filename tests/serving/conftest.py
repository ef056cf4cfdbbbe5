"""One server for all tests that change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.engine.idle import assert_idle
from tests.serving.live import Live, live_server


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    with live_server() as running:
        yield running
    assert_idle(running.llm)


@pytest.fixture(scope="session")
def client(live: Live) -> openai.OpenAI:
    return live.client()


@pytest.fixture(scope="session")
def lenient(live: Live) -> openai.OpenAI:
    """For what the client's own types do not allow, though OpenAI sends it: no reason yet why a
    completion ends, and no log-probability of a first token."""
    return live.client(_strict_response_validation=False)
