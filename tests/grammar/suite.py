"""The JSON Schema Test Suite's schemas with their instances, and the judge of answers: the `jsonschema` library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

FILE = Path(__file__).resolve().parent.parent / "data" / "json_schema_suite.jsonl"


@dataclass(frozen=True)
class SuiteSchema:
    """One schema of the suite, and what it says of some instances. ``unsupported``: the keyword that is refused."""

    name: str
    schema: Any
    valid: list[Any]
    invalid: list[Any]
    unsupported: str


def read_suite() -> list[SuiteSchema]:
    return [SuiteSchema(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]


def problem(schema: Any, text: str) -> str | None:
    """Why ``text`` is no JSON that fits the schema; None if it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    errors = sorted(Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(value), key=str)
    return errors[0].message[:200] if errors else None
