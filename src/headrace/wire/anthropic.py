"""Anthropic's way to write messages and errors: named events around blocks of content."""

from __future__ import annotations

import json
from typing import Any

from headrace.errors import OverloadError, QueueFull
from headrace.wire.anthropic_requests import parse_messages
from headrace.wire.calls import Call
from headrace.wire.chunks import escape, to_json
from headrace.wire.deltas import Delta, Head, ToolCallDelta, Usage
from headrace.wire.dialects import Dialect
from headrace.wire.failures import ErrorShape, message_of, status_of
from headrace.wire.fold import Choice, Passage, ToolCall

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
_TEXT = '{"type":"text","text":""}'
_THINKING = '{"type":"thinking","thinking":"","signature":""}'


class EventWriter:
    """A stream's events: the message's beginning, its blocks one after the other, its end."""

    def __init__(self, head: Head, call: Call) -> None:
        self._head = head
        self._block = -1
        self._open: str | int | None = None
        """What is open: "text", "thinking", or the number of a call."""
        self._delta = ""
        """The open block's next event, as far as it is always the same."""
        self._begun = False
        self._finish: Delta | None = None

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """What the delta brings, in a block of its kind. ``usage`` of the first one tells of the prompt."""
        events = ""
        if not self._begun:
            self._begun = True
            message = {**_message(self._head, [], None, None), "usage": usage_json(usage)}
            events = _event("message_start", f'"message":{to_json(message)}')
        if delta.reasoning:
            events += self._switch("thinking", _THINKING, "thinking_delta", "thinking")
            events += f"{self._delta}{escape(delta.reasoning)}}}}}\n\n"
        if delta.text:
            if self._open != "text":
                events += self._switch("text", _TEXT, "text_delta", "text")
            events += f"{self._delta}{escape(delta.text)}}}}}\n\n"
        for call in delta.tool_calls:
            events += self._call(call)
        if delta.finish is not None:
            self._finish = delta
        return events.encode()

    def end(self, usage: Usage) -> bytes:
        """The last block's end, the message's, and why."""
        reason, sequence = _stop(self._finish.finish, self._finish.stop_reason) if self._finish else (None, None)
        delta = to_json({"stop_reason": reason, "stop_sequence": sequence})
        events = self._close() + _event("message_delta", f'"delta":{delta},"usage":{to_json(usage_json(usage))}')
        return f'{events}event: message_stop\ndata: {{"type":"message_stop"}}\n\n'.encode()

    def _call(self, call: ToolCallDelta) -> str:
        events = ""
        if self._open != call.index:
            start = to_json({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            events = self._switch(call.index, start, "input_json_delta", "partial_json")
        return f"{events}{self._delta}{escape(call.arguments)}}}}}\n\n" if call.arguments else events

    def _switch(self, kind: str | int, start: str, delta: str, field: str) -> str:
        """Close what is open, if it is something else, and open a block."""
        if self._open == kind:
            return ""
        events = self._close()
        self._block += 1
        self._open = kind
        self._delta = (
            f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._block},'
            f'"delta":{{"type":"{delta}","{field}":'
        )
        return events + _event("content_block_start", f'"index":{self._block},"content_block":{start}')

    def _close(self) -> str:
        if self._open is None:
            return ""
        self._open = None
        return _event("content_block_stop", f'"index":{self._block}')


def document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """The whole message."""
    (choice,) = choices
    content = [_content(block) for block in choice.blocks]
    return {**_message(head, content, *_stop(choice.finish, choice.stop_reason)), "usage": usage_json(usage)}


def usage_json(usage: Usage) -> dict[str, Any]:
    """``input_tokens`` are those that were not in the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _message(head: Head, content: list[dict[str, Any]], reason: str | None, sequence: str | None) -> dict[str, Any]:
    return {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
    }


def _stop(finish: str | None, reason: int | str | None) -> tuple[str, str | None]:
    if finish == "length":
        return "max_tokens", None
    if finish == "tool_calls":
        return "tool_use", None
    return ("stop_sequence", reason) if isinstance(reason, str) else ("end_turn", None)


def _content(block: Passage | ToolCall) -> dict[str, Any]:
    if isinstance(block, ToolCall):
        return _use(block)
    if block.thought:
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _use(call: ToolCall) -> dict[str, Any]:
    """Arguments that are no object (the model was cut off) stay visible, as Anthropic's own clients are told to wrap
    them."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"INVALID_JSON": call.arguments}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _event(name: str, fields: str) -> str:
    return f'event: {name}\ndata: {{"type":"{name}",{fields}}}\n\n'


# -------------------------------------------------------------------------------------------------------- errors


def _type(error: Exception) -> str:
    if isinstance(error, OverloadError) and not isinstance(error, QueueFull) and error.status == 503:
        return "overloaded_error"
    status = status_of(error)
    return TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def _body(error: Exception) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _type(error), "message": message_of(error)}}


def _error_event(error: Exception) -> bytes:
    return f"event: error\ndata: {to_json(_body(error))}\n\n".encode()


ERRORS = ErrorShape(_body, _error_event, status_of)
MESSAGES = Dialect("msg_", parse_messages, EventWriter, document, errors=ERRORS)
