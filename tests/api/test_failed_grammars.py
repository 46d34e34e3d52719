"""A grammar that cannot be followed to its end is its request's fault, in the words of every dialect that has some."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from headrace.types import Cause
from tests.api.conftest import Running, Start
from tests.api.fakes import FakeEngine

REASON = "the grammar takes too much time for each token; simplify it"
MESSAGES = [{"role": "user", "content": "a"}]
SCHEMA = {"type": "object"}


@dataclass(frozen=True)
class Case:
    """One dialect's call with a grammar in ``field``, the status of its failure, and the word that says whose it is."""

    path: str
    body: dict[str, Any]
    status: int
    kind: str
    field: str | None = None
    stream: str = "stream"


FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
CASES = [
    Case(
        "/v1/chat/completions",
        {"messages": MESSAGES, "response_format": FORMAT},
        400,
        "BadRequestError",
        "response_format",
    ),
    Case(
        "/v1/completions",
        {"prompt": "a", "structured_outputs": {"regex": "a+"}},
        400,
        "BadRequestError",
        "structured_outputs",
    ),
    Case(
        "/v1/responses",
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
        400,
        "invalid_prompt",
        "text.format",
    ),
    Case(
        "/v1/messages",
        {
            "model": "tiny",
            "max_tokens": 50,
            "messages": MESSAGES,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
        400,
        "invalid_request_error",
    ),
    Case("/generate", {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a+"}}}, 422, "validation"),
    Case("/", {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a+"}}}, 422, "validation"),
    Case("/api/generate", {"model": "tiny", "prompt": "a", "format": "json"}, 400, REASON),
    Case("/api/chat", {"model": "tiny", "messages": MESSAGES, "format": SCHEMA}, 400, REASON),
]


@pytest.fixture
def server(start: Start) -> Running:
    return start(FakeEngine(pace=0.001, error=REASON, cause=Cause.REQUEST, error_after=3))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_a_whole_answer(server: Running, case: Case) -> None:
    answer = httpx.post(server.url + case.path, json={**case.body, "stream": False}, timeout=60)
    assert answer.status_code == case.status
    assert REASON in answer.text
    if case.path != "/v1/responses":  # its codes are for the events of streams
        assert case.kind in answer.text
    if case.field is not None:
        assert answer.json()["error"]["param"] == case.field


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_a_stream_that_has_begun(server: Running, case: Case) -> None:
    path = "/generate_stream" if case.path == "/generate" else case.path
    body = case.body if case.path == "/generate" else {**case.body, "stream": True}
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if line and line != "data: [DONE]"]
    last = json.loads(lines[-1].removeprefix("data:"))
    assert len(lines) > 1
    assert REASON in json.dumps(last)
    assert case.kind in json.dumps(last)
    assert not server.engine.running
