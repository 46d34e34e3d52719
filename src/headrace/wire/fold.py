"""Deltas → one JSON document: the answer of a call that does not stream is the fold of what a stream would send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct, field

from headrace.wire.calls import AnswerStyle
from headrace.wire.deltas import Delta, Head, PromptPart, ShownToken, Usage
from headrace.wire.shapes import chat_logprobs, completion_logprobs, prompt_logprobs, usage_json


class Passage(Struct):
    """A run of text, or of reasoning, that no call and none of the other kind divides."""

    thought: bool
    fragments: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole of it."""
        return "".join(self.fragments)


class ToolCall(Struct):
    """One call of a tool, whole."""

    id: str
    name: str
    fragments: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """A JSON object as text, if the model wrote one and was not cut off."""
        return "".join(self.fragments)


class Choice(Struct):
    """One choice, grown delta by delta."""

    blocks: list[Passage | ToolCall] = field(default_factory=list)
    """In the order in which the model wrote them."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[ShownToken] = field(default_factory=list)
    finish: str | None = None
    stop_reason: int | str | None = None
    prompt: PromptPart | None = None
    embedding: Sequence[float] = ()

    def add(self, delta: Delta) -> None:
        """The next delta of this choice."""
        if delta.reasoning:
            self._passage(True).fragments.append(delta.reasoning)
        if delta.text:
            self._passage(False).fragments.append(delta.text)
        for call in delta.tool_calls:
            if call.id:
                self.blocks.append(ToolCall(call.id, call.name))
            self.blocks[-1].fragments.append(call.arguments)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if delta.prompt is not None:
            self.prompt = delta.prompt
        if delta.embedding:
            self.embedding = delta.embedding
        if delta.finish is not None:
            self.finish, self.stop_reason = delta.finish, delta.stop_reason

    def _passage(self, thought: bool) -> Passage:
        last = self.blocks[-1] if self.blocks else None
        if not isinstance(last, Passage) or last.thought != thought:
            self.blocks.append(last := Passage(thought))
        return last

    @property
    def text(self) -> str:
        """What the model says to people."""
        return "".join([b.text for b in self.blocks if isinstance(b, Passage) and not b.thought])

    @property
    def reasoning(self) -> str:
        """What it says to itself."""
        return "".join([b.text for b in self.blocks if isinstance(b, Passage) and b.thought])

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of tools."""
        return [block for block in self.blocks if isinstance(block, ToolCall)]


class Document(Protocol):
    """One dialect's way to write a folded answer."""

    def __call__(self, head: Head, style: AnswerStyle, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        """The whole answer as a JSON object."""
        ...


def completion_document(head: Head, style: AnswerStyle, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """``text_completion``."""
    return _document("text_completion", head, [_completion(i, c, style) for i, c in enumerate(choices)], usage)


def chat_document(head: Head, style: AnswerStyle, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """``chat.completion``."""
    document = _document("chat.completion", head, [_chat(i, c, style) for i, c in enumerate(choices)], usage)
    part = choices[0].prompt if choices else None
    if part is not None and part.logprobs is not None:
        document["prompt_logprobs"] = prompt_logprobs(part)
    if part is not None and part.token_ids is not None:
        document["prompt_token_ids"] = part.token_ids
    return document


def _document(kind: str, head: Head, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
        "choices": choices,
        "usage": usage_json(usage),
    }


def _completion(index: int, choice: Choice, style: AnswerStyle) -> dict[str, Any]:
    result: dict[str, Any] = {
        "index": index,
        "text": choice.text,
        "logprobs": completion_logprobs(choice.logprobs, style.tokens_as_ids) if choice.logprobs else None,
        "finish_reason": choice.finish,
        "stop_reason": choice.stop_reason,
    }
    if choice.prompt is not None and choice.prompt.logprobs is not None:
        result["prompt_logprobs"] = prompt_logprobs(choice.prompt)
    if choice.prompt is not None and choice.prompt.token_ids is not None:
        result["prompt_token_ids"] = choice.prompt.token_ids
    if style.return_token_ids:
        result["token_ids"] = choice.token_ids
    return result


def _chat(index: int, choice: Choice, style: AnswerStyle) -> dict[str, Any]:
    result: dict[str, Any] = {
        "index": index,
        "message": chat_message(choice),
        "logprobs": chat_logprobs(choice.logprobs, style.tokens_as_ids) if choice.logprobs else None,
        "finish_reason": choice.finish,
        "stop_reason": choice.stop_reason,
    }
    if style.return_token_ids:
        result["token_ids"] = choice.token_ids
    return result


def chat_message(choice: Choice) -> dict[str, Any]:
    """The assistant's message; ``tool_calls`` only where there are some, for clients that take ``[]`` for a call."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if reasoning := choice.reasoning:
        message["reasoning"] = message["reasoning_content"] = reasoning
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    return message
