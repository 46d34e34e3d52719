"""The body and the answer of ``/v1/responses`` as schemas."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.wire.openai_requests import EFFORTS
from headrace.wire.openapi.openai_bodies import body
from headrace.wire.openapi.parts import (
    ANY_OBJECT,
    TRUE_OR_FALSE,
    Schema,
    answer,
    either,
    fields,
    integer,
    items,
    one_of_words,
    or_null,
    text,
)
from headrace.wire.responses_requests import REFUSED, RESPONSES_FIELDS

_TOOL: Schema = {
    "type": "object",
    "properties": {
        "type": one_of_words("function"),
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,128}$"},
        "description": or_null(text()),
        "parameters": or_null(ANY_OBJECT),
        "strict": or_null(TRUE_OR_FALSE),
    },
    "required": ["type", "name"],
    "additionalProperties": False,
}
_BODY: Schema = body(
    RESPONSES_FIELDS,
    ("input",),
    input=either(text(), items(ANY_OBJECT, least=1)),
    instructions=text(),
    previous_response_id=text(most=512),
    include=items(one_of_words("message.output_text.logprobs")),
    store=TRUE_OR_FALSE,
    background=TRUE_OR_FALSE,
    max_output_tokens=integer(1),
    tools=items(_TOOL, most=128),
    text=ANY_OBJECT,
    reasoning=fields(
        {"effort": one_of_words(*EFFORTS), "summary": one_of_words("auto"), "generate_summary": one_of_words("auto")}
    ),
    stream_options=fields({"include_obfuscation": {"type": "boolean", "enum": [False]}}),
)
BODIES: Mapping[str, Schema] = {
    "Response": {
        **_BODY,
        "properties": {
            **_BODY["properties"],
            **{
                name: {"enum": [*refusal.neutral, None], "description": f"other values are refused: {refusal.reason}"}
                for name, refusal in sorted(REFUSED.items())
            },
        },
    },
}
ANSWERS: Mapping[str, Schema] = {
    "ResponseAnswer": answer(
        {
            "id": text(),
            "object": one_of_words("response"),
            "created_at": integer(0),
            "status": one_of_words("in_progress", "completed", "incomplete", "failed", "cancelled"),
            "model": text(),
            "output": items(ANY_OBJECT),
        }
    ),
}
