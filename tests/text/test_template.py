"""Rendering against `transformers`, endings, variables, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer as Core
from tokenizers import models

from headrace.errors import InvalidRequest, ModelFileError, Unsupported
from headrace.text.template import ChatTemplate, load_template
from headrace.weights import TextSource
from tests.text.templates import LLAMA3, QWEN3, SPECIAL_TOKENS, TEMPLATES

CHAT = [
    {"role": "user", "content": "What turns the wheel? <b>é</b> 水車 🙂"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nThe water does."},
    {"role": "user", "content": "  Is that \"so\"?\n"},
]  # fmt: skip
SYSTEM = [{"role": "system", "content": "Be brief.\n"}]
TOOLS = [
    {"type": "function", "function": {"name": "turn", "description": "Ü <x> & 'y'", "parameters": {"n": [1, 2.5]}}}
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"a": "1", "b": "2"}}}],
}


@pytest.fixture(scope="module")
def oracle() -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Core(models.BPE()), **SPECIAL_TOKENS)


def template(name: str) -> ChatTemplate:
    return ChatTemplate({"default": TEMPLATES[name]}, SPECIAL_TOKENS)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("messages", [CHAT, CHAT[:1], SYSTEM + CHAT], ids=["chat", "one", "system"])
def test_rendering_is_that_of_transformers(name: str, generate: bool, messages: list[Any], oracle: Any) -> None:
    expected = oracle.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=generate
    )
    assert template(name).render(messages, add_generation_prompt=generate) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_continuing_the_final_message_is_that_of_transformers(name: str, oracle: Any) -> None:
    messages = [CHAT[0], {"role": "assistant", "content": "The water, as "}]
    expected = oracle.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
    )
    assert template(name).render(messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_tools_and_variables_are_those_of_transformers(oracle: Any) -> None:
    expected = oracle.apply_chat_template(
        CHAT, tools=TOOLS, chat_template=QWEN3, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert template("qwen3").render(CHAT, tools=TOOLS, variables={"enable_thinking": False}) == expected
    messages = [*CHAT[:1], {**CALL, "content": ""}]
    expected = oracle.apply_chat_template(messages, chat_template=LLAMA3, tokenize=False, date_string="1 May 2026")
    rendered = template("llama3").render(
        [*CHAT[:1], CALL], add_generation_prompt=False, variables={"date_string": "1 May 2026"}
    )
    assert rendered == expected


def test_only_variables_that_the_template_asks_for_can_be_set() -> None:
    for name in (
        "messages",
        "tools",
        "chat_template",
        "tokenize",
        "bos_token",
        "raise_exception",
        "range",
        "ns",
        "other",
    ):
        with pytest.raises(InvalidRequest, match=f"{name}.*known: content, enable_thinking"):
            template("qwen3").render(CHAT, variables={name: "x"})
    with pytest.raises(InvalidRequest, match="must be a string, a number"):
        template("qwen3").render(CHAT, variables={"enable_thinking": ["x"]})


def test_what_the_template_raises_is_the_requests_fault() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template("gemma").render([CHAT[0], CHAT[0]])
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match="single tool-calls"):
        template("llama3").render([CHAT[0], {"role": "assistant", "content": "", "tool_calls": [1, 2]}])


def test_text_parts_are_joined_and_null_is_empty() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in template("smollm2").render([{"role": "user", "content": parts}])
    assert "assistant\n<|im_end|>" in template("smollm2").render([{"role": "assistant", "content": None}])


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([], InvalidRequest, "at least one"),
        ([{"content": "x"}], InvalidRequest, r"messages\[0\]\.role"),
        ([{"role": 5, "content": "x"}], InvalidRequest, r"messages\[0\]\.role"),
        ([{"role": "user", "content": 5}], InvalidRequest, r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], InvalidRequest, r"messages\[0\]\.content"),
        ([CHAT[0], {"role": "user", "content": [{"type": "image_url"}]}], Unsupported, r"messages\[1\].*'image_url'"),
        ([{"role": "user", "content": ["x"]}], Unsupported, "only 'text'"),
    ],
)
def test_messages_that_are_refused(messages: list[Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        template("smollm2").render(messages)


def test_endings_that_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="add_generation_prompt must be false"):
        template("smollm2").render(CHAT, continue_final_message=True)
    with pytest.raises(InvalidRequest, match="leaves its content out"):
        template("mistral").render(SYSTEM, add_generation_prompt=False, continue_final_message=True)


def test_rendering_changes_nothing_of_the_callers() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    template("smollm2").render(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


def test_the_tool_template_is_used_when_there_are_tools() -> None:
    two = ChatTemplate({"default": "plain", "tool_use": "tools: {{ tools|length }}"})
    assert two.render(CHAT) == "plain"
    assert two.render(CHAT, tools=TOOLS) == "tools: 1"


def test_loading(smollm2: TextSource) -> None:
    assert load_template(TextSource()) is None
    with pytest.raises(ModelFileError, match="default"):
        load_template(TextSource(chat_templates={"tool_use": "x"}))
    found = load_template(smollm2)
    assert found is not None
    assert found.render(CHAT[:1]).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_malformed_template_is_refused_at_prepare() -> None:
    with pytest.raises(ModelFileError, match=r"'default'.*line 2"):
        ChatTemplate({"default": "a\n{% for %}"}).prepare()
