"""What texts each kind of constraint takes, and which constraints are refused, and with what words."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest

from headrace.constraint import CallShape, Constraint, Kind, forced_calls
from headrace.errors import InvalidRequest
from headrace.grammar.compiler import Compiler
from headrace.grammar.masks import CompiledGrammar
from headrace.wire.constraints import json_schema
from headrace.wire.limits import Limits
from tests.grammar.words import EOS, Bytes, allowed, vocabulary

WORDS = Bytes()
COMPILER = Compiler(vocabulary)
LIMITS = Limits(max_model_len=4096, vocab_size=300)


def compiled(kind: Kind, value: Any) -> CompiledGrammar:
    return COMPILER.compile(Constraint(kind, value if isinstance(value, str) else json.dumps(value))).result(60)


def takes(grammar: CompiledGrammar, text: str) -> bool:
    """Whether the text can be written token by token through the masks, and may end there."""
    matcher = grammar.matcher()
    ids = WORDS.ids(text)
    for i, token in enumerate(ids):
        if token not in allowed(matcher.mask()):
            return False
        if not matcher.advance(token):
            return matcher.error is None and i == len(ids) - 1
    return EOS in allowed(matcher.mask())


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        (
            "json_schema",
            PERSON,
            ['{"name":"x"}', '{ "name": "ü", "age": 12}'],
            ["{}", '{"name":1}', '{"age":1}', "[1]"],
        ),
        ("json_object", {"type": "object"}, ["{}", '{"a":[1,{"b":null}]}'], ["[]", '"x"', "1"]),
        ("regex", "^[0-9]{2}-[a-z]+$", ["12-ab"], ["1-ab", "12-", "12-AB"]),
        ("regex", r"\d+\$", ["1$"], ["$", "1", "٣$"]),
        ("regex", r"a/b", ["a/b"], ["ab"]),
        ("regex", "", [""], ["a"]),
        ("choice", ["yes", "no", 'q"uo\\te', "ä\n"], ["yes", "no", 'q"uo\\te', "ä\n"], ["ye", "yesno", "", "maybe"]),
        ("choice", ["a", "ab"], ["a", "ab"], ["abb", "b"]),
        ("lark", 'start: "a" B\nB: /[0-9]+/', ["a1", "a12"], ["a", "b1"]),
        ("ebnf", 'root ::= "a" d+ | "b"\nd ::= [0-9]', ["a1", "b", "a123"], ["a", "ab"]),
    ],
)
def test_what_is_taken(kind: Kind, value: Any, good: list[str], bad: list[str]) -> None:
    grammar = compiled(kind, value)
    assert [text for text in good if not takes(grammar, text)] == []
    assert [text for text in bad if takes(grammar, text)] == []


def test_special_tokens_are_no_text() -> None:
    for grammar in (compiled("regex", ".*"), compiled("json_object", {"type": "object"})):
        assert allowed(grammar.matcher().mask()) & WORDS.special_ids <= {EOS}


def test_what_may_stand_between_the_parts_of_json() -> None:
    def held(text: str, **options: Any) -> bool:
        return takes(COMPILER.compile(json_schema(PERSON, LIMITS, "f", **options)).result(60), text)

    assert held('{\n    "name" : "x"\n}')
    assert not held('{"name":' + " " * 33 + '"x"}'), "an answer must not get lost in white space"
    assert not held('{ "name":"x"}', whitespace=None)
    assert held('{"name":_"x"}', whitespace="_?")


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("json_schema", {"not": {}}, "keywords that are not supported: not"),
        ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
        ("json_schema", {"if": {"type": "string"}, "then": {}}, "if"),
        ("json_schema", {"oneOf": [{"minLength": 1}, {"minLength": 2}]}, "use anyOf"),
        ("json_schema", {"type": "strin"}, "strin"),
        ("json_schema", {"type": "string", "format": "shoe-size"}, "shoe-size"),
        ("json_schema", {"type": "string", "pattern": "("}, "unclosed group"),
        ("json_schema", {"$ref": "http://example.com/schema"}, "http://example.com/schema"),
        ("json_schema", {"$ref": "#/$defs/gone"}, "/$defs/gone"),
        ("json_schema", {"type": "integer", "minimum": 3, "maximum": 1}, "Unsatisfiable"),
        ("regex", "(a", "unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("regex", r"(a)\1", "backreferences"),
        ("lark", 'start: "a" b', 'unknown name: "b"'),
        ("lark", 'foo: "a"', "no start rule"),
        ("lark", '{"grammars": []}', ""),
        ("ebnf", "root ::= (", "GBNF"),
        ("structural_tag", "{}", "structures and triggers"),
        ("structural_tag", "{", "not valid JSON"),
        ("structural_tag", {"structures": [{"begin": "a", "end": ""}], "triggers": ["b"]}, "one of the triggers"),
    ],
)
def test_what_is_refused(kind: Kind, value: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiled(kind, value)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 400


def test_no_failure_is_raised_twice_as_the_same_exception_with_another_field() -> None:
    """Failures are kept: they must not name the field of the first request that had them."""
    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile(Constraint("regex", "(b", "guided_regex")).result(60)
    assert "guided_regex" not in str(caught.value)


TAG = {
    "structures": [
        {"begin": "<tool>a:", "schema": {"type": "integer"}, "end": "</tool>"},
        {"begin": "<tool>b:", "schema": {"type": "boolean"}, "end": "</tool>"},
    ],
    "triggers": ["<tool>"],
}


def test_structural_tags_leave_text_free_until_a_trigger() -> None:
    grammar = compiled("structural_tag", TAG)
    for text in ("", "just text", "x<tool>a:12</tool>y", "<tool>b:true</tool><tool>a:1</tool>", "a < b <to"):
        assert takes(grammar, text), text
    for text in ("x<tool>c:1</tool>", "<tool>a:true</tool>", "<tool>a:1", "x<tool>"):
        assert not takes(grammar, text), text


QUERY = {
    "type": "object",
    "required": ["q"],
    "properties": {"q": {"type": "integer"}},
    "additionalProperties": False,
}
SHAPES = [
    CallShape('<call>\n{"name": "get", "arguments": ', "}\n</call>", QUERY),
    CallShape('<call>\n{"name": "stop", "arguments": ', "}\n</call>"),
]
GET = '<call>\n{"name": "get", "arguments": {"q": 1}}\n</call>'
STOP = '<call>\n{"name": "stop", "arguments": {"why": "x"}}\n</call>'


def calls(**options: Any) -> CompiledGrammar:
    return COMPILER.compile(forced_calls(SHAPES, **options)).result(60)


def test_a_forced_call() -> None:
    grammar = calls()
    assert takes(grammar, GET)
    assert takes(grammar, STOP)
    for text in ("", "text", "text" + GET, GET + GET, GET.replace('"q"', '"r"'), GET.replace("get", "got")):
        assert not takes(grammar, text), text


def test_several_calls_with_a_separator() -> None:
    grammar = calls(separator="\n", least=1, most=None)
    for text in (GET, f"{GET}\n{STOP}", f"{GET}\n{STOP}\n{GET}"):
        assert takes(grammar, text), text
    for text in ("", GET + STOP, f"{GET}\n"):
        assert not takes(grammar, text), text
    two = calls(least=2, most=2)
    assert takes(two, GET + STOP)
    assert not takes(two, GET)
    assert not takes(two, GET * 3)


def test_calls_in_a_list() -> None:
    grammar = COMPILER.compile(
        forced_calls(
            [CallShape('{"name": "f", "arguments": ', "}")], prefix="<call>[", separator=", ", suffix="]", most=3
        )
    ).result(60)
    call = '{"name": "f", "arguments": {}}'
    assert takes(grammar, f"<call>[{call}]")
    assert takes(grammar, f"<call>[{call}, {call}]")
    assert not takes(grammar, f"<call>[{call}, {call}, {call}, {call}]")
    assert not takes(grammar, "<call>[]")


def test_calls_after_free_text() -> None:
    """``tool_choice`` auto with strict tools: the mark of a call is a special token here, and a text below."""
    grammar = calls(trigger="<call>", least=0, most=None)
    for text in ("", "no call", f"let me see: {GET}", f"{GET} and {STOP}"):
        assert takes(grammar, text), text
    assert not takes(grammar, GET.replace('"q"', '"r"'))
    plain = COMPILER.compile(
        forced_calls([CallShape("<tool>f ", "</tool>", {"type": "integer"})], trigger="<tool>", least=1, most=1)
    ).result(60)
    assert takes(plain, "x <tool>f 12</tool>")
    assert not takes(plain, "x")
    assert not takes(plain, "x <tool>g 12</tool>")


def test_calls_after_thoughts() -> None:
    grammar = calls(after="</think>")
    assert takes(grammar, f"I think{'.' * 50}</think>{GET}")
    assert not takes(grammar, GET)
    assert not takes(grammar, "I think</think>")


def test_arguments_that_are_no_json() -> None:
    shape = CallShape("<call>f(", ")</call>", lark='"x=" /[0-9]+/')
    grammar = COMPILER.compile(forced_calls([shape])).result(60)
    assert takes(grammar, "<call>f(x=12)</call>")
    assert not takes(grammar, "<call>f(x=)</call>")


def test_the_same_constraint_is_compiled_once() -> None:
    first: Future[CompiledGrammar] = COMPILER.compile(Constraint("regex", "once+"))
    second = COMPILER.compile(Constraint("regex", "once+", "another_field"))
    assert first is second
