"""Ollama's way to write answers and errors: one JSON object a line, no empty lines, times in nanoseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from msgspec import Struct

from headrace.errors import ModelNotFound, QueueFull
from headrace.wire.calls import Call
from headrace.wire.chunks import escape, to_json
from headrace.wire.deltas import LOGPROB_FLOOR, Alternative, Delta, Head, ShownToken, ToolCallDelta, Usage
from headrace.wire.dialects import Dialect, Headers
from headrace.wire.failures import ErrorShape, message_of, status_of
from headrace.wire.fold import Choice, ToolCall
from headrace.wire.ollama_requests import asked_model, parse_chat, parse_generate

LINES: Headers = (
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def now() -> str:
    """This moment, as RFC 3339 has it."""
    return f"{datetime.now(UTC).isoformat()[:-6]}Z"


class Form(Struct, frozen=True):
    """Where a line has its text, what was thought, and its calls: what stands before and after each."""

    text: tuple[str, str]
    thinking: tuple[str, str]
    calls: tuple[str, str]


GENERATE_FORM = Form(('"response":', ""), ('"response":"","thinking":', ""), ('"response":"","tool_calls":', ""))
_MESSAGE = '"message":{"role":"assistant","content":'
CHAT_FORM = Form((_MESSAGE, "}"), (f'{_MESSAGE}"","thinking":', "}"), (f'{_MESSAGE}"","tool_calls":', "}"))


class LineWriter:
    """A stream's lines: thinking, text and whole calls, each in a line of its own; then the end with the numbers."""

    def __init__(self, form: Form, head: Head, call: Call) -> None:
        self._form = form
        self._open = f'{{"model":{escape(model_name(head, call))},"created_at":"'
        self._finish: str | None = None
        self._calls: list[ToolCall] = []
        self._sent = 0  # of the calls
        self._ids: list[int] | None = [] if call.style.return_token_ids else None

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """Whatever the delta brings but its end, which waits for `end`."""
        form, lines = self._form, ""
        if self._ids is not None:
            if delta.prompt is not None:
                self._ids += delta.prompt.token_ids or ()
            self._ids += delta.token_ids
        if delta.reasoning:
            lines = self._line(form.thinking, escape(delta.reasoning))
        if delta.text or delta.logprobs:
            extra = f',"logprobs":{to_json(logprobs_json(delta.logprobs))}' if delta.logprobs else ""
            lines += self._line(form.text, escape(delta.text), extra)
        if delta.tool_calls:
            lines += self._take(delta.tool_calls)
        if delta.finish is not None:
            self._finish = delta.finish
            lines += self._send_until(len(self._calls))
        return lines.encode()

    def end(self, usage: Usage) -> bytes:
        """The last line."""
        before, after = self._form.text
        ending = to_json(_ending(self._finish, self._ids, usage))
        return f'{self._open}{now()}",{before}""{after},{ending[1:]}\n'.encode()

    def _line(self, place: tuple[str, str], value: str, extra: str = "") -> str:
        return f'{self._open}{now()}",{place[0]}{value}{place[1]}{extra},"done":false}}\n'

    def _take(self, fragments: Sequence[ToolCallDelta]) -> str:
        """Calls go out whole: each when the next one begins, the last one at the end."""
        for fragment in fragments:
            if fragment.index == len(self._calls):
                self._calls.append(ToolCall(fragment.id, fragment.name))
            self._calls[fragment.index].fragments.append(fragment.arguments)
        return self._send_until(len(self._calls) - 1)

    def _send_until(self, end: int) -> str:
        lines = ""
        for index in range(self._sent, end):
            call = self._calls[index]
            shown = _call_json(index, call)
            if shown is None:
                lines += self._line(self._form.text, escape(call.arguments))
            else:
                lines += self._line(self._form.calls, to_json([shown]))
        self._sent = max(self._sent, end)
        return lines


def generate_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """The answer of ``/api/generate``."""
    (choice,) = choices
    ids: list[int] | None = None
    if call.style.return_token_ids:
        prompt = choice.prompt.token_ids if choice.prompt is not None else None
        ids = [*(prompt or ()), *choice.token_ids]
    thinking = {"thinking": choice.reasoning} if choice.reasoning else {}
    return {**_opening(head, call), "response": choice.text, **thinking, **_closing(choice, ids, usage)}


