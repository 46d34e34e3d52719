"""OpenAI's ``/v1/responses``: an answer as output items, whole or as events that are numbered.

The object at the end of a stream and the whole answer are made by one function of the same blocks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from headrace.errors import RequestError
from headrace.wire.calls import Call
from headrace.wire.chunks import escape, to_json
from headrace.wire.deltas import Delta, Head, ShownToken, Usage
from headrace.wire.dialects import Dialect
from headrace.wire.failures import OPENAI, ErrorShape, message_of
from headrace.wire.fold import Choice, Passage, ToolCall
from headrace.wire.responses_requests import parse_response
from headrace.wire.shapes import token_json

PREFIX = "resp_"


class Item(Struct, frozen=True):
    """One output item. Its id is the same in every event that speaks of it."""

    id: str
    block: Passage | ToolCall

    def json(self, status: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
        """The item as it is now; a message without its content when it is opened."""
        block = self.block
        if isinstance(block, ToolCall):
            return {
                "type": "function_call", "id": self.id, "call_id": block.id, "name": block.name,
                "arguments": block.arguments, "status": status,
            }  # fmt: skip
        content = [] if status == "in_progress" else [self.part(logprobs)]
        if block.thought:
            return {"type": "reasoning", "id": self.id, "summary": [], "content": content, "status": status}
        return {"type": "message", "id": self.id, "role": "assistant", "content": content, "status": status}

    def part(self, logprobs: list[Any] | None = None) -> dict[str, Any]:
        """Its only content part."""
        block = self.block
        if isinstance(block, Passage) and block.thought:
            return {"type": "reasoning_text", "text": block.text}
        text = block.text if isinstance(block, Passage) else ""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def item_of(block: Passage | ToolCall) -> Item:
    """A new item."""
    prefix = "fc_" if isinstance(block, ToolCall) else "rs_" if block.thought else "msg_"
    return Item(prefix + secrets.token_hex(12), block)


def response_json(
    head: Head, call: Call, status: str, output: list[dict[str, Any]], usage: Usage | None = None, error: Any = None
) -> dict[str, Any]:
    """The response object."""
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "completed_at": int(time.time()) if status == "completed" else None,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": head.model,
        "output": output,
        "usage": usage and _usage_json(usage),
        "truncation": "disabled",
        "service_tier": "default",
        **call.repeated,
    }


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def error_object(error: Exception) -> dict[str, Any]:
    """What a response that failed says of it."""
    return {
        "code": "invalid_prompt" if isinstance(error, RequestError) else "server_error",
        "message": message_of(error),
    }


Keep = Callable[[dict[str, Any]], None]
"""Takes the finished response object."""


def response_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """The whole answer."""
    (choice,) = choices
    status = "incomplete" if choice.finish == "length" else "completed"
    items = [item_of(block) for block in choice.blocks or [Passage(False)]]
    shown = _logprobs(choice.logprobs)
    output = [item.json(_item_status(status, item is items[-1]), shown) for item in items]
    return response_json(head, call, status, output, usage)


def _item_status(status: str, last: bool) -> str:
    return "incomplete" if status == "incomplete" and last else "completed"


def _logprobs(tokens: Any) -> list[dict[str, Any]]:
    return [token_json(token) for token in tokens]


class ResponseWriter:
    """Server-sent events with names. The items grow here too: the last event repeats all of them."""

    def __init__(self, head: Head, call: Call, keep: Keep | None = None) -> None:
        """``keep`` gets the finished response object."""
        self._head = head
        self._call = call
        self._keep = keep
        self._number = 0
        self._items: list[Item] = []
        self._shown: list[ShownToken] = []
        self._finish: str | None = None
        self._prefix = ""
        """What the deltas of the open item begin with."""

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """The response is created with the first one; items open and close as their kinds take turns."""
        events = self._create() if self._number == 0 else ""
        if delta.reasoning:
            events += self._passage(delta.reasoning, True, ())
        if delta.text or delta.logprobs:
            events += self._passage(delta.text, False, delta.logprobs)
        for call in delta.tool_calls:
            if call.id:
                events += self._close("completed") + self._open(ToolCall(call.id, call.name))
            if call.arguments:
                self._items[-1].block.fragments.append(call.arguments)
                events += self._more(call.arguments)
        if delta.finish is not None:
            self._finish = delta.finish
        return events.encode()

    def end(self, usage: Usage) -> bytes:
        """The last item's end and the finished response."""
        status = "incomplete" if self._finish == "length" else "completed"
        events = ""
        if not self._items:
            events = self._open(Passage(False))
        events += self._close(_item_status(status, True))
        response = self._response(status, usage)
        return (events + self._event(f"response.{status}", response=response)).encode()

    def fail(self, error: Exception) -> bytes:
        """The end of a stream that fails after it has begun."""
        response = self._response("failed", None, error_object(error))
        return self._event("response.failed", response=response).encode()

    def _response(self, status: str, usage: Usage | None, error: Any = None) -> dict[str, Any]:
        shown = _logprobs(self._shown)
        broken = status != "completed"
        output = [
            item.json("incomplete" if broken and item is self._items[-1] else "completed", shown)
            for item in self._items
        ]
        response = response_json(self._head, self._call, status, output, usage, error)
        if self._keep is not None:
            self._keep(response)
        return response

    def _create(self) -> str:
        response = response_json(self._head, self._call, "in_progress", [])
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _event(self, kind: str, **fields: Any) -> str:
        event = to_json({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return f"event: {kind}\ndata: {event}\n\n"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1].id, "output_index": len(self._items) - 1}

    def _passage(self, text: str, thought: bool, logprobs: Any) -> str:
        block = self._items[-1].block if self._items else None
        events = ""
        if not isinstance(block, Passage) or block.thought != thought:
            if not text:  # a token that shows nothing yet: its logprob waits for the item that it belongs to
                self._shown += logprobs
                return ""
            block = Passage(thought)
            events = self._close("completed") + self._open(block)
        block.fragments.append(text)
        self._shown += logprobs
        extra = "" if thought else f',"logprobs":{to_json(_logprobs(logprobs)) if logprobs else "[]"}'
        return events + self._more(text, extra)

    def _more(self, text: str, extra: str = "") -> str:
        """The event of one delta, in which all but the text and the number is the same as in the last."""
        number, self._number = self._number, self._number + 1
        return f'{self._prefix}{escape(text)}{extra},"sequence_number":{number}}}\n\n'

    def _open(self, block: Passage | ToolCall) -> str:
        item = item_of(block)
        self._items.append(item)
        place = self._place
        events = self._event(
            "response.output_item.added", output_index=place["output_index"], item=item.json("in_progress")
        )
        kind = "response.function_call_arguments.delta"
        if isinstance(block, Passage):
            place["content_index"] = 0
            kind = f"response.{'reasoning' if block.thought else 'output'}_text.delta"
            events += self._event("response.content_part.added", **place, part=item.part())
        self._prefix = f'event: {kind}\ndata: {to_json({"type": kind, **place})[:-1]},"delta":'
        return events

    def _close(self, status: str) -> str:
        if not self._items:
            return ""
        item, place = self._items[-1], self._place
        block, shown = item.block, _logprobs(self._shown)
        if isinstance(block, ToolCall):
            events = self._event(
                "response.function_call_arguments.done", **place, name=block.name, arguments=block.arguments
            )
        else:
            place["content_index"] = 0
            kind = f"response.{'reasoning' if block.thought else 'output'}_text.done"
            extra = {} if block.thought else {"logprobs": shown}
            events = self._event(kind, **place, text=block.text, **extra)
            events += self._event("response.content_part.done", **place, part=item.part(shown))
        return events + self._event(
            "response.output_item.done", output_index=place["output_index"], item=item.json(status, shown)
        )


def responses(keep: Keep | None = None) -> Dialect:
    """The dialect, for one call: ``keep`` gets its finished response object."""
    writers: list[ResponseWriter] = []

    def writer(head: Head, call: Call) -> ResponseWriter:
        writers.append(ResponseWriter(head, call, keep))
        return writers[-1]

    def document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> Mapping[str, Any]:
        response = response_document(head, call, choices, usage)
        if keep is not None:
            keep(response)
        return response

    errors = ErrorShape(OPENAI.body, lambda error: writers[-1].fail(error), OPENAI.status)
    return Dialect(PREFIX, parse_response, writer, document, errors=errors)
