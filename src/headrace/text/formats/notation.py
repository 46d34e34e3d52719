"""JSON schemas as grammars of notations that are not JSON: Gemma's values, and the tags of Qwen3-Coder and GLM.

What comes out is the right-hand side of a Lark rule for `headrace.constraint.CallShape.lark`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.constraint import literal_text
from headrace.errors import Unsupported

Schema = Mapping[str, Any]
MAX_DEPTH = 16
MAX_COUNT = 10_000
_ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "type", "$defs", "definitions", "deprecated", "$schema", "$id",
    "additionalProperties",
})  # fmt: skip
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum"}),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required"}),
}


def properties_of(schema: Schema, root: Schema) -> tuple[dict[str, Schema], frozenset[str]]:
    """An object's properties, those with references resolved, and which of them there must be."""
    properties, required = schema.get("properties"), schema.get("required")
    known = {}
    if isinstance(properties, Mapping):
        known = {str(key): resolved(value, root) for key, value in properties.items()}
    return known, frozenset(key for key in required if isinstance(key, str)) if isinstance(
        required, list
    ) else frozenset()


def resolved(schema: Any, root: Schema) -> Schema:
    """A schema, or the one in ``root`` that it refers to."""
    for _ in range(MAX_DEPTH):
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise _unsupported("false schemas")
        if "$ref" not in schema:
            return schema
        place: Any = root
        for part in str(schema["$ref"]).removeprefix("#").split("/")[1:]:
            place = place.get(part) if isinstance(place, Mapping) else None
        schema = place
    raise _unsupported("references in circles")


def texts_of(schema: Schema) -> list[str] | None:
    """The only texts that a schema of strings allows, if it says so."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(listed, list) and listed and all(isinstance(each, str) for each in listed):
        return listed
    return None


def free_text(schema: Schema) -> str:
    """A string without "<", with which closing marks begin."""
    _check(schema, "string")
    return f"/[^<]{_counted(schema, 'minLength', 'maxLength')}/"


def _counted(schema: Schema, least: str, most: str, less: int = 0) -> str:
    """A repetition between two of the schema's numbers, ``less`` of them left out."""
    low, high = schema.get(least, 0), schema.get(most)
    for number in (low, 0 if high is None else high):
        if type(number) is not int or not 0 <= number <= MAX_COUNT:
            raise _unsupported(f"{least} or {most} that is no whole number up to {MAX_COUNT}")
    if high is None:
        return f"{{{max(low - less, 0)},}}"
    return f"{{{max(low - less, 0)},{max(high - less, 0)}}}"


class Notation:
    """Gemma's: bare keys, texts between ``quote``, everything else as in JSON."""

    def __init__(self, quote: str, root: Schema) -> None:
        self._quote = literal_text(quote)
        self._root = root

    def _key(self, key: str) -> str:
        return literal_text(f"{key}:")

    def _text(self, schema: Schema) -> str:
        return f"{self._quote} {free_text(schema)} {self._quote}"

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._quote} {literal_text(value)} {self._quote}"
        if isinstance(value, dict | list):
            raise _unsupported("constants that are objects or lists")
        return literal_text(json.dumps(value))

    def _plain(self, schema: Schema) -> str:
        """A number, true, false or null."""
        return _json_rule(schema)

    def object(self, schema: Schema, depth: int = 0) -> str:
        """An object, braces included: the required properties, then the others, each in the schema's order.

        Raises:
            Unsupported: the schema has something that the notation cannot be held to.
        """
        return f'"{{" {self.members(schema, self._key, depth)} "}}"'

    def members(self, schema: Schema, written: Callable[[str], str], depth: int = 0) -> str:
        """The same without braces; ``written`` makes a key."""
        _check(schema, "object")
        properties, required = properties_of(schema, self._root)
        parts = {key: f"{written(key)} {self._value(value, depth + 1)}" for key, value in properties.items()}
        must = [part for key, part in parts.items() if key in required]
        may = [part for key, part in parts.items() if key not in required]
        comma = ' "," '
        if must:
            return comma.join(must) + "".join(f' ("," {part})?' for part in may)
        runs = [part + "".join(f' ("," {other})?' for other in may[index + 1 :]) for index, part in enumerate(may)]
        return f"({' | '.join(runs)})?" if runs else ""

    def _value(self, described: Any, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise _unsupported("schemas that are nested so deeply")
        schema = resolved(described, self._root)
        alternatives = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(alternatives, Sequence) and alternatives:
            return "(" + " | ".join(self._value(each, depth + 1) for each in alternatives) + ")"
        if "const" in schema or "enum" in schema:
            listed = [schema["const"]] if "const" in schema else schema["enum"]
            return "(" + " | ".join(self._constant(each) for each in listed) + ")"
        kinds = schema.get("type", "string")
        if isinstance(kinds, list):
            return "(" + " | ".join(self._value({**schema, "type": kind}, depth + 1) for kind in kinds) + ")"
        if kinds == "object":
            return self.object(schema, depth)
        if kinds == "array":
            return self._array(schema, depth)
        if kinds == "string":
            return self._text(schema)
        _check(schema, kinds)
        return self._plain(schema)

    def _array(self, schema: Schema, depth: int) -> str:
        _check(schema, "array")
        item = self._value(schema.get("items", {}), depth + 1)
        if schema.get("maxItems") == 0:
            return '"[" "]"'
        run = f'{item} ("," {item}){_counted(schema, "minItems", "maxItems", 1)}'
        return f'"[" {run} "]"' if schema.get("minItems") else f'"[" ({run})? "]"'


class PythonNotation(Notation):
    """Python's literals."""

    def __init__(self, root: Schema) -> None:
        super().__init__('"', root)

    def arguments(self, schema: Schema) -> str:
        """What stands between a call's brackets."""
        return self.members(schema, lambda key: literal_text(f"{key}="))

    def _key(self, key: str) -> str:
        return literal_text(f"{json.dumps(key, ensure_ascii=False)}: ")

    def _text(self, schema: Schema) -> str:
        return _json_rule(schema)

    def _constant(self, value: Any) -> str:
        if isinstance(value, dict | list):
            raise _unsupported("constants that are objects or lists")
        return literal_text(json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value))

    def _plain(self, schema: Schema) -> str:
        if schema["type"] == "boolean":
            return '("True" | "False")'
        return '"None"' if schema["type"] == "null" else _json_rule(schema)


def _json_rule(schema: Schema) -> str:
    kind = schema.get("type", "string")
    return f"%json {json.dumps({'type': kind, **{k: v for k, v in schema.items() if k in _OF_TYPE[kind]}})}"


def _check(schema: Schema, kind: Any) -> None:
    """That a schema of this type has no keyword that would go unheeded."""
    if kind not in _OF_TYPE:
        raise _unsupported(f"the type {kind!r}")
    unheeded = schema.keys() - _ANNOTATIONS - _OF_TYPE[kind]
    if unheeded:
        raise _unsupported(f"{sorted(unheeded)[0]} in schemas of {kind}s")


def _unsupported(what: str) -> Unsupported:
    return Unsupported(
        f"this model's calls are not written in JSON, and {what} cannot be held to there; leave it out, or use "
        'tool_choice "auto" without strict',
        "tools",
    )
