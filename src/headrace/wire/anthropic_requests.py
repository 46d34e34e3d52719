"""The body of Anthropic's ``/v1/messages`` → `Call`. ``system`` and contents are texts or lists of blocks.

A result of a tool is a block of a user's message there, and a message of its own here. ``cache_control`` is a hint:
prefixes are cached by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headrace.constraint import Constraint
from headrace.errors import InvalidRequest, Unsupported
from headrace.types import SamplingParams
from headrace.wire.calls import AnswerStyle, Call, Conversation, Tool, ToolChoice
from headrace.wire.constraints import json_schema
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import Limits
from headrace.wire.sampling import GREEDY_BELOW, INT32
from headrace.wire.tools import made_call, parse_function, parse_tools

FIELDS = frozenset(
    {
        "model", "max_tokens", "messages", "system", "stop_sequences", "stream", "temperature", "top_k", "top_p",
        "thinking", "tools", "tool_choice", "output_config",
    }
)  # fmt: skip
HINTS: Mapping[str, type] = {"metadata": dict, "cache_control": dict, "service_tier": str, "inference_geo": str}
"""They name the caller or tune what is the same here either way."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": ({}, {"edits": []}),
    "diagnostics": ({},),
    "mcp_servers": ([],),
    "speed": ("standard",),
}
_TOOL_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "eager_input_streaming": (False, True),  # arguments are always sent as they come
    "input_examples": ([],),
}
EFFORTS = ("low", "medium", "high", "xhigh", "max")


def parse_messages(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /v1/messages``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    fields = Fields(body)
    max_tokens = fields.integer("max_tokens", 1, INT32)
    if max_tokens is None:
        raise fields.wrong("max_tokens", "is missing; it says how long the answer may be")
    return _parse(body, limits, defaults, min(max_tokens, limits.max_model_len))


def parse_count(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /v1/messages/count_tokens``: as for ``/v1/messages``, but nothing needs to be said of the
    answer.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    return _parse(body, limits, defaults, 1)


def _parse(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float], max_tokens: int) -> Call:
    _known(body)
    fields = Fields(body)
    messages = [*_system(fields.raw("system")), *_messages(fields, limits)]
    tools = parse_tools(fields.raw("tools"), limits, _tool)
    choice, parallel = _tool_choice(fields, tools)
    thinking, shows = _thinking(fields)
    effort, constraint = _output(fields, limits)
    continues = messages[-1]["role"] == "assistant"  # it is to be gone on with
    if continues and messages[-1].get("tool_calls"):
        raise InvalidRequest("messages must not end with the use of a tool; add its result", "messages")
    conversation = Conversation(
        tuple(messages),
        add_generation_prompt=not continues,
        continue_final_message=continues,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        thinking=thinking,
        effort=effort,
    )
    return Call(
        content=conversation,
        sampling=_sampling(fields, limits, max_tokens, defaults),
        max_tokens=max_tokens,
        open_ended=True,
        style=AnswerStyle(stream=fields.boolean("stream"), include_reasoning=shows),
        model=fields.text("model", limits.max_name_chars),
        constraint=constraint,
    )


def _sampling(fields: Fields, limits: Limits, max_tokens: int, defaults: Mapping[str, float]) -> SamplingParams:
    temperature = fields.number("temperature", 0, 1)
    temperature = defaults.get("temperature", 1.0) if temperature is None else temperature
    top_k = fields.integer("top_k", 0, INT32)
    top_k = int(defaults.get("top_k", 0)) if top_k is None else top_k
    top_p = fields.number("top_p", 0, 1, above=True)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_k=top_k if 0 < top_k < limits.vocab_size else 0,
        top_p=defaults.get("top_p", 1.0) if top_p is None else top_p,
        min_p=defaults.get("min_p", 0.0),
        repetition_penalty=defaults.get("repetition_penalty", 1.0),
        stop=fields.texts("stop_sequences", limits.max_stop, limits.max_stop_chars),
    )


