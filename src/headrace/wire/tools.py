"""Tools of a chat: what is offered, what must be called, what was called before."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from headrace.errors import InvalidRequest, Unsupported
from headrace.wire.body import is_nested_deeper
from headrace.wire.calls import Tool, ToolChoice
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import Limits

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
MAX_DEPTH = 64
"""Objects and lists within each other, in a schema or in a call's arguments."""


def parse_function_tool(value: object, path: str) -> Tool:
    """OpenAI's ``{"type": "function", "function": {name, description, parameters, strict}}``, which is Ollama's too.

    Raises:
        InvalidRequest: the shape is wrong.
        Unsupported: a tool that is no function.
    """
    _, function = _opened(value, path)
    return parse_function(function, f"{path}.function")


def _opened(value: object, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tool, or a call of one, as an object, and the function in it."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object, not {shown(value)}", path)
    if value.get("type", "function") != "function":
        raise Unsupported(f"{path}.type is {shown(value['type'])}: only function is supported", path)
    function = value.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest(f"{path}.function must be an object, not {shown(function)}", path)
    return value, function


def parse_tools(
    value: object, limits: Limits, read: Callable[[object, str], Tool] = parse_function_tool
) -> tuple[Tool, ...]:
    """``tools``, each read in its dialect's shape, by ``read`` (tool, its path in the body).

    Raises:
        InvalidRequest: the shape is wrong, or two have one name.
        Unsupported: a tool that is no function.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidRequest(f"tools must be a list, not {shown(value)}", "tools")
    if len(value) > limits.max_tools:
        raise InvalidRequest(f"tools has {len(value)} entries; the limit is {limits.max_tools}", "tools")
    tools = tuple(read(item, f"tools[{index}]") for index, item in enumerate(value))
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequest("tools: two have the same name", "tools")
    return tools


def parse_function(function: Mapping[str, Any], path: str, parameters: str = "parameters") -> Tool:
    """A function's name, description, parameters (under the name that a dialect has for them) and ``strict``.

    Raises:
        InvalidRequest: one of them is wrong, or there are others.
    """
    unknown = function.keys() - {"name", "description", parameters, "strict", "type"}
    if unknown:
        raise InvalidRequest(f"{path} has the unknown field {shown(sorted(unknown)[0])}", path)
    fields = Fields(function, f"{path}.")
    name = check_name(function.get("name"), f"{path}.name")
    schema = function.get(parameters)
    if schema is None:
        schema = _NO_PARAMETERS
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{path}.{parameters} must be a JSON schema, not {shown(schema)}", path)
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f'{path}.{parameters} must be the schema of an object, "type": "object"', path)
    check_nested(schema, f"{path}.{parameters}")
    return Tool(
        name, check_text(fields.raw("description") or "", f"{path}.description"), schema, fields.boolean("strict")
    )


def check_name(value: object, path: str) -> str:
    """A function's name.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(f"{path} must be 1 to 128 characters out of A-Z a-z 0-9 _ . : -, not {shown(value)}", path)
    return value


def check_nested(value: object, path: str) -> None:
    """Check that data is not nested too deeply, and can be written.

    Raises:
        InvalidRequest: it is, or has half of a surrogate pair in it.
    """
    if is_nested_deeper(value, MAX_DEPTH):
        raise InvalidRequest(f"{path} is nested more than {MAX_DEPTH} deep", path)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{path} has an unpaired surrogate", path) from None


def parse_tool_choice(value: object, tools: tuple[Tool, ...], name: str = "tool_choice") -> ToolChoice:
    """OpenAI's ``none``, ``auto``, ``required``, a named function, or ``allowed_tools`` with a mode of its own.

    Raises:
        InvalidRequest: it is none of them, or a function that is not offered.
    """
    if value is None:
        return ToolChoice()
    if value == "none":
        return ToolChoice("none")
    if value == "auto":
        return ToolChoice("auto")
    if not tools:
        raise InvalidRequest(f"{name} needs tools", name)
    if value == "required":
        return ToolChoice("required")
    if not isinstance(value, dict) or value.get("type") not in ("function", "allowed_tools"):
        raise InvalidRequest(
            f'{name} must be "none", "auto", "required", '
            f'{{"type": "function", "function": {{"name": …}}}} or allowed_tools, not {shown(value)}',
            name,
        )
    if value["type"] == "function":
        return ToolChoice("required", (_offered(value, tools, name),))
    allowed = value.get("allowed_tools", value)  # /v1/responses has its fields in the object itself
    listed = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(listed, list) or not listed or allowed.get("mode") not in ("auto", "required"):
        raise InvalidRequest(f'{name}.allowed_tools must have a mode, "auto" or "required", and tools', name)
    names = tuple(_offered(each, tools, name) for each in listed)
    return ToolChoice("required" if allowed["mode"] == "required" else "auto", names)


def _offered(value: object, tools: tuple[Tool, ...], name: str) -> str:
    """The name of a function, under ``function`` or right in the object (as in ``/v1/responses``)."""
    function = value.get("function", value) if isinstance(value, dict) else None
    asked = function.get("name") if isinstance(function, dict) else None
    if not any(tool.name == asked for tool in tools):
        raise InvalidRequest(f"{name} names the function {shown(asked)}, which is not among the tools", name)
    return str(asked)


def parse_made_calls(value: object, path: str, limits: Limits, *, numbered: bool = False) -> list[dict[str, Any]]:
    """An assistant's ``tool_calls``, their arguments as objects. With ``numbered``, calls without an id get one.

    Raises:
        InvalidRequest: the shape is wrong, or arguments are no JSON object.
        Unsupported: a call of something that is no function.
    """
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a list, not {shown(value)}", path)
    if len(value) > limits.max_tools:
        raise InvalidRequest(f"{path} has {len(value)} entries; the limit is {limits.max_tools}", path)
    return [
        _made_call(item, f"{path}[{index}]", limits, f"call_{index}" if numbered else None)
        for index, item in enumerate(value)
    ]


def _made_call(value: object, path: str, limits: Limits, default_id: str | None) -> dict[str, Any]:
    call, function = _opened(value, path)
    return made_call(
        Fields(call, f"{path}.").text("id", limits.max_name_chars) or default_id,
        function.get("name"),
        function.get("arguments"),
        f"{path}.function",
    )


def made_call(call_id: str | None, name: object, arguments: object, path: str) -> dict[str, Any]:
    """A call that was made, in the shape that templates know. ``arguments`` is an object, or one as JSON text.

    Raises:
        InvalidRequest: a name or an id is missing, or the arguments are no object.
    """
    if not call_id:
        raise InvalidRequest(f"{path} is a call without an id", path)
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{path}.arguments is not valid JSON", path) from None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{path}.arguments must be a JSON object, not {shown(arguments)}", path)
    check_nested(arguments, f"{path}.arguments")
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": check_name(name, f"{path}.name"), "arguments": arguments},
    }
