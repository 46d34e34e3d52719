"""Reading formats: whatever the cut, the same; nothing lost; calls as every family writes them."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.text.formats.calls import Run
from headrace.text.formats.families import FAMILIES, REASONING, SMOLLM2, Family
from headrace.text.formats.reader import Reader, Reasoning

EVERY_TIME = settings(derandomize=True, deadline=None, max_examples=250)
TOOLS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "where": {"type": "object"}},
        "required": ["city"],
    },
    "noop": {"type": "object", "properties": {}},
}
BY_NAME = {family.name: family for family in (*FAMILIES, SMOLLM2)}
THINK = REASONING[0]


def read(
    text: str,
    family: str | Family | None = "hermes",
    cuts: tuple[int, ...] = (),
    *,
    reasoning: Reasoning | None = None,
    thinking: bool = False,
    single: bool = False,
    stand_ins: dict[str, str] | None = None,
) -> tuple[str, str, list[tuple[str, str]]]:
    """(reasoning, text, [(name, arguments)]) of a text that arrives cut at ``cuts``."""
    kind = BY_NAME[family] if isinstance(family, str) else family
    reader = Reader(
        reasoning=reasoning,
        thinking=thinking,
        calls=kind.calls if kind else None,
        tools=TOOLS if kind else None,
        single=single,
        stand_ins=stand_ins,
    )
    runs: list[Run] = []
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    for start, end in zip([0, *ends], ends, strict=False):
        runs += reader.push(text[start:end])
    runs += reader.finish()
    calls: list[tuple[str, str]] = []
    for run in runs:
        for piece in run.calls:
            if piece.index == len(calls):
                assert piece.name, "a call's first piece names it"
                calls.append((piece.name, piece.arguments))
            else:
                assert (piece.index, piece.name) == (len(calls) - 1, ""), "later pieces have no name"
                calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
    return "".join(run.reasoning for run in runs), "".join(run.text for run in runs), calls


def written(family: str, name: str, arguments: dict[str, Any]) -> str:
    """A call as a model of this family writes it."""
    text = json.dumps(arguments, ensure_ascii=False)
    if family == "qwen3-coder":
        body = "".join(
            f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
            for key, value in arguments.items()
        )
        return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"
    if family == "glm":
        body = "".join(
            f"<arg_key>{key}</arg_key>\n"
            f"<arg_value>{value if isinstance(value, str) else json.dumps(value)}</arg_value>\n"
            for key, value in arguments.items()
        )
        return f"<tool_call>{name}\n{body}</tool_call>"
    if family in ("gemma4", "functiongemma"):
        quote = '<|"|>' if family == "gemma4" else "<escape>"
        opens, closes = BY_NAME[family].calls.opens[0], BY_NAME[family].marks[0]
        return f"{opens}call:{name}{_gemma(arguments, quote)}{closes}"
    if family in ("python", "llama4", "lfm2", "olmo3"):
        text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return BY_NAME[family].writing.prefix + f"{name}({text})" + BY_NAME[family].writing.suffix
    writing = BY_NAME[family].writing
    shape = writing.shape(name, {})
    return writing.prefix + shape.begin + text + shape.end + writing.suffix


def _gemma(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_gemma(item, quote) for item in value) + "]"
    return json.dumps(value)


CUTS = st.lists(st.integers(0, 400), max_size=30).map(tuple)
TEXTS = st.text('ab {}[]":,\\\n<>/é🛞', max_size=12)
ARGUMENTS = st.fixed_dictionaries(
    {"city": TEXTS},
    optional={"days": st.integers(-5, 99), "where": st.dictionaries(st.text("xy", min_size=1, max_size=2), TEXTS)},
)


@pytest.mark.parametrize("family", sorted(BY_NAME))
@EVERY_TIME
@given(arguments=ARGUMENTS, cuts=CUTS, before=st.sampled_from(["", "Let me look. ", "1 < 2\n"]))
def test_a_call_is_read_however_it_is_cut(
    family: str, arguments: dict[str, Any], cuts: tuple[int, ...], before: str
) -> None:
    if family in ("qwen3-coder", "glm") and arguments["city"] != arguments["city"].strip():
        arguments["city"] = arguments["city"].strip()  # Their notation cannot say where such a text begins.
    text = before + written(family, "weather", arguments)
    reasoning, content, calls = read(text, family, cuts)
    assert (reasoning, content) == ("", before.strip())
    ((name, found),) = calls
    assert (name, json.loads(found)) == ("weather", arguments)


@pytest.mark.parametrize("family", sorted(BY_NAME))
def test_several_calls_of_one_answer(family: str) -> None:
    text = "\n".join(written(family, name, {}) for name in ("noop", "weather", "noop"))
    for cuts in ((), tuple(range(len(text)))):
        assert read(text, family, cuts) == ("", "", [("noop", "{}"), ("weather", "{}"), ("noop", "{}")])


@pytest.mark.parametrize("family", sorted(BY_NAME))
def test_calls_of_a_tool_that_was_not_offered_are_text(family: str) -> None:
    text = written(family, "rm", {"path": "/"})
    for cuts in ((), tuple(range(len(text)))):
        assert read(text, family, cuts) == ("", text, [])


@pytest.mark.parametrize("family", sorted(BY_NAME))
def test_only_one_call_where_there_may_be_only_one(family: str) -> None:
    text = "\n".join(written(family, "weather", {"city": city}) for city in "ab")
    for cuts in ((), tuple(range(len(text)))):
        _, content, ((name, arguments),) = read(text, family, cuts, single=True)
        assert (content, name, json.loads(arguments)) == ("", "weather", {"city": "a"})


@pytest.mark.parametrize("family", sorted(BY_NAME))
@EVERY_TIME
@given(data=st.data(), cuts=CUTS)
def test_any_text_is_read_the_same_however_it_is_cut(family: str, data: st.DataObject, cuts: tuple[int, ...]) -> None:
    """Pieces of the format in any order, whole and broken, with reasoning before it or not."""
    kind = BY_NAME[family]
    whole = written(family, "weather", {"city": "a<b"})
    marks = [*kind.calls.opens, *kind.marks, *THINK.opens, *THINK.closes]
    pieces = [
        *marks, *(mark[:-1] for mark in marks), *(mark[1:] for mark in marks), whole, whole[: len(whole) // 2],
        whole[len(whole) // 2 :], "weather", '"name": ', '{"name": "noop"', ', "arguments": {', '"x', "\\", "}", "]",
        "{", "[", "}}", " ", "\n", "text", '{"arguments": {"q": 1}, "name": "noop"}', "x" * 600, "null", "é", "🛞",
    ]  # fmt: skip
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    thinking = data.draw(st.booleans())
    single = data.draw(st.booleans())
    expected = read(text, family, (), reasoning=THINK, thinking=thinking, single=single)
    assert read(text, family, cuts, reasoning=THINK, thinking=thinking, single=single) == expected
    every = tuple(range(len(text)))
    assert read(text, family, every, reasoning=THINK, thinking=thinking, single=single) == expected
    reasoning, content, calls = expected
    if not reasoning and not calls and not thinking and not text.lstrip().startswith(THINK.opens[0]):
        assert content == text, "what is no call is text, to the last character"


@EVERY_TIME
@given(text=st.text("<think>/ \nab", max_size=40), cuts=CUTS, thinking=st.booleans())
def test_reasoning_ends_at_its_mark(text: str, cuts: tuple[int, ...], thinking: bool) -> None:
    found = read(text, None, cuts, reasoning=THINK, thinking=thinking)
    opened = thinking or text.lstrip().startswith("<think>")
    if not opened:
        assert found == ("", text, [])
        return
    inside = text if thinking else text.lstrip().removeprefix("<think>")
    before, mark, after = inside.partition("</think>")
    assert found == ((before.strip() if mark else before.lstrip()), after.lstrip(), [])


def test_marks_within_strings_are_data() -> None:
    arguments = {"city": '</tool_call><tool_call>{"name": "noop"}', "where": {"</think>": "[TOOL_CALLS]"}}
    text = "<think>\na <tool_call> b\n</think>\n\nHi.\n" + written("hermes", "weather", arguments) + "\nBye."
    for cuts in ((), tuple(range(len(text)))):
        reasoning, content, ((_, found),) = read(text, "hermes", cuts, reasoning=THINK)
        assert (reasoning, content, json.loads(found)) == ("a <tool_call> b", "Hi.\nBye.", arguments)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"arguments": {"city": "a"}, "name": "weather"}', {"city": "a"}),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"a\\"}"}', {"city": "a"}),
        ('{"name": "weather", "arguments": null}', {}),
        ('{"name": "weather"}', {}),
        ('{"id": [1, {"x": "}"}], "name": "weather", "arguments": {"city": "a"}, "more": null}', {"city": "a"}),
        ('{"type": "function", "function": {"name": "weather", "arguments": {"city": "a"}}}', {"city": "a"}),
        ('{"name": "weather", "arguments": {"city": "two\nlines\ttab"}}', {"city": "two\nlines\ttab"}),
    ],
)
def test_json_calls_in_other_words(text: str, arguments: dict[str, Any]) -> None:
    text = f"<tool_call>{text}</tool_call>"
    for cuts in ((), tuple(range(len(text)))):
        _, content, ((name, found),) = read(text, "hermes", cuts)
        assert (content, name, json.loads(found)) == ("", "weather", arguments)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("""[weather(city='it\\'s "so"', days=3)]""", {"city": 'it\'s "so"', "days": 3}),
        ("[weather('Rome', 2, where={'a': (1, None), 'b': [True]})]",
         {"city": "Rome", "days": 2, "where": {"a": [1, None], "b": [True]}}),
        ('[weather(city="""two "quoted"\nlines""")]', {"city": 'two "quoted"\nlines'}),
        (r"[weather(city='\x41\u00fc\\\n')]", {"city": "A\u00fc\\\n"}),
        ("[weather(city='', days = -1.5e3,)]", {"city": "", "days": -1500.0}),
    ],
)  # fmt: skip
def test_literals_of_python(text: str, arguments: dict[str, Any]) -> None:
    for cuts in ((), tuple(range(len(text)))):
        _, content, ((name, found),) = read(text, "python", cuts)
        assert (content, name, json.loads(found)) == ("", "weather", arguments)