def _thinking(fields: Fields) -> tuple[bool | None, bool]:
    """Whether the model reasons, and whether the answer shows it. ``budget_tokens`` is no bound: it is the most that
    may be used of ``max_tokens``, and the model stops by itself."""
    value = fields.mapping("thinking", 8)
    inner = Fields(value, "thinking.")
    kind = value.get("type", "adaptive")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise inner.wrong("type", f"must be enabled, disabled or adaptive, not {shown(kind)}")
    inner.integer("budget_tokens", 1, INT32)
    if value.get("display") not in (None, "summarized", "omitted"):
        raise inner.wrong("display", "must be summarized or omitted")
    thinking = {"enabled": True, "disabled": False, "adaptive": None}[kind]
    return thinking, kind != "disabled" and value.get("display") != "omitted"


def _output(fields: Fields, limits: Limits) -> tuple[str, Constraint | None]:
    value = fields.mapping("output_config", 8)
    effort = value.get("effort")
    if effort is not None and effort not in EFFORTS:
        raise fields.wrong("output_config", f"has an effort that is none of {', '.join(EFFORTS)}")
    form = value.get("format")
    if form is None:
        return effort or "", None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise fields.wrong("output_config", 'must have a format of the type "json_schema", or none')
    return effort or "", json_schema(form.get("schema"), limits, "output_config.format")


# ------------------------------------------------------------------------------------------------------ messages


def _system(value: object) -> list[dict[str, Any]]:
    text = _text(value, "system") if value is not None else ""
    return [{"role": "system", "content": text}] if text else []


def _messages(fields: Fields, limits: Limits) -> list[dict[str, Any]]:
    value = fields.raw("messages")
    if not isinstance(value, list) or not value:
        raise fields.wrong("messages", "must be a list with at least one message")
    if len(value) > limits.max_messages:
        raise fields.wrong("messages", f"has {len(value)} entries; the limit is {limits.max_messages}")
    names: dict[str, str] = {}  # of the tools, by the ids of their uses
    return [message for index, item in enumerate(value) for message in _message(item, f"messages[{index}]", names)]


