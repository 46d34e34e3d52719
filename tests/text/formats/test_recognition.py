"""Which format a template gives away, and what a conversation becomes for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.errors import Unsupported
from headrace.text.formats.prompting import prompted, thinking_variables
from headrace.text.formats.recognition import Format, recognise
from headrace.text.template import ChatTemplate, load_template
from headrace.weights import TextSource
from tests.text.formats import templates
from tests.text.formats.test_reader import read

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NAMES = [name for name in dir(templates) if name.isupper()]


def template(name: str) -> ChatTemplate:
    return ChatTemplate({"default": getattr(templates, name)}, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize(
    ("name", "family", "native", "as_text", "short", "thinks"),
    [
        ("QWEN3", "hermes", True, False, False, True),
        ("QWEN3_CODER", "qwen3-coder", True, False, False, False),
        ("LLAMA31", "llama3", True, False, False, False),
        ("MISTRAL_V3", "mistral-json", True, False, True, False),
        ("MISTRAL_V11", "mistral", True, False, False, False),
        ("DEEPSEEK_R1", "deepseek-v3", True, True, False, True),
        ("DEEPSEEK_V31", "deepseek-v3.1", True, True, False, False),
        ("GEMMA3", "json", False, False, False, False),
        ("GEMMA4", "gemma4", True, False, False, False),
        ("GRANITE", "granite", True, False, False, False),
        ("SMOLLM2", "smollm2", False, False, False, False),
        ("NO_SYSTEM", "json", False, False, False, False),
        ("LLAMA4", "llama4", True, False, False, False),
        ("UNKNOWN", "json", True, False, False, False),
    ],
)
def test_a_template_gives_its_format_away(
    name: str, family: str, native: bool, as_text: bool, short: bool, thinks: bool
) -> None:
    form = recognise(template(name))
    assert (form.family.name, form.native, form.arguments_as_text, form.short_ids, form.thinks) == (
        family, native, as_text, short, thinks,
    )  # fmt: skip
    assert form.system == (name != "NO_SYSTEM")


def test_the_default_model_writes_its_own_kind(smollm2: TextSource) -> None:
    found = load_template(smollm2)
    assert found is not None
    form = recognise(found)
    assert (form.family.name, form.native, form.reasoning) == ("smollm2", False, None)


def conversation() -> list[dict[str, Any]]:
    call = {"id": "call_0123456789", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "sunny, 31"},
        {"role": "user", "content": "And tomorrow?"},
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_template_takes_a_whole_conversation(name: str) -> None:
    """Calls and results come out as the model knows them, in whatever words."""
    form, text = rendered(name)
    for part in ("How is Rome?", "Rome", "weather", "sunny, 31", "And tomorrow?"):
        assert part in text, part
    if name != "UNKNOWN" and form.family.name not in ("gemma4",):
        _, _, calls = read(text.partition("How is Rome?")[2], form.family)
        assert ("weather", {"city": "Rome"}) in [(name, json.loads(arguments)) for name, arguments in calls]


def rendered(name: str) -> tuple[Format, str]:
    found = template(name)
    form = recognise(found)
    messages, tools = prompted(form, conversation()[0 if form.system else 1 :], [TOOL])
    return form, found.render(messages, tools=tools)


def test_tools_are_described_where_the_template_does_not() -> None:
    for name in ("SMOLLM2", "GEMMA3", "NO_SYSTEM"):
        form, text = rendered(name)
        assert not form.native
        assert '"name": "weather"' in text
        assert "Tells the weather." in text
        assert "<tool_response>\nsunny, 31\n</tool_response>\nAnd tomorrow?" in text


def test_conversations_without_tools_are_left_alone() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    for name in NAMES:
        assert prompted(recognise(template(name)), messages, []) == (messages, None)


def test_ids_are_short_where_they_must_be_and_the_same_on_both_sides() -> None:
    messages, _ = prompted(recognise(template("MISTRAL_V3")), conversation(), [TOOL])
    short = messages[2]["tool_calls"][0]["id"]
    assert len(short) == 9
    assert short.isalnum()
    assert messages[3]["tool_call_id"] == short
    assert messages[3]["name"] == "weather"


def test_reasoning_is_switched_as_the_template_offers() -> None:
    qwen, r1, llama = (recognise(template(name)) for name in ("QWEN3", "DEEPSEEK_R1", "LLAMA31"))
    assert thinking_variables(qwen, None, "") == {}
    assert thinking_variables(qwen, False, "") == {"enable_thinking": False}
    assert thinking_variables(recognise(template("DEEPSEEK_V31")), True, "high") == {"thinking": True}
    assert thinking_variables(r1, True, "low") == {}
    with pytest.raises(Unsupported, match="always reasons"):
        thinking_variables(r1, False, "")
    assert thinking_variables(llama, False, "") == {}
    with pytest.raises(Unsupported, match="does not reason"):
        thinking_variables(llama, True, "high")
