"""The formats that are known, as a table: how a template gives each away, how it is read, and how calls are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from msgspec import Struct

from headrace.constraint import CallShape, literal_text
from headrace.text.formats.gemma_calls import GemmaCalls
from headrace.text.formats.json_calls import BARE, JsonCalls
from headrace.text.formats.named_calls import MistralCalls, SectionCalls
from headrace.text.formats.notation import Notation, PythonNotation, Schema, free_text, properties_of, texts_of
from headrace.text.formats.python_calls import PythonCalls
from headrace.text.formats.reader import CallFormat, Reasoning
from headrace.text.formats.tagged_calls import KeyedCalls, TaggedCalls


class Writing(Struct, frozen=True):
    """How calls are written where they are forced. ``shape`` makes one of a name and its parameters' schema.

    ``trigger`` is what every call begins with, its ``prefix`` included: text before it is free where a constraint lets
    the model choose. None: nothing that prose may not have as well.
    """

    shape: Callable[[str, Schema], CallShape]
    trigger: str | None
    prefix: str = ""
    separator: str = ""
    suffix: str = ""


class Family(Struct, frozen=True):
    """One way of writing calls."""

    name: str
    evidence: re.Pattern[str]
    """Matches what a template of this family renders of a call of `probe`, or its source."""
    calls: CallFormat
    writing: Writing
    marks: tuple[str, ...] = ()
    """Marks that may be special tokens, beside those that begin a call."""


def _json_shape(begin: str, end: str, arguments: str = "arguments") -> Callable[[str, Schema], CallShape]:
    def shape(name: str, schema: Schema) -> CallShape:
        return CallShape(f'{begin}{{"name": {json.dumps(name)}, "{arguments}": ', f"}}{end}", schema)

    return shape


def _named_shape(begin: str, middle: str, end: str) -> Callable[[str, Schema], CallShape]:
    return lambda name, schema: CallShape(f"{begin}{name}{middle}", end, schema)


def _tagged_shape(name: str, schema: Schema) -> CallShape:
    """Parameters in the schema's order; those that are not required may be left out."""
    properties, required = properties_of(schema, schema)
    parts = [literal_text(f"<function={name}>\n")]
    for key, described in properties.items():
        opening, closing = literal_text(f"<parameter={key}>\n"), literal_text("\n</parameter>\n")
        part = f"({opening} {_tagged_value(described, schema)} {closing})"
        parts.append(part if key in required else f"{part}?")
    return CallShape("<tool_call>\n", "</function>\n</tool_call>", lark=" ".join(parts))


def _keyed_shape(name: str, schema: Schema) -> CallShape:
    properties, required = properties_of(schema, schema)
    parts = [literal_text(f"{name}\n")]
    for key, described in properties.items():
        opening, closing = literal_text(f"<arg_key>{key}</arg_key>\n<arg_value>"), literal_text("</arg_value>\n")
        part = f"({opening} {_tagged_value(described, schema)} {closing})"
        parts.append(part if key in required else f"{part}?")
    return CallShape("<tool_call>", "</tool_call>", lark=" ".join(parts))


def _tagged_value(described: Schema, root: Schema) -> str:
    """A text as it is, anything else as JSON."""
    texts = texts_of(described)
    if texts is not None:
        return "(" + " | ".join(map(literal_text, texts)) + ")"
    if described.get("type") == "string":
        return free_text(described)
    kept = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return f"%json {json.dumps({**kept, **described}, ensure_ascii=False)}"


def _gemma_shape(begin: str, end: str, quote: str) -> Callable[[str, Schema], CallShape]:
    return lambda name, schema: CallShape(f"{begin}call:{name}", end, lark=Notation(quote, schema).object(schema))


def _python_shape(name: str, schema: Schema) -> CallShape:
    return CallShape(f"{name}(", ")", lark=PythonNotation(schema).arguments(schema))


_JSON_BEGINS = '{"name": "'

BARE_JSON = Family(
    "json",
    re.compile(r'\{"name": "probe", "(?:parameters|arguments)": '),
    JsonCalls(("```json", "```tool_call", "```tool_code", "```", *BARE), ("```",), python="```tool_code"),
    Writing(_json_shape("", "", "parameters"), _JSON_BEGINS, separator="\n"),
)
"""What a model is told to write whose template has tools and no marks that are known."""

SMOLLM2 = Family(
    "smollm2",
    re.compile(r"SmolLM2?[^3]"),
    JsonCalls(("<tool_call>", "```json", *BARE), ("</tool_call>", "```")),
    Writing(_json_shape("", ""), "<tool_call>", "<tool_call>[", ", ", "]</tool_call>"),
)
"""SmolLM2's instruct models: no tools in the template, a list of calls between Hermes' marks in their training."""

