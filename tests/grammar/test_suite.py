"""The JSON Schema Test Suite (draft 2020-12): nothing that a schema forbids is ever taken; what is not supported is
refused by its keyword."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.constraint import Constraint
from headrace.errors import InvalidRequest
from headrace.grammar.compiler import Compiler
from tests.grammar.suite import SuiteSchema, read_suite
from tests.grammar.test_sources import takes
from tests.grammar.words import vocabulary

COMPILER = Compiler(vocabulary)
SUITE = read_suite()
CALENDAR = ("optional/format/date", "optional/format/time")
"""A grammar knows that no month has 32 days, not which year has a 29th of February, or where leap seconds fall."""


def accepted(schema: SuiteSchema, instances: list[Any]) -> list[Any]:
    text = json.dumps(schema.schema)
    grammar = COMPILER.compile(Constraint("json_schema", text)).result(60)
    return [value for value in instances if takes(grammar, json.dumps(value, ensure_ascii=False))]


def test_nothing_invalid_is_taken() -> None:
    wrong = {
        schema.name: found
        for schema in SUITE
        if not schema.unsupported
        and not schema.name.startswith(CALENDAR)
        and (found := accepted(schema, schema.invalid))
    }
    assert wrong == {}


def test_nearly_everything_valid_can_be_written() -> None:
    """Not all: properties come in the schema's order, and numbers in their shortest form."""
    supported = [schema for schema in SUITE if not schema.unsupported]
    valid = sum(len(schema.valid) for schema in supported)
    taken = sum(len(accepted(schema, schema.valid)) for schema in supported)
    assert valid > 400
    assert taken > 0.9 * valid


@pytest.mark.parametrize("schema", [s for s in SUITE if s.unsupported], ids=lambda schema: schema.unsupported)
def test_what_is_not_supported_is_refused_by_name(schema: SuiteSchema) -> None:
    with pytest.raises(InvalidRequest, match=schema.unsupported.replace("$", r"\$")):
        COMPILER.compile(Constraint("json_schema", json.dumps(schema.schema))).result(60)
