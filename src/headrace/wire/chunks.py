"""Deltas → server-sent events, in OpenAI's two dialects.

A stream spends its time in `delta`, once for each token: the chunk's unchanging text is cut once per choice and only
the new text is escaped. B1 of the contract gives the order: chat opens each choice with its role, closes it with an
empty delta that carries ``finish_reason``; then the usage, if asked for, and ``[DONE]``.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from headrace.wire.calls import AnswerStyle
from headrace.wire.deltas import Delta, Head, ToolCallDelta, Usage
from headrace.wire.shapes import chat_logprobs, completion_logprobs, prompt_logprobs, usage_json

DONE = b"data: [DONE]\n\n"
_END = "}\n\n"

escape = json.encoder.encode_basestring
"""Text → JSON string, quotes included, in C; characters beyond ASCII stay as they are."""


def to_json(value: Any) -> str:
    """Compact JSON that keeps characters beyond ASCII."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class ChunkWriter(Protocol):
    """One dialect's way to write a stream. An instance belongs to one answer."""

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """One delta as zero or more events. ``usage`` is the usage so far: with the first delta of the answer, and with
        all of them if the style asks for it."""
        ...

    def end(self, usage: Usage) -> bytes:
        """What follows the last delta: the usage, if it was asked for, and ``[DONE]``."""
        ...


class NoStream:
    """The writer of routes that never stream: their parsers refuse it."""

    def __init__(self, head: Head, call: object) -> None:
        """Keep nothing."""

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """Nothing."""
        return b""

    def end(self, usage: Usage) -> bytes:
        """Nothing."""
        return b""


class _Envelope:
    """What both dialects put around a choice."""

    def __init__(self, kind: str, head: Head, style: AnswerStyle) -> None:
        self.style = style
        self.open = (
            f'data: {{"id":{escape(head.id)},"object":"{kind}","created":{head.created},'
            f'"model":{escape(head.model)},"system_fingerprint":{escape(head.fingerprint)},"choices":['
        )
        self._close = ("]" + (',"usage":null' if style.include_usage else "")) + _END

    def close(self, usage: Usage) -> str:
        """From the end of the choices on."""
        if self.style.continuous_usage:
            return f'],"usage":{to_json(usage_json(usage))}{_END}'
        return self._close

    def tail(self, delta: Delta) -> str:
        """The fields of a choice that only some chunks have."""
        parts = ""
        if delta.finish is not None:
            parts += f',"stop_reason":{to_json(delta.stop_reason)}'
        if self.style.return_token_ids and delta.token_ids:
            parts += f',"token_ids":{to_json(list(delta.token_ids))}'
        return parts

    def end(self, usage: Usage) -> bytes:
        """The usage chunk, if it was asked for, and ``[DONE]``."""
        if not self.style.include_usage:
            return DONE
        return f'{self.open}],"usage":{to_json(usage_json(usage))}{_END}'.encode() + DONE


class CompletionWriter:
    """``text_completion`` chunks."""

    def __init__(self, head: Head, style: AnswerStyle) -> None:
        self._envelope = _Envelope("text_completion", head, style)
        self._as_ids = style.tokens_as_ids

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """One event; none if the delta says nothing yet (text held back)."""
        envelope = self._envelope
        ids = envelope.style.return_token_ids and delta.token_ids
        if not (delta.text or delta.logprobs or delta.finish or delta.prompt or ids):
            return b""
        logprobs = to_json(completion_logprobs(delta.logprobs, self._as_ids)) if delta.logprobs else "null"
        finish = f'"{delta.finish}"' if delta.finish else "null"
        tail = envelope.tail(delta)
        if delta.prompt is not None:
            if delta.prompt.logprobs is not None:
                tail += f',"prompt_logprobs":{to_json(prompt_logprobs(delta.prompt))}'
            if delta.prompt.token_ids is not None:
                tail += f',"prompt_token_ids":{to_json(delta.prompt.token_ids)}'
        return (
            f'{envelope.open}{{"index":{delta.index},"text":{escape(delta.text)},"logprobs":{logprobs},'
            f'"finish_reason":{finish}{tail}}}{envelope.close(usage)}'
        ).encode()

    def end(self, usage: Usage) -> bytes:
        """The usage chunk, if it was asked for, and ``[DONE]``."""
        return self._envelope.end(usage)


class ChatWriter:
    """``chat.completion.chunk`` chunks."""

    def __init__(self, head: Head, style: AnswerStyle) -> None:
        self._envelope = _Envelope("chat.completion.chunk", head, style)
        self._as_ids = style.tokens_as_ids
        self._opened: set[int] = set()

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """The role before a choice's first delta, the text if there is any, the finish in a chunk of its own."""
        envelope = self._envelope
        close = envelope.close(usage)
        chunks = ""
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            chunks = self._role(delta, close)
        if delta.reasoning:
            text = escape(delta.reasoning)
            chunks += self._bare(delta, f'"reasoning":{text},"reasoning_content":{text}', close)
        if delta.text or delta.logprobs or (envelope.style.return_token_ids and delta.token_ids):
            logprobs = to_json(chat_logprobs(delta.logprobs, self._as_ids)) if delta.logprobs else "null"
            ids = f',"token_ids":{to_json(list(delta.token_ids))}' if envelope.style.return_token_ids else ""
            chunks += (
                f'{envelope.open}{{"index":{delta.index},"delta":{{"content":{escape(delta.text)}}},'
                f'"logprobs":{logprobs},"finish_reason":null{ids}}}{close}'
            )
        if delta.tool_calls:
            calls = ",".join(map(_call_fragment, delta.tool_calls))
            chunks += self._bare(delta, f'"tool_calls":[{calls}]', close)
        if delta.finish is not None:
            chunks += (
                f'{envelope.open}{{"index":{delta.index},"delta":{{}},"logprobs":null,"finish_reason":"{delta.finish}",'
                f'"stop_reason":{to_json(delta.stop_reason)}}}{close}'
            )
        return chunks.encode()

    def _bare(self, delta: Delta, fields: str, close: str) -> str:
        """A chunk whose delta has these fields alone."""
        return (
            f'{self._envelope.open}{{"index":{delta.index},"delta":{{{fields}}},"logprobs":null,'
            f'"finish_reason":null}}{close}'
        )

    def _role(self, delta: Delta, close: str) -> str:
        extra = ""
        if delta.prompt is not None:
            if delta.prompt.logprobs is not None:
                extra += f'],"prompt_logprobs":{to_json(prompt_logprobs(delta.prompt))}'
            if delta.prompt.token_ids is not None:
                extra += f'{"" if extra else "]"},"prompt_token_ids":{to_json(delta.prompt.token_ids)}'
        return (
            f'{self._envelope.open}{{"index":{delta.index},"delta":{{"role":"assistant","content":""}},'
            f'"logprobs":null,"finish_reason":null}}{extra}{close[1:] if extra else close}'
        )

    def end(self, usage: Usage) -> bytes:
        """The usage chunk, if it was asked for, and ``[DONE]``."""
        return self._envelope.end(usage)


def _call_fragment(call: ToolCallDelta) -> str:
    """Clients join the strings of fragments with one index: id, type and name are in the first alone."""
    arguments = f'"arguments":{escape(call.arguments)}'
    if not call.id:
        return f'{{"index":{call.index},"function":{{{arguments}}}}}'
    function = f'{{"name":{escape(call.name)},{arguments}}}'
    return f'{{"index":{call.index},"id":{escape(call.id)},"type":"function","function":{function}}}'
