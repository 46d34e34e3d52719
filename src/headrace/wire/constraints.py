"""What a body says of its answer's form → `Constraint`, in the words of every dialect that has some.

OpenAI's ``response_format``, vLLM's ``structured_outputs`` and the older ``guided_*``; functions for the shapes of
others (TGI's ``grammar``, Ollama's ``format``). A body may ask for one form only. What is inside a schema, a regex or a
grammar is judged where it is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from headrace.constraint import Constraint, Kind
from headrace.errors import InvalidRequest
from headrace.wire.body import MAX_DEPTH, is_nested_deeper
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import Limits

GUIDED: Mapping[str, str] = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
}
"""vLLM's older fields and what `structured_outputs` calls them."""

FIELDS = frozenset(
    {"response_format", "structured_outputs", "guided_decoding_backend", "guided_whitespace_pattern", *GUIDED}
)

_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern", "disable_fallback")
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the parts of JSON, unless the request says otherwise: enough to indent, too little to get lost in."""


def parse_constraint(fields: Fields, limits: Limits) -> Constraint | None:
    """What ``response_format``, ``structured_outputs`` or a ``guided_`` field asks for; None if nothing does.

    Raises:
        InvalidRequest: naming the field, the limit and the fix.
    """
    if not fields.has_any(FIELDS):
        return None
    found = [
        constraint
        for constraint in (
            response_format(fields.raw("response_format"), limits),
            _structured(fields, limits),
            *(_guided(fields, name, limits) for name in GUIDED),
        )
        if constraint is not None
    ]
    _text(fields.raw("guided_decoding_backend"), "guided_decoding_backend", limits)  # a hint: there is one backend
    if len(found) > 1:
        names = " and ".join(constraint.field for constraint in found[:2])
        raise InvalidRequest(f"{names} both say what the answer must be; send one of them", found[1].field)
    return found[0] if found else None


def response_format(value: object, limits: Limits, name: str = "response_format") -> Constraint | None:
    """OpenAI's ``{"type": "text" | "json_object" | "json_schema" | …}``.

    A ``json_object`` with a ``value`` (what huggingface_hub makes of ``json_schema``) or a ``schema`` is held to that.
    The schema of ``json_schema`` may stand directly in the object, as in ``text.format`` of ``/v1/responses``.

    Raises:
        InvalidRequest: the shape is wrong, or the type unknown.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object, not {shown(value)}", name)
    kind = value.get("type")
    if kind in ("text", "json_object") and value.get("json_schema") is not None:
        raise InvalidRequest(f'{name} has a json_schema, which is for the type "json_schema"', name)
    if kind == "text":
        return None
    if kind == "structural_tag":
        return _constraint("structural_tag", json.dumps(value, ensure_ascii=False), name, limits)
    if kind == "json_object":
        schema = value.get("schema") if value.get("value") is None else value["value"]
        return json_object(name) if schema is None else json_schema(schema, limits, name)
    if kind != "json_schema":
        kinds = "text, json_object, json_schema or structural_tag"
        raise InvalidRequest(f"{name}.type must be {kinds}, not {shown(kind)}", name)
    holder, path = value, name
    if "json_schema" in value:
        holder, path = value["json_schema"], f"{name}.json_schema"
        if not isinstance(holder, dict):
            raise InvalidRequest(f"{path} must be an object with a schema, not {shown(holder)}", name)
    schema = holder.get("schema")
    if schema is None:
        raise InvalidRequest(f"{path}.schema is missing; it is what the answer is held to", name)
    return json_schema(schema, limits, name)


def json_object(field: str) -> Constraint:
    """Any JSON object."""
    return Constraint("json_object", json.dumps({"type": "object", **_guidance(_WHITESPACE)}), field)


def json_schema(
    schema: object, limits: Limits, field: str, *, whitespace: str | None = _WHITESPACE, closed: bool = False
) -> Constraint:
    """A JSON schema, as an object, as JSON text, or true. ``whitespace``: a regex of what may stand between the parts
    (None: nothing). ``closed``: objects have no properties but those that are named, however deep they are.

    Raises:
        InvalidRequest: no schema, or too large.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(check_text(schema, field, limits.max_constraint_chars))
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{field}: the schema is a string that is not valid JSON", field) from None
        if is_nested_deeper(schema, MAX_DEPTH):
            raise InvalidRequest(f"{field}: the schema is nested more than {MAX_DEPTH} deep", field)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{field}: the schema must be an object, not {shown(schema)}", field)
    whole: dict[str, Any] = _closed(schema) if closed else schema
    if whole.get("x-guidance") is None:
        whole = {**whole, **_guidance(whitespace)}
    return _constraint("json_schema", json.dumps(whole, ensure_ascii=False), field, limits)


_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"const", "enum", "default", "examples"})


def _closed(schema: Any) -> Any:
    """The schema, and all within it, with ``additionalProperties`` false where there are properties and it is not
    said."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    if not schema.keys().isdisjoint({"properties", "patternProperties"}):
        result["additionalProperties"] = False
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            result[key] = {name: _closed(each) for name, each in value.items()}
        else:
            result[key] = value if key in _DATA else _closed(value)
    return result


