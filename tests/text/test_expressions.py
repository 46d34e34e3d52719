"""Expressions of real tokenizers pass; those that could take exponential time do not."""

from __future__ import annotations

import json

import pytest

from headrace.errors import UnsupportedModel
from headrace.text.expressions import may_explode, refuse_costly_expressions
from headrace.text.pretokenizers import PRE_TOKENIZERS


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_those_of_real_models_pass(name: str) -> None:
    assert not any(map(may_explode, PRE_TOKENIZERS[name].splits))


@pytest.mark.parametrize(
    "expression",
    [
        r"(?=(\d{3})+(?!\d))",
        r"\d{1,3}(?=(?:\d{3})*\b)",
        r"[^(\s|.,!?…。，、।۔،)]+",
        r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"[]+*(]+x|\(\)+\)*",
        r"(ab+)?c",
        "",
    ],
)
def test_harmless_ones_pass(expression: str) -> None:
    assert not may_explode(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+b", "(a*)*", "(a|a)*$", "(?:a|ab)+c", "((a+)b?)*", "(?:[a-z]+)+x", "(a+){2,}b", "(a+){30}b", "(a{3,})+",
        r"(\(+)+", "((a|b)c)+", "([x)]+)*", "(a+)+?b",
    ],
)  # fmt: skip
def test_exponential_ones_do_not(expression: str) -> None:
    assert may_explode(expression)


def test_they_are_found_anywhere_in_a_part() -> None:
    part = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(a+)+"}}]}
    with pytest.raises(UnsupportedModel, match="exponential"):
        refuse_costly_expressions(json.dumps(part))
    with pytest.raises(UnsupportedModel, match="20,000"):
        refuse_costly_expressions(json.dumps({"pattern": {"Regex": "a" * 20_001}}))
    refuse_costly_expressions("")
    refuse_costly_expressions(json.dumps({"pattern": {"String": "(a+)+"}}))