FAMILIES = (
    Family(
        "qwen3-coder",
        re.compile(r"<function=probe>|<function=' \+|<function=\{"),
        TaggedCalls(),
        Writing(_tagged_shape, trigger="<tool_call>", separator="\n"),
        ("</tool_call>", "<tool_call>"),
    ),
    Family(
        "glm",
        re.compile(r"<arg_key>"),
        KeyedCalls(),
        Writing(_keyed_shape, trigger="<tool_call>", separator="\n"),
        ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    Family(
        "gemma4",
        re.compile(r"<\|tool_call>call:"),
        GemmaCalls(("<|tool_call>",), ("<tool_call|>",), '<|"|>'),
        Writing(_gemma_shape("<|tool_call>", "<tool_call|>", '<|"|>'), trigger="<|tool_call>"),
        ("<tool_call|>", '<|"|>'),
    ),
    Family(
        "functiongemma",
        re.compile(r"<start_function_call>call:"),
        GemmaCalls(("<start_function_call>",), ("<end_function_call>",), "<escape>"),
        Writing(
            _gemma_shape("<start_function_call>", "<end_function_call>", "<escape>"), trigger="<start_function_call>"
        ),
        ("<end_function_call>", "<escape>"),
    ),
    Family(
        "deepseek-v3",
        re.compile(r"<｜tool▁sep｜>(?:probe\n|' *\+ *tool\['function'\]\['name'\])"),
        SectionCalls(
            ("<｜tool▁calls▁begin｜>",),
            ("<｜tool▁call▁begin｜>",),
            ("<｜tool▁sep｜>",),
            ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        ),
        Writing(
            _named_shape("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>"),
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁begin｜>",
            "\n",
            "<｜tool▁calls▁end｜>",
        ),
        ("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ),
    Family(
        "deepseek-v3.1",
        re.compile(r"<｜tool▁call▁begin｜>"),
        SectionCalls(
            ("<｜tool▁calls▁begin｜>",),
            ("<｜tool▁call▁begin｜>",),
            ("<｜tool▁sep｜>",),
            ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        ),
        Writing(
            _named_shape("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁begin｜>",
            "",
            "<｜tool▁calls▁end｜>",
        ),
        ("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ),
    Family(
        "kimi-k2",
        re.compile(r"<\|tool_call_argument_begin\|>"),
        SectionCalls(
            ("<|tool_calls_section_begin|>",),
            ("<|tool_call_begin|>",),
            ("<|tool_call_argument_begin|>",),
            ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
        ),
        Writing(
            _named_shape("<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>", "<|tool_call_end|>"),
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_begin|>",
            "",
            "<|tool_calls_section_end|>",
        ),
        ("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    ),
    Family(
        "mistral",
        re.compile(r"\[TOOL_CALLS\](?:probe|' *\+ *(?:name|tool))"),
        MistralCalls(),
        Writing(_named_shape("[TOOL_CALLS]", "[ARGS]", ""), trigger="[TOOL_CALLS]"),
        ("[ARGS]", "[CALL_ID]"),
    ),
    Family(
        "mistral-json",
        re.compile(r"\[TOOL_CALLS\]"),
        MistralCalls(),
        Writing(_json_shape("", ""), "[TOOL_CALLS]", "[TOOL_CALLS] [", ", ", "]"),
        ("[ARGS]", "[CALL_ID]"),
    ),
    Family(
        "granite",
        re.compile(r"<\|tool_call\|>"),
        JsonCalls(("<|tool_call|>",), ("<|/tool_call|>",)),
        Writing(_json_shape("", ""), "<|tool_call|>", "<|tool_call|>[", ", ", "]"),
        ("<|/tool_call|>",),
    ),
    Family(
        "command-r",
        re.compile(r"<\|START_ACTION\|>"),
        JsonCalls(("<|START_ACTION|>",), ("<|END_ACTION|>",)),
        Writing(
            lambda name, schema: CallShape(
                f'{{"tool_call_id": "0", "tool_name": {json.dumps(name)}, "parameters": ', "}", schema
            ),
            "<|START_ACTION|>",
            "<|START_ACTION|>[",
            ", ",
            "]<|END_ACTION|>",
        ),
        ("<|END_ACTION|>",),
    ),
    Family(
        "lfm2",
        re.compile(r"<\|tool_call_start\|>"),
        PythonCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",)),
        Writing(_python_shape, "<|tool_call_start|>", "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
        ("<|tool_call_end|>",),
    ),
    Family(
        "olmo3",
        re.compile(r"<function_calls>"),
        PythonCalls(("<function_calls>",), ("</function_calls>",)),
        Writing(_python_shape, "<function_calls>", "<function_calls>", "\n", "</function_calls>"),
        ("</function_calls>",),
    ),
    Family(
        "llama4",
        re.compile(r"<\|python_start\|>"),
        PythonCalls(("<|python_start|>", "["), ("<|python_end|>",)),
        Writing(_python_shape, "<|python_start|>", "<|python_start|>[", ", ", "]<|python_end|>"),
        ("<|python_end|>",),
    ),
    Family(
        "hermes",
        re.compile(r"<tool_call>"),
        JsonCalls(("<tool_call>",), ("</tool_call>",)),
        Writing(_json_shape("<tool_call>\n", "\n</tool_call>"), trigger="<tool_call>", separator="\n"),
        ("</tool_call>",),
    ),
    Family(
        "llama3",
        re.compile(r'<\|python_tag\|>|"parameters": dictionary of argument|\{"name": "probe", "parameters": '),
        JsonCalls(("<|python_tag|>", *BARE), (";",)),
        Writing(_json_shape("", "", "parameters"), _JSON_BEGINS, separator="; "),
    ),
    Family(
        "python",
        re.compile(r"\bprobe\(probe_key="),
        PythonCalls(("[",)),
        Writing(_python_shape, None, "[", ", ", "]"),
    ),
    BARE_JSON,
)
"""In the order in which they are tried."""

REASONING = (
    Reasoning(("<think>",), ("</think>",)),
    Reasoning(("[THINK]",), ("[/THINK]",)),
    Reasoning(("<|channel>thought\n", "<|channel>thought"), ("<channel|>",)),
    Reasoning(("<|START_THINKING|>",), ("<|END_THINKING|>",)),
    Reasoning(("<seed:think>",), ("</seed:think>",)),
    Reasoning(("Here is my thought process:",), ("Here is my response:",)),
)
"""The marks around reasoning that templates are searched for. The last are Granite's."""


def first_match(families: Sequence[Family], *texts: str) -> Family | None:
    """The first family for which a text speaks; all families are asked about one text before the next."""
    for text in texts:
        for family in families:
            if text and family.evidence.search(text):
                return family
    return None