def _message(value: object, path: str, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    if not isinstance(value, dict) or set(value) - {"role", "content"}:
        raise InvalidRequest(f"{path} must be an object with role and content", path)
    role, content = value.get("role"), value.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(f"{path}.content must be a string or a list of blocks, not {shown(content)}", path)
    blocks = [_block(block, f"{path}.content[{index}]") for index, block in enumerate(content)]
    if role == "user":
        yield from _of_user(blocks, path, names)
    elif role == "assistant":
        yield _of_assistant(blocks, path, names)
    elif role == "system":
        yield {"role": "system", "content": _text(content, f"{path}.content")}
    else:
        raise InvalidRequest(f"{path}.role must be user, assistant or system, not {shown(role)}", path)


def _of_user(blocks: list[dict[str, Any]], path: str, names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    texts: list[str] = []
    results = 0
    for block in blocks:
        if block["type"] == "tool_result":
            results += 1
            text = _text(block.get("content") or "", f"{path}.content")
            use = check_text(block.get("tool_use_id"), f"{path}.content.tool_use_id")
            message = {
                "role": "tool",
                "tool_call_id": use,
                "content": f"Error: {text}" if block.get("is_error") else text,
            }
            yield {**message, "name": names[use]} if use in names else message
        elif block["type"] == "text":
            texts.append(check_text(block.get("text"), f"{path}.content.text"))
        else:
            raise InvalidRequest(f"{path} has a block of type {block['type']}, which is not a user's", path)
    if texts or not results:
        yield {"role": "user", "content": "\n".join(texts)}


def _of_assistant(blocks: list[dict[str, Any]], path: str, names: dict[str, str]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block["type"]
        if kind == "text":
            texts.append(check_text(block.get("text"), f"{path}.content.text"))
        elif kind == "thinking":
            thoughts.append(check_text(block.get("thinking"), f"{path}.content.thinking"))
        elif kind == "tool_use":
            call_id = check_text(block.get("id"), f"{path}.content.id")
            calls.append(made_call(call_id, block.get("name"), block.get("input"), f"{path}.content"))
            names[call_id] = str(block.get("name"))
        else:
            raise InvalidRequest(f"{path} has a block of type {kind}, which is not an assistant's", path)
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


_BLOCKS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text", "citations"}),
    "thinking": frozenset({"thinking", "signature"}),
    "tool_use": frozenset({"id", "name", "input", "caller", "toolset_name"}),
    "tool_result": frozenset({"tool_use_id", "content", "is_error", "toolset_name"}),
}


def _block(value: object, path: str) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise InvalidRequest(f"{path} must be an object with a type", path)
    if kind not in _BLOCKS:
        raise Unsupported(f"{path} is of type {shown(kind)}: only text, thinking and tools are supported", path)
    unknown = value.keys() - _BLOCKS[kind] - {"type", "cache_control"}
    if unknown:
        raise InvalidRequest(f"{path} has the unknown field {shown(sorted(unknown)[0])}", path)
    return value


def _text(value: object, path: str) -> str:
    """A text, or blocks of text alone."""
    if isinstance(value, str):
        return check_text(value, path)
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a string or a list of blocks, not {shown(value)}", path)
    blocks = [_block(block, f"{path}[{index}]") for index, block in enumerate(value)]
    for index, block in enumerate(blocks):
        if block["type"] != "text":
            raise Unsupported(f"{path}[{index}] is of type {block['type']}: only text is supported here", path)
    return "\n".join(check_text(block.get("text"), path) for block in blocks)


# --------------------------------------------------------------------------------------------------------- tools


def _tool(value: object, path: str) -> Tool:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object, not {shown(value)}", path)
    if value.get("type") not in (None, "custom"):
        raise Unsupported(f"{path} is of type {shown(value['type'])}: only tools of your own are supported", path)
    if "input_schema" not in value:
        raise InvalidRequest(f"{path}.input_schema is missing", path)
    for name, neutral in _TOOL_NEUTRAL.items():
        if value.get(name) is not None and value[name] not in neutral:
            raise Unsupported(f"{path}.{name} is not supported", path)
    left_out = {*_TOOL_NEUTRAL, "cache_control", "type"}
    return parse_function({k: v for k, v in value.items() if k not in left_out}, path, "input_schema")


def _tool_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[ToolChoice, bool]:
    """The choice, and whether there may be several calls."""
    value = fields.mapping("tool_choice", 8)
    if not value:
        return ToolChoice(), True
    kind, name = value.get("type"), value.get("name")
    parallel = not Fields(value, "tool_choice.").boolean("disable_parallel_tool_use")
    if kind in ("any", "tool") and not tools:
        raise fields.wrong("tool_choice", "needs tools")
    if kind == "tool":
        if not any(tool.name == name for tool in tools):
            raise fields.wrong("tool_choice", f"names {shown(name)}, which is not among the tools")
        return ToolChoice("required", (str(name),)), parallel
    if kind == "any":
        return ToolChoice("required"), parallel
    if kind == "none":
        return ToolChoice("none"), parallel
    if kind == "auto":
        return ToolChoice("auto"), parallel
    raise fields.wrong("tool_choice", f"must have the type auto, any, tool or none, not {shown(kind)}")


def _known(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in FIELDS or value is None:
            continue
        if name in HINTS:
            if not isinstance(value, HINTS[name]):
                raise InvalidRequest(f"{name} has the wrong type", name)
        elif name in NEUTRAL:
            if value not in NEUTRAL[name]:
                raise Unsupported(f"{name} is not supported with this value", name)
        else:
            raise InvalidRequest(f"unknown field {shown(name)}", name[:64].encode("utf-8", "replace").decode())