def tgi_grammar(value: object, limits: Limits, name: str = "parameters.grammar") -> Constraint | None:
    """TGI's ``{"type": "json" | "json_object" | "json_schema" | "regex", "value": …}``.

    Raises:
        InvalidRequest: the shape is wrong, or the type unknown.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object with type and value, not {shown(value)}", name)
    kind, content = value.get("type"), value.get("value")
    if content is None:
        raise InvalidRequest(f"{name}.value is missing", name)
    if kind == "regex":
        return _constraint("regex", check_text(content, f"{name}.value"), name, limits)
    if kind == "json_schema" and isinstance(content, dict):
        content = content.get("schema", content)
    if kind not in ("json", "json_object", "json_schema"):
        raise InvalidRequest(f"{name}.type must be json, json_schema or regex, not {shown(kind)}", name)
    return json_schema(content, limits, name)


def ollama_format(value: object, limits: Limits, name: str = "format") -> Constraint | None:
    """Ollama's ``"json"`` or a schema; an empty string or null is no constraint.

    Raises:
        InvalidRequest: something else.
    """
    if value is None or value == "":
        return None
    if value == "json":
        return json_object(name)
    if not isinstance(value, dict):
        raise InvalidRequest(f'{name} must be "json" or a JSON schema, not {shown(value)}', name)
    return json_schema(value, limits, name)


def _guidance(whitespace: str | None) -> Mapping[str, Any]:
    """llguidance's options, which travel in the schema."""
    return {"x-guidance": {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}}


def _constraint(kind: Kind, value: str, field: str, limits: Limits) -> Constraint:
    return Constraint(kind, check_text(value, field, limits.max_constraint_chars), field)


def _text(value: object, field: str, limits: Limits) -> str | None:
    return None if value is None else check_text(value, field, limits.max_constraint_chars)


def _structured(fields: Fields, limits: Limits) -> Constraint | None:
    """vLLM's ``structured_outputs``: one of its kinds, and options for JSON."""
    name = "structured_outputs"
    value = fields.mapping(name, 16)
    if not value:
        return None
    inner = Fields(value, f"{name}.")
    for key in value:
        if key not in _READERS and key not in _OPTIONS and key != "_backend":
            known = ", ".join((*_READERS, *_OPTIONS))
            raise InvalidRequest(f"{name} has the unknown field {shown(key)}; it knows {known}", name)
    asked = [key for key in _READERS if value.get(key) not in (None, False)]
    if len(asked) != 1:
        raise InvalidRequest(f"{name} must have exactly one of {', '.join(_READERS)}", name)
    whitespace: str | None = _text(inner.raw("whitespace_pattern"), f"{name}.whitespace_pattern", limits)
    if inner.boolean("disable_any_whitespace"):
        whitespace = None
    elif whitespace is None:
        whitespace = _WHITESPACE
    inner.boolean("disable_fallback")  # there is nothing to fall back to
    closed = inner.boolean("disable_additional_properties")
    if asked[0] == "json":
        return json_schema(value["json"], limits, name, whitespace=whitespace, closed=closed)
    return _READERS[asked[0]](value[asked[0]], limits, name)


def _guided(fields: Fields, name: str, limits: Limits) -> Constraint | None:
    value = fields.raw(name)
    if value is None or value is False:
        return None
    if name == "guided_json":
        pattern = _text(fields.raw("guided_whitespace_pattern"), "guided_whitespace_pattern", limits)
        return json_schema(value, limits, name, whitespace=pattern or _WHITESPACE)
    return _READERS[GUIDED[name]](value, limits, name)


def _read_regex(value: object, limits: Limits, field: str) -> Constraint:
    return _constraint("regex", check_text(value, field), field, limits)


def _read_choice(value: object, limits: Limits, field: str) -> Constraint:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{field}: a choice must be a list of at least one text, not {shown(value)}", field)
    if len(value) > limits.max_choices:
        raise InvalidRequest(f"{field}: there are {len(value)} choices; the limit is {limits.max_choices}", field)
    texts = [check_text(item, field) for item in value]
    if not all(texts):
        raise InvalidRequest(f"{field}: a choice must not be empty", field)
    return _constraint("choice", json.dumps(texts, ensure_ascii=False), field, limits)


def _read_grammar(value: object, limits: Limits, field: str) -> Constraint:
    text = check_text(value, field)
    return _constraint("ebnf" if "::=" in text else "lark", text, field, limits)


def _read_object(value: object, limits: Limits, field: str) -> Constraint:
    if value is not True:
        raise InvalidRequest(f"{field}: json_object must be true or false, not {shown(value)}", field)
    return json_object(field)


def _read_tag(value: object, limits: Limits, field: str) -> Constraint:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _constraint("structural_tag", text, field, limits)


def _read_json(value: object, limits: Limits, field: str) -> Constraint:
    return json_schema(value, limits, field)


_READERS: Mapping[str, Callable[[object, Limits, str], Constraint]] = {
    "json": _read_json,
    "json_object": _read_object,
    "regex": _read_regex,
    "choice": _read_choice,
    "grammar": _read_grammar,
    "structural_tag": _read_tag,
}
