"""The bodies of Ollama's ``/api/generate`` and ``/api/chat`` → `Call`; streaming is the default.

Prompts are never cut: where Ollama drops what does not fit, and answers as if it had been read, the call is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headrace.errors import InvalidRequest, Unsupported
from headrace.wire.calls import AnswerStyle, Call, Conversation, Prompts
from headrace.wire.constraints import ollama_format
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import MAX_NAME_CHARS, Limits
from headrace.wire.ollama_options import parse_options
from headrace.wire.tools import parse_made_calls, parse_tools

MAX_OPTIONS = 64
LONGEST_STAY = 1e9
"""Seconds, some 31 years: much longer and there is no date on which it would end."""
EFFORTS = ("low", "medium", "high", "max")

_COMMON = frozenset(
    {"model", "format", "keep_alive", "options", "stream", "think", "truncate", "shift", "logprobs", "top_logprobs"}
)
_NAMES = frozenset({"model", "name"})
_SHOW = _NAMES | {"verbose"}
_PULL = _NAMES | {"stream", "insecure", "username", "password"}
_COPY = frozenset({"source", "destination"})
GENERATE_FIELDS = _COMMON | {
    "prompt", "suffix", "system", "template", "context", "raw", "images", "width", "height", "steps",
}  # fmt: skip
CHAT_FIELDS = _COMMON | {"messages", "tools"}
_MESSAGE = frozenset({"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"})
_ROLES = frozenset({"system", "user", "assistant", "tool"})

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h)")


def asked_model(body: Mapping[str, Any]) -> str:
    """The field ``model``, or ``name`` as older clients call it.

    Raises:
        InvalidRequest: there is none.
    """
    fields = Fields(body)
    name = fields.text("model", MAX_NAME_CHARS) or fields.text("name", MAX_NAME_CHARS)
    if not name:
        raise InvalidRequest("model is required", "model")
    return name


def keep_alive(body: Mapping[str, Any]) -> float | None:
    """Seconds that the model is to stay loaded after this call: negative for ever, None if nothing is said.

    Raises:
        InvalidRequest: neither a number nor a duration such as "5m", or too long.
    """
    value = body.get("keep_alive")
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is None or abs(seconds) >= LONGEST_STAY:
        raise InvalidRequest(
            f'keep_alive must be seconds or a duration such as "5m", below {LONGEST_STAY:.0f} s (-1: for ever), '
            f"not {shown(value)}",
            "keep_alive",
        )
    return seconds


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < LONGEST_STAY else None
    if isinstance(value, str) and len(value) <= 64:
        text, sign = (value[1:], -1.0) if value.startswith("-") else (value, 1.0)
        if text.isascii() and text.isdigit():
            return sign * float(text)
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
    return None


def shown_model(body: Mapping[str, Any]) -> str:
    """The body of ``POST /api/show``.

    Raises:
        InvalidRequest, Unsupported: a field is not known.
    """
    _known(body, _SHOW)
    return asked_model(body)


def parse_pull(body: Mapping[str, Any]) -> tuple[str, bool]:
    """The body of ``POST /api/pull``: the model, and whether its progress is told.

    Raises:
        InvalidRequest, Unsupported: a field is not known, or asks for what is not done.
    """
    _known(body, _PULL)
    fields = Fields(body)
    for name in ("insecure", "username", "password"):  # clients send them empty: `ollama` the first
        if fields.raw(name) not in (None, False, ""):
            raise Unsupported(f"{name} is not supported: models come over HTTPS, as the server is configured", name)
    return asked_model(body), fields.boolean("stream", True)


def copied_names(body: Mapping[str, Any]) -> tuple[str, str]:
    """The body of ``POST /api/copy``: a model, and the name that it gets beside its own.

    Raises:
        InvalidRequest: a field is not known, or one of the two is missing.
    """
    _known(body, _COPY)
    fields = Fields(body)
    source, destination = (fields.text(name, MAX_NAME_CHARS) for name in ("source", "destination"))
    if not source or not destination:
        missing = "destination" if source else "source"
        raise InvalidRequest(f"{missing} is required", missing)
    return source, destination


def deleted_model(body: Mapping[str, Any]) -> str:
    """The body of ``DELETE /api/delete``.

    Raises:
        InvalidRequest: a field is not known.
    """
    _known(body, _NAMES)
    return asked_model(body)


def parse_generate(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /api/generate``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    _known(body, GENERATE_FIELDS | _NAMES)
    fields = Fields(body)
    for name in ("suffix", "template"):
        if fields.raw(name) not in (None, ""):
            advice = "filling in the middle is not done" if name == "suffix" else "templates come with the model"
            raise Unsupported(f"{name} is not supported: {advice}", name)
    for name in ("width", "height", "steps"):
        if fields.raw(name) not in (None, 0):
            raise Unsupported(f"{name} is not supported: no images are made", name)
    _refuse_images(body, "images")
    prompt = check_text(fields.raw("prompt"), "prompt")
    system = check_text(fields.raw("system") or "", "system")
    context = fields.token_ids("context", limits.max_model_len, limits.vocab_size) or ()
    if fields.boolean("raw"):
        if system or context:
            raise InvalidRequest("raw does without system and context; put them into the prompt", "raw")
        return _call(fields, limits, defaults, Prompts((prompt,)), ids=False)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    conversation = Conversation(tuple(messages), before=context, plain_without_template=True, **_thinking(fields))
    return _call(fields, limits, defaults, conversation, ids=True)


def parse_chat(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /api/chat``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    _known(body, CHAT_FIELDS | _NAMES)
    fields = Fields(body)
    conversation = Conversation(
        _messages(fields, limits), tools=parse_tools(fields.raw("tools"), limits), **_thinking(fields)
    )
    return _call(fields, limits, defaults, conversation, ids=False)


def _call(
    fields: Fields, limits: Limits, defaults: Mapping[str, float], content: Prompts | Conversation, *, ids: bool
) -> Call:
    for name in ("truncate", "shift"):
        if fields.boolean(name):
            raise Unsupported(f"{name} is not supported: nothing is ever cut; shorten the prompt", name)
    top = fields.integer("top_logprobs", 0, limits.max_logprobs)
    if top and not fields.boolean("logprobs"):
        raise fields.wrong("top_logprobs", "needs logprobs to be true")
    logprobs = (top or 0) if fields.boolean("logprobs") else None
    options = parse_options(fields.mapping("options", MAX_OPTIONS), limits, logprobs, defaults)
    return Call(
        content=content,
        sampling=options.sampling,
        max_tokens=options.max_tokens,
        open_ended=True,
        context=options.context,
        style=AnswerStyle(
            stream=fields.boolean("stream", True),
            return_token_ids=ids,
            include_reasoning=fields.raw("think") is not False,
        ),
        model=asked_model({"model": fields.raw("model"), "name": fields.raw("name")}),
        constraint=ollama_format(fields.raw("format"), limits),
    )


def _thinking(fields: Fields) -> dict[str, Any]:
    value = fields.raw("think")
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"thinking": value}
    if value not in EFFORTS:
        raise fields.wrong("think", f"must be true, false, or one of {', '.join(EFFORTS)}, not {shown(value)}")
    return {"thinking": True, "effort": value}


def _messages(fields: Fields, limits: Limits) -> tuple[Mapping[str, Any], ...]:
    value = fields.raw("messages")
    if not isinstance(value, list):
        raise fields.wrong("messages", f"must be a list, not {shown(value)}")
    if len(value) > limits.max_messages:
        raise fields.wrong("messages", f"has {len(value)} entries; the limit is {limits.max_messages}")
    return tuple(_message(item, f"messages[{index}]", limits) for index, item in enumerate(value))


def _message(value: object, path: str, limits: Limits) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object, not {shown(value)}", path)
    fields = Fields(value, f"{path}.")
    for name in value:
        if name not in _MESSAGE:
            raise InvalidRequest(f"{path} has the unknown field {shown(name)}", path)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{path}.role must be one of {', '.join(sorted(_ROLES))}, not {shown(role)}", path)
    _refuse_images(value, f"{path}.images")
    message: dict[str, Any] = {"role": role, "content": check_text(value.get("content") or "", f"{path}.content")}
    if value.get("thinking"):
        message["reasoning_content"] = check_text(value["thinking"], f"{path}.thinking")
    if role == "tool":
        message["tool_call_id"] = fields.text("tool_call_id", limits.max_name_chars) or ""
        if (name := fields.text("tool_name", limits.max_name_chars)) is not None:
            message["name"] = name
    if value.get("tool_calls"):
        message["tool_calls"] = parse_made_calls(value["tool_calls"], f"{path}.tool_calls", limits, numbered=True)
    return message


def _refuse_images(body: Mapping[str, Any], name: str) -> None:
    if body.get("images"):
        raise Unsupported(f"{name} is not supported: only text is", name)


def _known(body: Mapping[str, Any], names: frozenset[str]) -> None:
    for name in body:
        if name not in names:
            raise InvalidRequest(f"unknown field {shown(name)}", name[:64].encode("utf-8", "replace").decode())
