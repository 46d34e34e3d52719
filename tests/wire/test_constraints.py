"""The words of every dialect for the form of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.constraint import Constraint
from headrace.errors import InvalidRequest
from headrace.wire.constraints import ollama_format, parse_constraint, response_format, tgi_grammar
from headrace.wire.fields import Fields
from headrace.wire.limits import Limits
from headrace.wire.openai_requests import parse_chat, parse_completion

LIMITS = Limits(max_model_len=512, vocab_size=1000)
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}


def parse(**body: Any) -> Constraint | None:
    return parse_constraint(Fields(body), LIMITS)


def schema_of(constraint: Constraint | None) -> Any:
    assert constraint is not None
    assert constraint.kind == "json_schema"
    schema = json.loads(constraint.value)
    schema.pop("x-guidance", None)
    return schema


@pytest.mark.parametrize(
    "body", [{}, {"response_format": {"type": "text"}}, {"guided_json_object": False}, {"guided_json": None}]
)
def test_nothing_is_asked_for(body: dict[str, Any]) -> None:
    assert parse(**body) is None


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        {"response_format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "value": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "value": None, "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}},
        {"guided_json": SCHEMA, "guided_decoding_backend": "outlines"},
        {"guided_json": json.dumps(SCHEMA)},
    ],
)
def test_a_schema(body: dict[str, Any]) -> None:
    found = parse(**body)
    assert schema_of(found) == SCHEMA
    assert found is not None
    assert list(json.loads(found.value)["properties"]) == ["b", "a"], "the order is the schema's"
    assert found.field == next(iter(body))


def test_other_kinds() -> None:
    assert parse(structured_outputs={"regex": "a+"}) == Constraint("regex", "a+", "structured_outputs")
    assert parse(guided_regex="a+") == Constraint("regex", "a+", "guided_regex")
    assert parse(guided_choice=["a", "ü"]) == Constraint("choice", '["a", "ü"]', "guided_choice")
    assert parse(guided_grammar='start: "a"') == Constraint("lark", 'start: "a"', "guided_grammar")
    assert parse(guided_grammar='root ::= "a"') == Constraint("ebnf", 'root ::= "a"', "guided_grammar")
    for body in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        found = parse(**body)
        assert found is not None
        assert found.kind == "json_object"


def test_white_space() -> None:
    def options(**more: Any) -> Any:
        found = parse(structured_outputs={"json": SCHEMA, **more})
        assert found is not None
        return json.loads(found.value)

    assert options(disable_any_whitespace=True)["x-guidance"] == {"whitespace_flexible": False}
    assert options(whitespace_pattern=" ?")["x-guidance"] == {"whitespace_pattern": " ?"}


def test_objects_are_closed_however_deep() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "object"}}}
    schema = {
        "properties": {"a": {"items": inner}, "b": {**inner, "additionalProperties": True}},
        "$defs": {"c": {"anyOf": [inner]}},
        "default": {"properties": {}},
    }
    closed = {**inner, "additionalProperties": False}
    assert schema_of(parse(structured_outputs={"json": schema, "disable_additional_properties": True})) == {
        "properties": {"a": {"items": closed}, "b": {**inner, "additionalProperties": True}},
        "$defs": {"c": {"anyOf": [closed]}},
        "default": {"properties": {}},
        "additionalProperties": False,
    }


def test_tgi_and_ollama() -> None:
    assert tgi_grammar({"type": "regex", "value": "a+"}, LIMITS) == Constraint("regex", "a+", "parameters.grammar")
    for kind in ("json", "json_object", "json_schema"):
        assert schema_of(tgi_grammar({"type": kind, "value": SCHEMA}, LIMITS)) == SCHEMA
    assert schema_of(tgi_grammar({"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}, LIMITS)) == SCHEMA
    assert schema_of(ollama_format(SCHEMA, LIMITS)) == SCHEMA
    assert ollama_format("", LIMITS) is None
    found = ollama_format("json", LIMITS)
    assert found is not None
    assert found.kind == "json_object"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"response_format": "json"}, "must be an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": []}}, "must be an object"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}}, "the schema must be an object"),
        ({"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}}, "has a json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"schema": SCHEMA}}}, "has a json_schema"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "exactly one"),
        ({"structured_outputs": {"disable_fallback": True}}, "exactly one"),
        ({"structured_outputs": {"jsn": {}}}, "unknown field"),
        ({"guided_choice": []}, "at least one"),
        ({"guided_choice": ["a", ""]}, "empty"),
        ({"guided_choice": ["a"] * 10_001}, "the limit is 10000"),
        ({"guided_regex": 7}, "must be a string"),
        ({"guided_json": "{"}, "not valid JSON"),
        ({"guided_json": "[" * 100_000}, "not valid JSON"),
        ({"guided_json": '{"not":' * 300 + "true" + "}" * 300}, "nested more than 128"),
        ({"guided_regex": "a" * (1 << 20)}, "the limit is"),
        ({"guided_regex": "\ud800"}, "surrogate"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "send one of them"),
    ],
)
def test_what_is_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse(**body)


def test_a_responses_text_format_names_its_field() -> None:
    with pytest.raises(InvalidRequest, match=r"text\.format"):
        response_format({"type": "json_schema"}, LIMITS, "text.format")


def test_both_of_openais_routes_take_it() -> None:
    held = {"guided_regex": "a+", "max_tokens": 5}
    assert parse_completion({"prompt": "x", **held}, LIMITS, {}).constraint == Constraint("regex", "a+", "guided_regex")
    messages = [{"role": "user", "content": "x"}]
    assert parse_chat({"messages": messages, **held}, LIMITS, {}).constraint is not None
    assert parse_chat({"messages": messages}, LIMITS, {}).constraint is None
