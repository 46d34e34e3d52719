"""The bodies of Anthropic's routes as schemas."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.wire.anthropic_requests import FIELDS, HINTS, NEUTRAL
from headrace.wire.openapi.parts import (
    ANY_OBJECT,
    INT32,
    MODEL,
    TRUE_OR_FALSE,
    Schema,
    answer,
    either,
    fields,
    integer,
    items,
    number,
    one_of_words,
    text,
)

_CONTENT = either(text(), items(answer({"type": text()})))
_KNOWN: Mapping[str, Schema] = {
    "model": MODEL,
    "max_tokens": integer(1, INT32),
    "messages": items(answer({"role": one_of_words("user", "assistant", "system"), "content": _CONTENT}), least=1),
    "system": _CONTENT,
    "stop_sequences": items(text()),
    "stream": TRUE_OR_FALSE,
    "temperature": number(0, 1),
    "top_k": integer(0, INT32),
    "top_p": number(0, 1, above=True),
    "thinking": ANY_OBJECT,
    "tools": items(ANY_OBJECT),
    "tool_choice": ANY_OBJECT,
    "output_config": ANY_OBJECT,
}
_HINTS: Mapping[type, Schema] = {dict: ANY_OBJECT, str: {"type": "string"}}
_ALL: Mapping[str, Schema] = {
    **{name: _KNOWN[name] for name in sorted(FIELDS)},
    **{name: {**_HINTS[kind], "description": "accepted; changes nothing"} for name, kind in HINTS.items()},
    **{name: {"enum": [*values, None], "description": "other values are refused"} for name, values in NEUTRAL.items()},
}
BODIES: Mapping[str, Schema] = {
    "Messages": fields(_ALL, ("max_tokens", "messages")),
    "CountTokens": fields(_ALL, ("messages",)),
}
ANSWERS: Mapping[str, Schema] = {
    "MessagesAnswer": answer(
        {"id": text(), "type": text(), "role": text(), "content": items(ANY_OBJECT), "usage": ANY_OBJECT}
    ),
    "CountTokensAnswer": answer({"input_tokens": integer(0)}),
    "AnthropicError": answer({"type": one_of_words("error"), "error": answer({"type": text(), "message": text()})}),
}
