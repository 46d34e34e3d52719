"""Anthropic's routes against a real socket: the real client."""

from typing import Any

import anthropic
import pytest

from headrace.api import ServerSettings
from headrace.errors import QueueFull
from tests.api.conftest import Start
from tests.api.fakes import TEXT, FakeEngine

USER = [{"role": "user", "content": "hi"}]


def client_of(url: str, key: str = "key") -> Any:
    """Untyped on purpose: bad calls are part of what is tested."""
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=60)


def test_a_message(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    message = client.messages.create(model="tiny", max_tokens=1000, messages=USER, system="be brief")
    (block,) = message.content
    assert (block.type, block.text, message.role, message.stop_reason) == ("text", TEXT, "assistant", "end_turn")
    prompt = len("system:be brief\nuser:hi\n")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (prompt - 4, 4)
    assert message.usage.output_tokens == len(TEXT.encode()) + 1
    count = client.messages.count_tokens(model="tiny", messages=USER, system="be brief")
    assert count.input_tokens == prompt


def test_a_stream(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    with client.messages.stream(model="tiny", max_tokens=100, messages=USER, stop_sequences=["wheel"]) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == TEXT[: TEXT.index("wheel")]
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "wheel")
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == len("user:hi\n")
    events = list(client.messages.create(model="tiny", max_tokens=3, messages=USER, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2].delta.stop_reason == "max_tokens"


def test_errors_are_the_right_classes(start: Start) -> None:
    engine = FakeEngine(pace=0.002)
    url = start(engine, ServerSettings(api_keys=("key",))).url
    client = client_of(url)
    with pytest.raises(anthropic.BadRequestError, match="temperature must be a number from 0 to 1") as caught:
        client.messages.create(model="tiny", max_tokens=3, messages=USER, extra_body={"temperature": 2})
    body: Any = caught.value.body
    assert body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", max_tokens=3, messages=USER)
    with pytest.raises(anthropic.AuthenticationError):
        client_of(url, "wrong").messages.create(model="tiny", max_tokens=3, messages=USER)
    bearer: Any = anthropic.Anthropic(base_url=url, auth_token="key", max_retries=0)
    assert bearer.messages.count_tokens(model="tiny", messages=USER).input_tokens == len("user:hi\n")
    engine.refuse = QueueFull("full", retry_after=7)
    with pytest.raises(anthropic.RateLimitError) as limited:
        client.messages.create(model="tiny", max_tokens=3, messages=USER)
    assert limited.value.response.headers["retry-after"] == "7"
    engine.refuse = None
    stream = client.messages.create(model="tiny", max_tokens=100, messages=USER, stream=True)
    next(stream)
    engine.error = "a NaN logit"
    with pytest.raises(anthropic.APIStatusError, match="a NaN logit"):
        list(stream)