def chat_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """The answer of ``/api/chat``."""
    (choice,) = choices
    calls = [(each, _call_json(index, each)) for index, each in enumerate(choice.calls)]
    text = choice.text + "".join(each.arguments for each, shown in calls if shown is None)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if choice.reasoning:
        message["thinking"] = choice.reasoning
    if any(shown is not None for _, shown in calls):
        message["tool_calls"] = [shown for _, shown in calls if shown is not None]
    return {**_opening(head, call), "message": message, **_closing(choice, None, usage)}


def model_name(head: Head, call: Call) -> str:
    """The model is called in the answer what it was called in the question."""
    return call.model or head.model


def _opening(head: Head, call: Call) -> dict[str, Any]:
    return {"model": model_name(head, call), "created_at": now()}


def _closing(choice: Choice, ids: list[int] | None, usage: Usage) -> dict[str, Any]:
    shown = {"logprobs": logprobs_json(choice.logprobs)} if choice.logprobs else {}
    return {**shown, **_ending(choice.finish, ids, usage)}


def _ending(finish: str | None, ids: list[int] | None, usage: Usage) -> dict[str, Any]:
    """``done`` and what comes with it: times in nanoseconds, what is zero left out."""
    timing = usage.timing
    numbers = {
        "total_duration": nanoseconds(timing.total),
        "load_duration": nanoseconds(timing.load),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(timing.prefill),
        "eval_count": usage.completion_tokens,
        "eval_duration": nanoseconds(timing.decode),
    }
    return {
        "done": True,
        "done_reason": "length" if finish == "length" else "stop",
        **({} if ids is None else {"context": ids}),
        **{name: number for name, number in numbers.items() if number},
    }


def nanoseconds(seconds: float) -> int:
    """As Ollama counts time."""
    return round(seconds * 1e9)


def _call_json(index: int, call: ToolCall) -> dict[str, Any] | None:
    """The call with its arguments as an object; None if they are none (the model was cut off), and are only text."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return None
    if not isinstance(arguments, dict):
        return None
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def logprobs_json(tokens: Sequence[ShownToken]) -> list[dict[str, Any]]:
    """Each token with its alternatives."""
    return [{**_logprob(token), "top_logprobs": [_logprob(other) for other in token.top]} for token in tokens]


def _logprob(token: ShownToken | Alternative) -> dict[str, Any]:
    logprob = LOGPROB_FLOOR if token.logprob is None else max(token.logprob, LOGPROB_FLOOR)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.data)}


def loaded_generate(model: str, unloaded: bool) -> dict[str, Any]:
    """The answer of ``/api/generate`` to a call without a prompt."""
    return _loaded(model, unloaded, {"response": ""})


def loaded_chat(model: str, unloaded: bool) -> dict[str, Any]:
    """The answer of ``/api/chat`` to a call without messages."""
    return _loaded(model, unloaded, {"message": {"role": "assistant", "content": ""}})


def _loaded(model: str, unloaded: bool, empty: Mapping[str, Any]) -> dict[str, Any]:
    reason = "unload" if unloaded else "load"
    return {"model": model, "created_at": now(), **empty, "done": True, "done_reason": reason}


# -------------------------------------------------------------------------------------------------------- errors


def _body(error: Exception) -> dict[str, str]:
    if isinstance(error, ModelNotFound) and error.name is not None:
        return {"error": f"model '{error.name}' not found"}
    return {"error": message_of(error)}


def _event(error: Exception) -> bytes:
    return f"{to_json(_body(error))}\n".encode()


def _status(error: Exception) -> int:
    return 503 if isinstance(error, QueueFull) else status_of(error)


ERRORS = ErrorShape(_body, _event, _status)

GENERATE = Dialect(
    "gen-",
    parse_generate,
    partial(LineWriter, GENERATE_FORM),
    generate_document,
    asked_model,
    ERRORS,
    LINES,
    any_media_type=True,
)
CHAT = Dialect(
    "chat-", parse_chat, partial(LineWriter, CHAT_FORM), chat_document, asked_model, ERRORS, LINES, any_media_type=True
)
