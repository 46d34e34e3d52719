"""The body of ``POST /v1/responses`` → `Call`: input items are brought to a chat's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.constraint import Constraint
from headrace.errors import InvalidRequest, Unsupported
from headrace.wire import constraints, sampling
from headrace.wire.calls import AnswerStyle, Call, Conversation, Tool
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import Limits
from headrace.wire.openai_requests import INT32, cache_salt, parse_effort
from headrace.wire.refusals import Refusal, refuse_unhonoured
from headrace.wire.tools import check_nested, made_call, parse_function, parse_tool_choice, parse_tools

REFUSED: Mapping[str, Refusal] = {
    "conversation": Refusal((), "conversations are not kept; use previous_response_id"),
    "prompt": Refusal((), "prompt templates are not kept; send instructions and input"),
    "max_tool_calls": Refusal((), "there are no built-in tools whose calls could be counted"),
    "truncation": Refusal(("disabled",), "input is never cut; shorten it before sending"),
    "context_management": Refusal(([],), "input is never cut; shorten it before sending"),
    "moderation": Refusal((), "there is no moderation"),
}
"""Fields of this route alone that are known and not honoured, as `headrace.wire.refusals.NOT_HONOURED`."""

_REPEATED = ("instructions", "metadata", "previous_response_id", "user", "safety_identifier", "prompt_cache_key")
_CHOICES = ("tools", "tool_choice", "parallel_tool_calls", "reasoning", "text", "max_output_tokens", "top_logprobs")
RESPONSES_FIELDS = (sampling.FIELDS - {"max_tokens", "prompt_logprobs", "skip_special_tokens"}) | {
    "model", "input", "stream", "stream_options", "include", "store", "background", "priority", "cache_salt", "timeout",
    "instructions", "previous_response_id", *_CHOICES,
}  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def parse_response(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /v1/responses``, whose ``input`` begins with what came before.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    refuse_unhonoured(body, RESPONSES_FIELDS, REFUSED)
    fields = Fields(body)
    max_tokens = fields.integer("max_output_tokens", 1, limits.max_model_len)
    top = fields.integer("top_logprobs", 0, limits.max_logprobs)
    logprobs = _wants_logprobs(fields.raw("include"))
    if top and not logprobs:
        raise fields.wrong("top_logprobs", f'needs include to have "{_LOGPROBS}"')
    params = sampling.parse_sampling(fields, limits, max_tokens, (top or 0) if logprobs else None, defaults)
    if max_tokens is not None and max_tokens > limits.max_work_tokens:
        raise fields.wrong("max_output_tokens", f"is more than {limits.max_work_tokens} tokens, the limit for a call")
    tools = parse_tools(fields.raw("tools"), limits, _tool)
    effort = _effort(fields)
    metadata = fields.mapping("metadata", 16)
    for name in (*_REPEATED, "text", "tool_choice"):
        check_nested(body.get(name), name)  # the answer repeats it, as it is
    conversation = Conversation(
        messages=_messages(fields, limits),
        tools=tools,
        tool_choice=parse_tool_choice(fields.raw("tool_choice"), tools),
        parallel_tool_calls=fields.boolean("parallel_tool_calls", True),
        thinking=None if effort is None else effort != "none",
        effort="" if effort in (None, "none") else effort or "",
    )
    return Call(
        content=conversation,
        sampling=params,
        max_tokens=max_tokens,
        style=AnswerStyle(stream=_stream(fields)),
        model=fields.text("model", limits.max_name_chars),
        priority=fields.integer("priority", -INT32, INT32) or 0,
        cache_salt=cache_salt(fields),
        timeout=fields.number("timeout", 0, limits.max_timeout, above=True),
        constraint=_form(fields, limits),
        repeated={
            **{name: body.get(name) for name in _REPEATED},
            "metadata": metadata,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_output_tokens": max_tokens,
            "top_logprobs": top or 0,
            "tools": body.get("tools") or [],
            "tool_choice": body.get("tool_choice") or "auto",
            "parallel_tool_calls": conversation.parallel_tool_calls,
            "text": body.get("text") or {"format": {"type": "text"}},
            "reasoning": {"effort": effort, "summary": None},
            "background": fields.boolean("background"),
            "store": fields.boolean("store", True),
        },
    )


def _stream(fields: Fields) -> bool:
    stream = fields.boolean("stream")
    options = fields.mapping("stream_options", 16)
    if options.keys() - {"include_obfuscation"}:
        raise fields.wrong("stream_options", "knows include_obfuscation only")
    if Fields(options, "stream_options.").boolean("include_obfuscation"):
        raise Unsupported("stream_options.include_obfuscation is not supported", "stream_options")
    return stream


def _wants_logprobs(include: object) -> bool:
    if include is None:
        return False
    if not isinstance(include, list):
        raise InvalidRequest(f"include must be a list, not {shown(include)}", "include")
    for name in include:
        if name != _LOGPROBS:
            raise Unsupported(f'include: {shown(name)} is not supported; only "{_LOGPROBS}" is', "include")
    return bool(include)


def _effort(fields: Fields) -> str | None:
    reasoning = fields.mapping("reasoning", 16)
    inner = Fields(reasoning, "reasoning.")
    for name in reasoning:
        if name not in ("effort", "summary", "generate_summary"):
            raise fields.wrong("reasoning", f"has the unknown field {shown(name)}")
    for name in ("summary", "generate_summary"):
        if inner.raw(name) not in (None, "auto"):
            raise Unsupported(
                f"reasoning.{name} is not supported: reasoning is given whole, not summarised", "reasoning"
            )
    return parse_effort(inner.raw("effort"), "reasoning.effort")


def _form(fields: Fields, limits: Limits) -> Constraint | None:
    """``text.format``."""
    text = fields.mapping("text", 16)
    for name, value in text.items():
        if name not in ("format", "verbosity"):
            raise fields.wrong("text", f"has the unknown field {shown(name)}")
        if name == "verbosity" and value not in (None, "medium"):
            raise Unsupported("text.verbosity is not supported: the model has no such control", "text")
    return constraints.response_format(text.get("format"), limits, "text.format")


def _tool(value: object, path: str) -> Tool:
    """A function, whose fields are right in the tool here."""
    kind = value.get("type") if isinstance(value, dict) else value
    if not isinstance(value, dict) or kind != "function":
        raise Unsupported(f"{path}.type is {shown(kind)}: only function is supported", "tools")
    return parse_function(value, path)


def input_items(value: object) -> list[Any]:
    """``input`` as a list of items: text is a message of the user's.

    Raises:
        InvalidRequest: it is neither.
    """
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": check_text(value, "input")}]
    if not isinstance(value, list) or not value:
        what = "missing" if value is None else "an empty list" if value == [] else shown(value)
        raise InvalidRequest(f"input must be text or a list of items, not {what}", "input")
    return value


def _messages(fields: Fields, limits: Limits) -> tuple[Mapping[str, Any], ...]:
    items = input_items(fields.raw("input"))
    if len(items) > limits.max_messages:
        raise fields.wrong("input", f"has {len(items)} items; the limit is {limits.max_messages}")
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        _add(messages, item, f"input[{index}]")
    for message in messages:
        message.pop("reasoning_only", None)
    instructions = fields.raw("instructions")
    if instructions is not None:
        text = check_text(instructions, "instructions")
        if messages[0]["role"] == "system":
            messages[0]["content"] = f"{text}\n\n{messages[0]['content']}"
        else:
            messages.insert(0, {"role": "system", "content": text})
    return tuple(messages)


def _add(messages: list[dict[str, Any]], item: object, path: str) -> None:
    """An item as a message of its own, or as part of the assistant's last one."""
    if not isinstance(item, dict):
        raise InvalidRequest(f"{path} must be an object, not {shown(item)}", path)
    kind = item.get("type", "message")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise InvalidRequest(f"{path}.role must be one of {', '.join(_ROLES)}, not {shown(role)}", path)
        content = _content(item.get("content"), f"{path}.content")
        if role == "assistant" and last is not None and last.pop("reasoning_only", None):
            last["content"] = content
        else:
            messages.append({"role": _ROLES[role], "content": content})
    elif kind == "function_call":
        call = made_call(_id(item, path), item.get("name"), item.get("arguments"), path)
        if last is None:
            messages.append(last := {"role": "assistant", "content": ""})
        last.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = _content(item.get("output"), f"{path}.output")
        messages.append({"role": "tool", "tool_call_id": _id(item, path), "content": output})
    elif kind == "reasoning":
        if item.get("encrypted_content"):
            raise Unsupported(f"{path}.encrypted_content is not supported: it is another server's", path)
        text = _content(item.get("content") or [], f"{path}.content")
        messages.append({"role": "assistant", "content": "", "reasoning_content": text, "reasoning_only": True})
    else:
        raise Unsupported(f"{path}.type {shown(kind)} is not supported", path)


def _id(item: Mapping[str, Any], path: str) -> str:
    call_id = check_text(item.get("call_id"), f"{path}.call_id", 512)
    if not call_id:
        raise InvalidRequest(f"{path}.call_id is empty", path)
    return call_id


def _content(value: object, path: str) -> str:
    if isinstance(value, str):
        return check_text(value, path)
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a string or a list of parts, not {shown(value)}", path)
    return "\n".join(_part(part, f"{path}[{index}]") for index, part in enumerate(value))


def _part(value: object, path: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    field = "text" if kind == "reasoning_text" else _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if not isinstance(value, dict) or field is None:
        raise Unsupported(f"{path} is of type {shown(kind)}: only text is supported", path)
    return check_text(value.get(field), f"{path}.{field}")


def history(items: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with its ``input`` after these items."""
    return {**body, "input": [*items, *input_items(body.get("input"))]}
