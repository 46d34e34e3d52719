"""A chat's messages: checked, and brought to one shape with string contents (parts joined by newlines, vLLM's rule)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import InvalidRequest, Unsupported
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import Limits
from headrace.wire.tools import parse_made_calls

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it; templates know the older
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_PLAIN = frozenset({"role", "content", "name", "reasoning_content", "reasoning"})
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "refusal": ("",),
    "audio": (),
    "function_call": (),
}
_OF_ROLE = {"assistant": "tool_calls", "tool": "tool_call_id"}
"""Fields that only messages of one role have."""
_MEDIA = frozenset({"image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "image"})


def parse_messages(value: object, limits: Limits) -> tuple[Mapping[str, Any], ...]:
    """``messages`` with known roles and string contents; the list is not empty.

    Raises:
        InvalidRequest: the shape is wrong.
        Unsupported: functions of the older kind, or content that is not text.
    """
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else "missing" if value is None else shown(value)
        raise InvalidRequest(f"messages must be a list with at least one message, not {what}", "messages")
    if len(value) > limits.max_messages:
        raise InvalidRequest(f"messages has {len(value)} entries; the limit is {limits.max_messages}", "messages")
    return tuple(_message(item, f"messages[{index}]", limits) for index, item in enumerate(value))


def _message(value: object, path: str, limits: Limits) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object, not {shown(value)}", path)
    role = value.get("role")
    if role == "function":
        raise Unsupported(f'{path}.role "function" is not supported: use tools and the role "tool"', path)
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"{path}.role must be one of {', '.join(ROLES)}, not {shown(role)}", path)
    message: dict[str, Any] = {"role": ROLES[role], "content": _content(value.get("content"), f"{path}.content", role)}
    for name, given in value.items():
        if name in _PLAIN or name == _OF_ROLE.get(role) or given is None:
            continue
        if name not in _NEUTRAL:
            raise InvalidRequest(f"{path} has a field that its role does not have, {shown(name)}", path)
        if not any(type(given) is type(neutral) and given == neutral for neutral in _NEUTRAL[name]):
            raise Unsupported(f"{path}.{name} is not supported", path)
    fields = Fields(value, f"{path}.")
    if (name := fields.text("name", limits.max_name_chars)) is not None:
        message["name"] = name
    reasoning = value.get("reasoning_content") or value.get("reasoning")
    if reasoning is not None:
        message["reasoning_content"] = check_text(reasoning, f"{path}.reasoning_content")
    if role == "assistant" and value.get("tool_calls"):
        message["tool_calls"] = parse_made_calls(value["tool_calls"], f"{path}.tool_calls", limits)
    if role == "tool":
        message["tool_call_id"] = fields.text("tool_call_id", limits.max_name_chars) or ""
        if not message["tool_call_id"]:
            raise InvalidRequest(f"{path}.tool_call_id is missing: it names the call that this is the result of", path)
    return message


def _content(value: object, path: str, role: str) -> str:
    if value is None and role == "assistant":
        return ""
    if isinstance(value, list):
        return "\n".join(_part(part, f"{path}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} must be a string or a list of text parts, not {shown(value)}", path)
    return check_text(value, path)


def _part(value: object, path: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise Unsupported(f"{path} is of type {kind}: only text is supported", path)
    if not isinstance(value, dict) or kind not in ("text", "input_text"):
        raise InvalidRequest(f'{path} must be {{"type": "text", "text": …}}', path)
    if set(value) - {"type", "text"}:
        raise InvalidRequest(f"{path} has fields other than type and text", path)
    return check_text(value.get("text"), f"{path}.text")