def test_gemma_3_may_write_python_into_its_fences() -> None:
    text = "Sure.\n```tool_code\nprint(weather(city='Rome'))\nnoop()\n```"
    for cuts in ((), tuple(range(len(text)))):
        _, content, calls = read(text, "json", cuts)
        assert (content, calls) == ("Sure.", [("weather", '{"city": "Rome"}'), ("noop", "{}")])
    code = "```python\nweather(city='Rome')\n```"
    assert read(code, "json") == ("", code, [])


def test_arguments_come_as_they_are_written() -> None:
    reader = Reader(calls=BY_NAME["hermes"].calls, tools=TOOLS)
    assert reader.push('<tool_call>{"name": "weather", "arguments": ') == ()
    (run,) = reader.push('{"city": "Pa')
    assert [(piece.name, piece.arguments) for piece in run.calls] == [("weather", '{"city": "Pa')]
    (run,) = reader.push('ris"')
    assert [(piece.name, piece.arguments) for piece in run.calls] == [("", 'ris"')]


def test_an_answer_that_breaks_off_keeps_what_it_has() -> None:
    whole = written("hermes", "weather", {"city": "Paris"})
    for end in range(len(whole)):
        _, content, calls = read(whole[:end], "hermes", tuple(range(end)))
        begun = end > whole.index('{"city"')
        assert bool(calls) == begun
        assert content == ("" if begun else whole[:end])
        if calls:
            assert '{"city": "Paris"}'.startswith(calls[0][1])


def test_special_tokens_are_told_from_text_that_spells_them() -> None:
    stand_ins = {"[TOOL_CALLS]": "\ud800", "[ARGS]": "\ud801"}
    special = '\ud800weather\ud801{"city": "a"}'
    assert read(special, "mistral", stand_ins=stand_ins) == ("", "", [("weather", '{"city": "a"}')])
    assert read("\ud800weather or not\ud801", "mistral", stand_ins=stand_ins) == ("", "weather or not", [])
    assert read("[TOOL_CALLS] is written so", "mistral", stand_ins=stand_ins) == ("", "[TOOL_CALLS] is written so", [])


@pytest.mark.parametrize("family", sorted(BY_NAME))
def test_the_work_for_a_token_does_not_grow_with_the_answer(family: str) -> None:
    """Python's calls, counted: a token of a long argument costs as much at its end as at its start."""

    reader = Reader(calls=BY_NAME[family].calls, tools=TOOLS)
    head = written(family, "weather", {"city": "@"}).partition("@")[0]
    reader.push(head)

    def calls_of(pieces: int) -> int:
        made = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            for _ in range(pieces):
                reader.push("word ")
        finally:
            sys.setprofile(None)
        return made

    first = calls_of(100)
    calls_of(3000)
    assert calls_of(100) <= first + 20
    assert max(len(str(getattr(reader._scanner, name))) for name in ("_text", "_held")) < 200, "nothing piles up"
