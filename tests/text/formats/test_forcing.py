"""Calls that must be made: whatever a grammar lets through, the reader of the same family finds valid calls in it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core

from headrace.cli.chats import Chats
from headrace.constraint import Constraint
from headrace.errors import Unsupported
from headrace.grammar.compiler import Compiler
from headrace.grammar.vocabulary import Vocabulary
from headrace.text.formats.families import FAMILIES, SMOLLM2
from headrace.text.formats.forcing import Offer, constrained
from headrace.text.formats.recognition import Format, recognise
from headrace.text.template import ChatTemplate
from headrace.text.tokenizer import Tokenizer, _byte_alphabet
from headrace.types import FinishReason, SamplingParams, TokenEvent
from headrace.wire.calls import Conversation, Tool, ToolChoice
from tests.text.formats import templates

BY_NAME = {family.name: family for family in (*FAMILIES, SMOLLM2)}
END = 256
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Münster"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "where": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER["properties"]["where"]["additionalProperties"] = False
NOOP: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = (Tool("weather", "", WEATHER), Tool("noop", "", NOOP))
CONVERSATION = Conversation(
    ({"role": "user", "content": "x"},), tools=TOOLS, tool_choice=ToolChoice("required"), parallel_tool_calls=True
)


def tokenizer_with(special: list[str]) -> Tokenizer:
    """Token id = byte; 256 ends; the special tokens come after."""
    core = Core(models.BPE(vocab=_byte_alphabet(), merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<end>", special=True)])
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return Tokenizer(core, eos_token_ids=frozenset({END}))


class Forced:
    """A model of one family that writes whatever its grammar lets it."""

    def __init__(self, family: str, special: bool, conversation: Conversation = CONVERSATION) -> None:
        kind = BY_NAME[family]
        marks = [mark for mark in (*kind.calls.opens, *kind.marks) if mark[0] in "<[" and len(mark) > 1]
        self.tokenizer = tokenizer_with(list(dict.fromkeys(marks)) if special else [])
        self.chats = Chats(self.tokenizer, ChatTemplate({"default": templates.QWEN3_CODER}))
        self.chats.__dict__["form"] = Format(kind, native=True)
        self.conversation = conversation
        constraint = self.chats.constrain(conversation, None, ())
        assert constraint is not None
        self.matcher = compiled(constraint, self.tokenizer)

    def allowed(self) -> list[int]:
        mask = self.matcher.mask()
        return [t for t in range(self.tokenizer.vocab_size) if mask[t // 8] >> (t % 8) & 1]

    def write(self, choose: random.Random) -> list[int]:
        """Tokens at random, white space rarely, until the grammar is complete."""
        tokens: list[int] = []
        while len(tokens) < 4000:
            allowed = self.allowed()
            solid = [token for token in allowed if chr(token) not in " \t\r\n"] or allowed
            token = choose.choice(solid if choose.random() < 0.97 else allowed)
            if token == END:
                return tokens
            tokens.append(token)
            more = self.matcher.advance(token)
            assert self.matcher.error is None
            if not more:
                return tokens
        raise AssertionError("it never ends")

    def read(self, tokens: list[int]) -> tuple[str, list[tuple[str, Any]]]:
        output = self.chats.open_output(SamplingParams(max_tokens=9999), (), self.conversation)
        last = TokenEvent("r", 0, (END,), finish=FinishReason.STOP, stop_token=END)
        events = [*(TokenEvent("r", 0, (token,)) for token in tokens), last]
        text, calls = "", list[list[str]]()
        for event in events:
            for run in output.push(event).runs:
                text += run.text
                for piece in run.calls:
                    if piece.name:
                        calls.append([piece.name, ""])
                    calls[-1][1] += piece.arguments
        return text, [(name, json.loads(arguments)) for name, arguments in calls]


def compiled(constraint: Constraint, tokenizer: Tokenizer) -> Any:
    compiler = Compiler(lambda: Vocabulary(tokenizer, tokenizer.vocab_size, frozenset({END})))
    return compiler.compile(constraint).result(30).matcher()


def check(name: str, arguments: Any) -> None:
    assert name in ("weather", "noop")
    assert isinstance(arguments, dict)
    if name == "noop":
        assert arguments == {}
        return
    assert arguments["city"] in ("Rome", "Münster")
    assert arguments["days"] in range(1, 8)
    assert set(arguments) <= {"city", "days", "where"}
    assert isinstance(arguments.get("where", {"x": True})["x"], bool)


@pytest.mark.parametrize("special", [True, False], ids=["special", "spelled"])
@pytest.mark.parametrize("family", sorted(BY_NAME))
def test_what_must_be_called_is_read_back(family: str, special: bool) -> None:
    found = set()
    for seed in range(8):
        forced = Forced(family, special)
        tokens = forced.write(random.Random(seed))
        text, calls = forced.read(tokens)
        assert text == "", bytes(token for token in tokens if token < END)
        assert calls
        for name, arguments in calls:
            check(name, arguments)
        found |= {name for name, _ in calls}
    assert found == {"weather", "noop"}


@pytest.mark.parametrize("family", sorted(BY_NAME))
def test_one_named_call(family: str) -> None:
    conversation = Conversation(
        CONVERSATION.messages, tools=TOOLS, tool_choice=ToolChoice("required", ("noop",)), parallel_tool_calls=False
    )
    for seed in range(3):
        forced = Forced(family, True, conversation)
        _, calls = forced.read(forced.write(random.Random(seed)))
        assert [name for name, _ in calls] == ["noop"]


@pytest.mark.parametrize("family", sorted(name for name, kind in BY_NAME.items() if kind.writing.trigger))
def test_strict_tools_leave_text_free_and_hold_calls(family: str) -> None:
    strict = tuple(Tool(tool.name, "", tool.parameters, strict=True) for tool in TOOLS)
    conversation = Conversation(CONVERSATION.messages, tools=strict)
    forced = Forced(family, True, conversation)
    for byte in b"Let me see: 1 < 2, [ok] ":
        assert byte in forced.allowed()
        forced.matcher.advance(byte)
    assert END in forced.allowed(), "prose alone is an answer"
    writing = BY_NAME[family].writing
    shape = writing.shape("weather", WEATHER)
    for token in forced.tokenizer.encode(writing.prefix + shape.begin, add_special=False):
        assert token in forced.allowed(), "a call may begin at any place"
        forced.matcher.advance(token)
    assert END not in forced.allowed()
    assert ord("Q") not in forced.allowed(), "and is held to its schema"


def test_strict_needs_a_mark_that_prose_does_not_have() -> None:
    offer = Offer([("weather", WEATHER, True)])
    with pytest.raises(Unsupported, match="strict"):
        constrained(Format(BY_NAME["python"], native=True), offer, None, thinking=False)


@pytest.mark.parametrize("keyword", [{"pattern": "^a$"}, {"format": "date"}])
def test_what_a_notation_cannot_be_held_to_is_refused(keyword: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"day": {"type": "string", **keyword}}}
    for name in ("GEMMA4", "QWEN3_CODER"):
        form = recognise(ChatTemplate({"default": getattr(templates, name)}, {"bos_token": ""}))
        with pytest.raises(Unsupported, match=next(iter(keyword))):
            constrained(form, Offer([("weather", schema, True)]), None, thinking=False)


@pytest.mark.parametrize("family", ["gemma4", "functiongemma", "qwen3-coder", "glm", "hermes", "llama4"])
def test_schemas_as_pydantic_writes_them(family: str) -> None:
    schema = {
        "$defs": {"Kind": {"enum": ["a", "b"], "type": "string"}},
        "type": "object",
        "properties": {
            "kind": {"$ref": "#/$defs/Kind"},
            "limit": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}], "default": None},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["kind"],
        "additionalProperties": False,
    }
    conversation = Conversation(
        CONVERSATION.messages,
        tools=(Tool("weather", "", schema),),
        tool_choice=ToolChoice("required"),
        parallel_tool_calls=False,
    )
    for seed in range(6):
        forced = Forced(family, True, conversation)
        text, ((_, arguments),) = forced.read(forced.write(random.Random(seed)))
        assert text == ""
        assert arguments["kind"] in ("a", "b")
        assert arguments.get("limit") in (None, *range(10))
        assert all(isinstance(tag, bool) for tag in arguments.get("tags", []))


def test_what_is_asked_for_joins_the_tools() -> None:
    form = recognise(ChatTemplate({"default": templates.LLAMA31}, {"bos_token": ""}))
    tools = [("weather", WEATHER, False)]
    asked = Constraint("json_schema", json.dumps({"type": "object", "properties": {"a": {"const": 1}}}))
    assert constrained(form, Offer([]), asked, thinking=False) == asked
    assert constrained(form, Offer(tools), None, thinking=False) is None
    both = constrained(form, Offer(tools), asked, thinking=False)
    assert both is not None
    tokenizer = tokenizer_with([])
    for text in ('{"a": 1}', '{"name": "weather", "parameters": {"city": "'):
        matcher = compiled(both, tokenizer)
        for byte in text.encode():
            matcher.advance(byte)
            assert matcher.error is None
    with pytest.raises(Unsupported, match="combined"):
        constrained(form, Offer(tools), Constraint("ebnf", 'root ::= "a"'), thinking=False)


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        (Constraint("json_schema", '{"type": "integer"}'), "7", "x"),
        (Constraint("json_object"), "{", "["),
        (Constraint("choice", '["yes", "no"]'), "yes", "m"),
        (Constraint("regex", "a/b+"), "a/b", "b"),
    ],
)
def test_the_form_of_an_answer_holds_after_the_reasoning(asked: Constraint, good: str, bad: str) -> None:
    form = recognise(ChatTemplate({"default": templates.QWEN3}, {"bos_token": ""}))
    found = constrained(form, Offer([]), asked, thinking=True)
    assert found is not None
    matcher = compiled(found, tokenizer_with([]))
    for byte in b"<think>\nAnything { at all.\n</think>\n\n" + good.encode():
        matcher.advance(byte)
        assert matcher.error is None
    matcher = compiled(found, tokenizer_with([]))
    for byte in b"</think>":
        matcher.advance(byte)
    matcher.advance(ord(bad))
    assert matcher.error is not None
