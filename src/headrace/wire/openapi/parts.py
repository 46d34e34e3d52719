"""The words that schemas are written in: each gives a JSON schema (draft 2020-12, as OpenAPI 3.1 has it)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Schema = Mapping[str, Any]

INT32 = (1 << 31) - 1
TRUE_OR_FALSE: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
TOKEN: Schema = {"$ref": "#/components/schemas/TokenId"}
MODEL: Schema = {"$ref": "#/components/schemas/ModelName"}


def integer(low: int, high: int | None = None) -> Schema:
    """An integer in [low, high]. ``high`` None: what the model allows."""
    return {"type": "integer", "minimum": low, **({} if high is None else {"maximum": high})}


def number(low: float, high: float, *, above: bool = False) -> Schema:
    """A number in [low, high], or in (low, high] with ``above``."""
    return {"type": "number", ("exclusiveMinimum" if above else "minimum"): low, "maximum": high}


def text(*, least: int = 0, most: int | None = None) -> Schema:
    """A string of ``least`` to ``most`` characters."""
    return {
        "type": "string",
        **({"minLength": least} if least else {}),
        **({} if most is None else {"maxLength": most}),
    }


def one_of_words(*words: str) -> Schema:
    """One of these strings."""
    return {"type": "string", "enum": list(words)}


def items(schema: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    """A list."""
    return {
        "type": "array",
        "items": schema,
        **({"minItems": least} if least else {}),
        **({} if most is None else {"maxItems": most}),
    }


def either(*schemas: Schema) -> Schema:
    """What any of these describes."""
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    """The same or null, which reads as not given."""
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    return either(schema, {"type": "null"})


def fields(schemas: Mapping[str, Schema], required: Collection[str] = ()) -> Schema:
    """An object with these fields and no others; null is as good as nothing in those that are not required."""
    return {
        "type": "object",
        "properties": {name: schema if name in required else or_null(schema) for name, schema in schemas.items()},
        **({"required": sorted(required)} if required else {}),
        "additionalProperties": False,
    }


def answer(schemas: Mapping[str, Schema]) -> Schema:
    """An object that has these fields at least."""
    return {"type": "object", "properties": dict(schemas), "required": sorted(schemas)}
