"""Tools, calls and results as a model's template wants them; as plain messages where it knows nothing of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import Unsupported
from headrace.text.formats.families import SMOLLM2, Family
from headrace.text.formats.recognition import Format
from headrace.text.template import Message

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_INTRODUCTION = """\
You can call functions. Each of these lines describes one, with a JSON schema of its parameters:
<tools>
{tools}
</tools>

{how} Call functions only if they help; otherwise answer in plain words. The result of a call comes in \
<tool_response> tags."""
_ONE = 'To call a function, write nothing but a JSON object: {"name": function name, "parameters": its arguments}.'
_LIST = (
    'To call functions, write nothing but <tool_call>[{"name": function name, "arguments": its arguments}]</tool_call>,'
    " with one object for each call."
)


def prompted(
    form: Format, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """Messages and tools for the template.

    ``messages`` have string contents; the arguments of calls are objects. ``tools`` are OpenAI's objects
    (``{"type": "function", "function": {…}}``); empty: none are offered. What the template does not take is said in
    words, in the system message and in users' messages.
    """
    plain = _named([dict(message) for message in messages])
    if form.native:
        plain = [_for_template(form, message) for message in plain]
        return (plain if form.results else _results_told(plain)), list(tools) or None
    plain = _results_told([_call_told(form.family, message) for message in plain])
    return (_introduced(form, plain, tools) if tools else plain), None


def thinking_variables(form: Format, thinking: bool | None, effort: str) -> dict[str, Any]:
    """The template's variables that make the model reason or not, or as much as ``effort`` says.

    Raises:
        Unsupported: the model cannot do that.
    """
    variables: dict[str, Any] = {}
    if effort and form.effort:
        variables[form.effort] = effort
    if thinking is None:
        return variables
    if form.switch:
        return {**variables, form.switch: thinking}
    if thinking and form.reasoning is None and not form.effort:
        raise Unsupported("this model does not reason: leave reasoning_effort and thinking out", "reasoning_effort")
    if not thinking and form.thinks:
        raise Unsupported(
            "this model always reasons: its template has no variable that turns it off", "reasoning_effort"
        )
    return variables


def _named(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results with the name of the function that they come from: some templates ask for it."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and "name" not in message and message.get("tool_call_id") in names:
            message["name"] = names[message["tool_call_id"]]
    return messages


def _for_template(form: Format, message: dict[str, Any]) -> dict[str, Any]:
    if message.get("tool_calls"):
        message["tool_calls"] = [_call_for_template(form, call) for call in message["tool_calls"]]
    if form.short_ids and "tool_call_id" in message:
        message["tool_call_id"] = _short(message["tool_call_id"])
    return message


def _call_for_template(form: Format, call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if form.arguments_as_text:
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "id": _short(call["id"]) if form.short_ids else call["id"], "function": function}


def _short(call_id: str) -> str:
    """An id of nine characters, the same for the same id."""
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _call_told(family: Family, message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's calls as the text that it would have written."""
    calls = message.pop("tool_calls", None)
    if not calls:
        return message
    writing, texts = family.writing, []
    for call in calls:
        shape = writing.shape(call["function"]["name"], {})
        texts.append(shape.begin + json.dumps(call["function"]["arguments"], ensure_ascii=False) + shape.end)
    written = writing.prefix + writing.separator.join(texts) + writing.suffix
    return {**message, "content": f"{message['content']}\n{written}" if message["content"] else written}


def _results_told(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results as messages of the user's. What follows one joins it: many templates want roles to alternate."""
    told: list[dict[str, Any]] = []
    open_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            message = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        if open_result and message["role"] == "user":
            told[-1]["content"] += f"\n{message['content']}"
        else:
            told.append(message)
        open_result = is_result
    return told


def _introduced(
    form: Format, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The tools described in the system message, or in the first of all where the template takes no system message."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = _INTRODUCTION.format(tools=lines, how=_LIST if form.family is SMOLLM2 else _ONE)
    first = messages[0]
    if not form.system:
        return [{**first, "content": f"{text}\n\n{first['content']}"}, *messages[1:]]
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
