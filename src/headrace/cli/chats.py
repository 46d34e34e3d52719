"""One model's chats: a conversation → prompt, constraint and reader, in the format of the model's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from headrace.constraint import Constraint
from headrace.text.chat import encode_chat
from headrace.text.formats.forcing import Offer, constrained
from headrace.text.formats.prompting import prompted, thinking_variables
from headrace.text.formats.reader import Reader
from headrace.text.formats.recognition import SWITCHES, Format, recognise
from headrace.text.output import OutputText
from headrace.text.template import ChatTemplate
from headrace.text.tokenizer import Tokenizer
from headrace.types import SamplingParams
from headrace.wire.calls import Conversation, Tool

_TAIL = 16
"""Tokens at the prompt's end in which a template may have opened the reasoning."""


class Chats:
    """May be called on any thread."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template

    @cached_property
    def form(self) -> Format:
        """The model's format, found out when it is first asked for."""
        return recognise(self._template)

    @cached_property
    def _stand_ins(self) -> Mapping[str, tuple[int, str]]:
        """Special tokens that are part of the format: by their text their id and a lone surrogate."""
        texts = {self._tokenizer.token_bytes(i).decode("utf-8", "replace"): i for i in self._tokenizer.special_ids}
        found = sorted(text for text in texts if text and any(text in mark for mark in self.form.marks))
        return {text: (texts[text], chr(0xD800 + number)) for number, text in enumerate(found)}

    def encode(self, conversation: Conversation) -> Sequence[int]:
        """The prompt.

        Raises:
            InvalidRequest, Unsupported: the template refuses these messages, or the model cannot reason as asked.
        """
        form = self.form
        messages, tools = prompted(form, conversation.messages, [_described(tool) for tool in _offered(conversation)])
        kwargs, thinking = _switched(conversation)
        variables = thinking_variables(form, thinking, conversation.effort)
        return encode_chat(
            self._tokenizer,
            self._template,
            messages,
            tools=tools,
            variables={**variables, **kwargs},
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
        )

    def constrain(
        self, conversation: Conversation, asked: Constraint | None, prompt: Sequence[int]
    ) -> Constraint | None:
        """What the answer is held to: ``asked`` for, or made by the tools.

        Raises:
            Unsupported: they cannot be had together, or not with this model.
        """
        tools = _offered(conversation)
        if asked is None and not tools:
            return None
        choice = conversation.tool_choice
        offer = Offer(
            [(tool.name, tool.parameters, tool.strict) for tool in _callable(conversation)],
            choice.mode == "required",
            conversation.parallel_tool_calls,
        )
        return constrained(self.form, offer, asked, thinking=self._reasons(conversation, prompt) is not False)

    def open_output(self, sampling: SamplingParams, prompt: Sequence[int], conversation: Conversation) -> OutputText:
        """The text of a new sequence, with reasoning and calls told apart where there may be some."""
        form, tools = self.form, _callable(conversation)
        if form.reasoning is None and not tools:
            return OutputText(self._tokenizer, sampling, prompt=prompt)
        # Without them, special tokens are to be seen as what they are written as.
        stand_ins = self._stand_ins if sampling.skip_special_tokens else {}
        reader = Reader(
            reasoning=form.reasoning,
            thinking=self._reasons(conversation, prompt) is True,
            calls=form.family.calls,
            tools={tool.name: tool.parameters for tool in tools},
            single=not conversation.parallel_tool_calls,
            stand_ins={text: mark for text, (_, mark) in stand_ins.items()},
        )
        return OutputText(self._tokenizer, sampling, prompt=prompt, reader=reader, marks=dict(stand_ins.values()))

    def _reasons(self, conversation: Conversation, prompt: Sequence[int]) -> bool | None:
        """True if the prompt has opened the reasoning, False if there will be none, None if the answer opens it."""
        reasoning = self.form.reasoning
        if reasoning is None:
            return False
        if conversation.continue_final_message:
            content = str(conversation.messages[-1]["content"])
            opened = max(content.rfind(mark) for mark in reasoning.opens)
            closed = max(content.rfind(mark) for mark in reasoning.closes)
            return opened > closed
        tail = self._tokenizer.decode(prompt[-_TAIL:], skip_special=False).rstrip()
        if tail.endswith(tuple(mark.rstrip() for mark in reasoning.opens)):
            return True
        if tail.endswith(reasoning.closes) or not (self.form.thinks or _switched(conversation)[1]):
            return False
        return None


def _switched(conversation: Conversation) -> tuple[Mapping[str, Any], bool | None]:
    """The template's variables without the ones that turn reasoning on and off, and what those say."""
    kwargs, thinking = dict(conversation.template_kwargs), conversation.thinking
    for name in SWITCHES:
        if isinstance(kwargs.get(name), bool):
            thinking = kwargs.pop(name)
    return kwargs, thinking


def _offered(conversation: Conversation) -> tuple[Tool, ...]:
    """The tools that the model is told of."""
    return () if conversation.tool_choice.mode == "none" else conversation.tools


def _callable(conversation: Conversation) -> tuple[Tool, ...]:
    """Those that it may call."""
    names = conversation.tool_choice.names
    return tuple(tool for tool in _offered(conversation) if not names or tool.name in names)


def _described(tool: Tool) -> Mapping[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }
