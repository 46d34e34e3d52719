"""Constraints made to take time, memory or the process: each is refused, or ends alone, and the compiler goes on."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.constraint import Constraint, Kind
from headrace.errors import InvalidRequest, QueueFull
from headrace.grammar import compiler as compiling
from headrace.grammar.compiler import Compiler
from headrace.grammar.sources import MAX_GRAMMAR, MAX_REGEX, MAX_SCHEMA
from tests.grammar.words import SIZE, allowed, vocabulary

COMPILER = Compiler(vocabulary)


def references(count: int, between: Callable[[str], Any]) -> str:
    """A schema whose references nest ``count`` deep."""
    named = {f"a{i}": between(f"#/$defs/a{i + 1}") for i in range(count)}
    return json.dumps({"$defs": {**named, f"a{count}": {"type": "string"}}, "$ref": "#/$defs/a0"})


def rules(count: int) -> str:
    return "start: a0\n" + "\n".join(f'a{i}: a{i + 1} "x"' for i in range(count)) + f'\na{count}: "z"'


def nested(count: int, schema: Any) -> Any:
    for _ in range(count):
        schema = {"allOf": [schema]}
    return schema


HOSTILE: dict[str, tuple[Kind, str]] = {
    "a million choices": ("choice", json.dumps([f"alternative {i}" for i in range(1_000_000)])),
    "ten thousand choices": ("choice", json.dumps([f"alternative {i}" for i in range(10_000)])),
    "a huge enum": ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(10_000)]})),
    "a regex too long": ("regex", "a?" * MAX_REGEX),
    "a regex as long as may be": ("regex", "a?" * (MAX_REGEX // 2)),
    "exponential repetition": ("regex", "((a{0,100}){0,100}){0,100}"),
    "exponential alternation": ("regex", "(a|aa)+" * 30),
    "a DFA of 2^20 states": ("regex", "[01]*1[01]{20}"),
    "nested groups": ("regex", "(" * 1000 + "a" + ")" * 1000),
    "a hundred thousand repeats": ("regex", "(a?b?){100000}"),
    "an ambiguous grammar": ("lark", 'start: s\ns: s s | s s s | "a" | "b"'),
    "a left recursion": ("lark", 'start: start start | "a" |'),
    "rules nested deeply": ("lark", rules(MAX_GRAMMAR // 18)),
    "a grammar too long": ("lark", rules(30_000)),
    "optional parts": ("lark", "start: " + '"x"? ' * (MAX_GRAMMAR // 6)),
    "parentheses": ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "a list of grammars": ("lark", '{"grammars": [{"lark_grammar": "start: \\"a\\""}]}'),
    "a GBNF with deep groups": ("ebnf", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
    "references": ("json_schema", references(4_000, lambda to: {"$ref": to})),
    "references in properties": (
        "json_schema",
        references(2_500, lambda to: {"type": "object", "properties": {"p": {"$ref": to}}, "required": ["p"]}),
    ),
    "references in alternatives": (
        "json_schema",
        references(3_000, lambda to: {"anyOf": [{"$ref": to}, {"type": "null"}]}),
    ),
    "nested references": ("json_schema", references(350, lambda to: nested(50, {"$ref": to}))),
    "a schema that is its own": ("json_schema", '{"$ref": "#"}'),
    "a tree without end": (
        "json_schema",
        '{"$defs":{"n":{"type":"object","properties":{"l":{"$ref":"#/$defs/n"}},"required":["l"]}},"$ref":"#/$defs/n"}',
    ),
    "many properties": ("json_schema", json.dumps({"properties": {f"p{i}": {"type": "integer"} for i in range(5000)}})),
    "a schema too long": ("json_schema", json.dumps({"const": "x" * MAX_SCHEMA})),
    "a long constant": ("json_schema", json.dumps({"const": "x" * 30_000})),
    "patterns without number": (
        "json_schema",
        json.dumps({"properties": {f"p{i}": {"type": "string", "pattern": "a?" * 500} for i in range(40)}}),
    ),
    "lengths": ("json_schema", json.dumps({"type": "string", "minLength": 100_000, "maxLength": 1_000_000})),
    "multiples": (
        "json_schema",
        json.dumps({"type": "integer", "multipleOf": 104_729, "minimum": 1, "maximum": 10**18}),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_ends(name: str) -> None:
    """Within the processor time that a step, or a compilation, may take at the worst, with a wide margin."""
    kind, value = HOSTILE[name]
    try:
        grammar = COMPILER.compile(Constraint(kind, value)).result(60)
    except InvalidRequest:
        return
    matcher, rng, spent = grammar.matcher(), random.Random(3), 0.0
    for _ in range(100):
        choices = sorted(allowed(matcher.mask()) - {256})
        if not choices:
            break
        begin = time.thread_time()
        going = matcher.advance(rng.choice(choices))
        spent = max(spent, time.thread_time() - begin)
        if not going:
            break
    assert spent < 1.0
    assert COMPILER.compile(Constraint("regex", "still here")).result(60).matcher().mask()


def test_a_matcher_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.grammar import masks

    monkeypatch.setattr(masks, "START_SECONDS", 0.0)
    monkeypatch.setattr(masks, "TOKEN_SECONDS", 0.0)
    matcher = COMPILER.compile(Constraint("regex", "[a-z]+")).result(60).matcher()
    assert not matcher.advance(ord("a"))
    assert matcher.error is not None
    assert "too much time" in matcher.error


def test_a_token_that_the_grammar_forbids_ends_its_sequence_only() -> None:
    grammar = COMPILER.compile(Constraint("regex", "[a-z]+1")).result(60)
    one, other = grammar.matcher(), grammar.matcher()
    assert not one.advance(ord("?"))
    assert one.error is not None
    assert other.advance(ord("a"))
    assert other.error is None


def test_no_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "QUEUED", 3)
    monkeypatch.setattr(compiling, "_start", lambda work: None)  # nobody works
    busy = Compiler(vocabulary)
    for i in range(3):
        busy.compile(Constraint("regex", f"a{i}"))
    with pytest.raises(QueueFull):
        busy.compile(Constraint("regex", "one more"))


def test_a_thread_that_cannot_be_had_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    compiler, asked = Compiler(vocabulary), Constraint("regex", "[ab]")
    with monkeypatch.context() as broken:
        broken.setattr(compiling, "_start", refuse)
        for _ in range(compiling.THREADS + 1):
            with pytest.raises(RuntimeError, match="thread"):
                compiler.compile(asked)
    assert compiler.compile(asked).result(30).matcher().mask() is not None


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "CACHED", 4)
    small = Compiler(vocabulary)
    kept = small.compile(Constraint("regex", "kept"))
    for i in range(20):
        small.compile(Constraint("regex", f"a{i}")).result(60)
        assert small.compile(Constraint("regex", "kept")) is kept, "what is used stays"
    assert len(small._results) <= 4 + compiling.THREADS


def test_masks_are_as_wide_as_the_logits() -> None:
    mask = COMPILER.compile(Constraint("regex", "a+")).result(60).matcher().mask()
    assert len(mask or b"") >= 4 * -(-SIZE // 32)


def test_nothing_heavy_is_imported() -> None:
    """Neither before the first constrained request, nor by llguidance."""
    code = (
        "import sys, headrace.cli.words, headrace.cli.serve, headrace.api, headrace.wire.openai_requests\n"
        "assert 'llguidance' not in sys.modules\n"
        "import llguidance\n"
        "assert not {'numpy', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
