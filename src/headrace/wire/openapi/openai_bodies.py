"""The bodies of OpenAI's and vLLM's routes as schemas: the names come from the parsers' own tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from headrace.wire import embeddings, tokens
from headrace.wire.limits import Limits
from headrace.wire.openai_requests import CHAT_FIELDS, COMPLETION_FIELDS, EFFORTS
from headrace.wire.openapi.parts import (
    ANY_OBJECT,
    INT32,
    MODEL,
    TOKEN,
    TRUE_OR_FALSE,
    Schema,
    answer,
    either,
    fields,
    integer,
    items,
    number,
    one_of_words,
    or_null,
    text,
)
from headrace.wire.refusals import HINTS, NOT_HONOURED
from headrace.wire.sampling import NUMBERS, SEED_MAX

_LIMITS = Limits(max_model_len=1, vocab_size=1)  # for the numbers that are the server's; these two are the model's
_NAME = text(most=_LIMITS.max_name_chars)
_STOP = text(least=1, most=_LIMITS.max_stop_chars)
_TOKENS = items(TOKEN)
_TEXT = text(least=1)
_PROMPTS = either(
    _TEXT,
    items(_TEXT, least=1, most=_LIMITS.max_prompts),
    items(TOKEN, least=1),
    items(items(TOKEN, least=1), least=1, most=_LIMITS.max_prompts),
)
_ITEM = fields({"text": _TEXT}, ("text",))
_PARTS = items(fields({"type": one_of_words("text", "input_text"), "text": text()}, ("type", "text")))
_TYPES: Mapping[type, Schema] = {
    str: {"type": "string"},
    bool: TRUE_OR_FALSE,
    dict: ANY_OBJECT,
    int: {"type": "integer"},
}

MESSAGE: Schema = {
    "type": "object",
    "description": "roles: system, developer, user, assistant (with tool_calls), tool (with tool_call_id)",
    "properties": {
        "role": one_of_words("system", "developer", "user", "assistant", "tool"),
        "content": either(text(), _PARTS),
        "name": or_null(_NAME),
        "tool_calls": or_null(items(ANY_OBJECT)),
        "tool_call_id": or_null(_NAME),
        "reasoning_content": or_null(text()),
        "reasoning": or_null(text()),
    },
    "required": ["role", "content"],
}
ASSISTANT: Schema = {
    **MESSAGE,
    "description": "the model's own turn; content may be null beside tool_calls",
    "properties": {
        **MESSAGE["properties"],
        "role": one_of_words("assistant"),
        "content": or_null(either(text(), _PARTS)),
    },
    "required": ["role"],
}
TOOL: Schema = answer(
    {
        "type": one_of_words("function"),
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,128}$"},
                "description": or_null(text()),
                "parameters": or_null(ANY_OBJECT),
                "strict": or_null(TRUE_OR_FALSE),
            },
            "required": ["name"],
        },
    }
)
_SAMPLING: Mapping[str, Schema] = {
    **{name: number(each.low, each.high, above=each.above) for name, each in NUMBERS.items()},
    "max_tokens": integer(0),
    "min_tokens": integer(0),
    "top_k": integer(-1, INT32),
    "seed": integer(0, SEED_MAX),
    "logit_bias": {
        "type": "object",
        "maxProperties": _LIMITS.max_logit_bias,
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": or_null(number(-100, 100)),
    },
    "allowed_token_ids": items(TOKEN, least=1, most=_LIMITS.max_token_ids),
    "bad_words": items(_STOP, most=_LIMITS.max_bad_words),
    "stop": either(_STOP, {"type": "string", "maxLength": 0}, items(_STOP, most=_LIMITS.max_stop)),
    "stop_token_ids": items(TOKEN, most=_LIMITS.max_token_ids),
    "ignore_eos": TRUE_OR_FALSE,
    "include_stop_str_in_output": TRUE_OR_FALSE,
    "skip_special_tokens": TRUE_OR_FALSE,
    "prompt_logprobs": integer(0, _LIMITS.max_logprobs),
}
_CONSTRAINTS: Mapping[str, Schema] = {
    "response_format": {
        "type": "object",
        "properties": {"type": one_of_words("text", "json_object", "json_schema", "structural_tag")},
        "required": ["type"],
    },
    "structured_outputs": ANY_OBJECT,
    "guided_json": either(ANY_OBJECT, text(), TRUE_OR_FALSE),
    "guided_regex": text(),
    "guided_choice": items(text(), least=1, most=_LIMITS.max_choices),
    "guided_grammar": text(),
    "guided_json_object": TRUE_OR_FALSE,
    "guided_decoding_backend": text(),
    "guided_whitespace_pattern": text(),
}
_CALL: Mapping[str, Schema] = {
    "model": MODEL,
    "n": integer(1, _LIMITS.max_n),
    "best_of": integer(1, _LIMITS.max_n),
    "stream": TRUE_OR_FALSE,
    "stream_options": fields(
        {
            "include_usage": TRUE_OR_FALSE,
            "continuous_usage_stats": TRUE_OR_FALSE,
            "include_obfuscation": {"type": "boolean", "enum": [False]},
        }
    ),
    "logprobs": either(TRUE_OR_FALSE, integer(0, _LIMITS.max_logprobs)),
    "top_logprobs": integer(0, _LIMITS.max_logprobs),
    "priority": integer(-INT32, INT32),
    "cache_salt": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    "echo": TRUE_OR_FALSE,
    "add_special_tokens": TRUE_OR_FALSE,
    "return_token_ids": TRUE_OR_FALSE,
    "return_tokens_as_token_ids": TRUE_OR_FALSE,
    "timeout": number(0, _LIMITS.max_timeout, above=True),
    "prompt": _PROMPTS,
    "messages": items(either(MESSAGE, ASSISTANT), least=1, most=_LIMITS.max_messages),
    "max_completion_tokens": integer(1),
    "add_generation_prompt": TRUE_OR_FALSE,
    "continue_final_message": TRUE_OR_FALSE,
    "chat_template_kwargs": {"type": "object", "maxProperties": _LIMITS.max_template_kwargs},
    "include_reasoning": TRUE_OR_FALSE,
    "tools": items(TOOL, most=_LIMITS.max_tools),
    "tool_choice": either(one_of_words("none", "auto", "required"), ANY_OBJECT),
    "parallel_tool_calls": TRUE_OR_FALSE,
    "reasoning_effort": one_of_words(*EFFORTS),
    "input": _PROMPTS,
    "encoding_format": one_of_words("float", "base64"),
    "dimensions": integer(1),
    **{name: either(_TEXT, _ITEM, items(either(_TEXT, _ITEM), least=1))
       for name in ("text_1", "text_2", "queries", "documents", "items")},
    "query": _TEXT,
    "top_n": integer(0, INT32),
    "return_documents": TRUE_OR_FALSE,
    "return_token_strs": TRUE_OR_FALSE,
    "tokens": _TOKENS,
}  # fmt: skip
FIELDS: Mapping[str, Schema] = {**_SAMPLING, **_CONSTRAINTS, **_CALL}
"""Every field that is honoured anywhere in OpenAI's and vLLM's bodies."""


def body(names: Collection[str], required: Collection[str] = (), **special: Schema) -> Schema:
    """A body with the honoured fields ``names``; those that are known and not honoured with the values that ask for
    nothing; and the hints."""
    known: dict[str, Schema] = {name: special[name] if name in special else FIELDS[name] for name in sorted(names)}
    for name, refusal in sorted(NOT_HONOURED.items()):
        if name not in known:
            known[name] = {
                "enum": [*refusal.neutral, None],
                "description": f"other values are refused: {refusal.reason}",
            }
    for name, kind in sorted(HINTS.items()):
        known.setdefault(name, {**_TYPES[kind], "description": "accepted; changes nothing"})
    return fields(known, required)


BODIES: Mapping[str, Schema] = {
    "Completion": body(
        COMPLETION_FIELDS, ("prompt",), logprobs=integer(0, _LIMITS.max_logprobs), max_tokens=integer(0)
    ),
    "Chat": body(CHAT_FIELDS, ("messages",), logprobs=TRUE_OR_FALSE, max_tokens=integer(1)),
    "Embeddings": body(embeddings.EMBED_FIELDS, ("input",)),
    "Score": either(
        body(embeddings.SCORE_FIELDS - {"queries", "documents", "items"}, ("text_1", "text_2")),
        body(embeddings.SCORE_FIELDS - {"text_1", "text_2", "items"}, ("queries", "documents")),
        body(embeddings.SCORE_FIELDS - {"text_1", "text_2", "documents"}, ("queries", "items")),
    ),
    "Rerank": body(embeddings.RERANK_FIELDS, ("query", "documents")),
    "Detokenize": body(tokens.DETOKENIZE_FIELDS, ("tokens",)),
}
TOKENIZE: Schema = either(
    body(tokens.TOKENIZE_FIELDS, ("prompt",), prompt=text()),
    body(CHAT_FIELDS | {"return_token_strs"}, ("messages",), logprobs=TRUE_OR_FALSE, max_tokens=integer(1)),
)
USAGE: Schema = answer({"prompt_tokens": integer(0), "total_tokens": integer(0)})
_HEAD: Mapping[str, Any] = {"id": text(), "object": text(), "created": integer(0), "model": text()}
ANSWERS: Mapping[str, Schema] = {
    "CompletionAnswer": answer(
        {**_HEAD, "choices": items(answer({"index": integer(0), "text": text()})), "usage": USAGE}
    ),
    "ChatAnswer": answer(
        {**_HEAD, "choices": items(answer({"index": integer(0), "message": ANY_OBJECT})), "usage": USAGE}
    ),
    "EmbeddingsAnswer": answer(
        {
            "object": text(),
            "data": items(answer({"index": integer(0), "embedding": either(items({"type": "number"}), text())})),
            "model": text(),
            "usage": USAGE,
        }
    ),
    "ScoreAnswer": answer({**_HEAD, "data": items(answer({"index": integer(0), "score": {"type": "number"}}))}),
    "RerankAnswer": answer(
        {"id": text(), "results": items(answer({"index": integer(0), "relevance_score": {"type": "number"}}))}
    ),
    "DetokenizeAnswer": answer({"prompt": text()}),
    "Error": answer(
        {
            "error": answer(
                {"message": text(), "type": text(), "param": or_null(text()), "code": or_null({"type": "integer"})}
            )
        }
    ),
}
