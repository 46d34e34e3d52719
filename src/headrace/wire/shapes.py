"""The JSON shapes that chunks and whole answers share: logprobs and usage, in both of OpenAI's dialects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.wire.deltas import LOGPROB_FLOOR, Alternative, PromptPart, ShownToken, Usage


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def completion_logprobs(tokens: Sequence[ShownToken], as_ids: bool) -> dict[str, Any]:
    """Four parallel lists, as ``/v1/completions`` has them. The chosen token is always among the alternatives."""
    return {
        "text_offset": [token.offset for token in tokens],
        "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in tokens],
        "tokens": [_name(token, as_ids) for token in tokens],
        "top_logprobs": [_top_map(token, as_ids) for token in tokens],
    }


def chat_logprobs(tokens: Sequence[ShownToken], as_ids: bool) -> dict[str, Any]:
    """A list of objects, as ``/v1/chat/completions`` has it."""
    return {
        "content": [
            {**_entry(token, as_ids), "top_logprobs": [_entry(other, as_ids) for other in token.top]}
            for token in tokens
        ]
    }


def token_json(token: ShownToken) -> dict[str, Any]:
    """One token with its alternatives, as chats and responses have it."""
    return {**_entry(token, False), "top_logprobs": [_entry(other, False) for other in token.top]}


def prompt_logprobs(part: PromptPart | None) -> list[dict[str, Any] | None] | None:
    """vLLM's shape: for each prompt token null (the first) or a map from token id to what is known of it."""
    if part is None or part.logprobs is None:
        return None
    return [
        None
        if token.logprob is None
        else {
            str(other.token): {"logprob": _finite(other.logprob), "rank": other.rank, "decoded_token": other.text}
            for other in (*_chosen(token), *token.top)
        }
        for token in part.logprobs
    ]


def _chosen(token: ShownToken) -> tuple[Alternative, ...]:
    if token.logprob is None:
        return ()
    return (Alternative(token.token, token.text, token.data, token.logprob, token.rank),)


def _top_map(token: ShownToken, as_ids: bool) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    # The chosen token goes in last, so that it keeps its own number where two tokens have one text.
    return {_name(other, as_ids): _finite(other.logprob) for other in (*token.top, *_chosen(token))}


def _entry(token: ShownToken | Alternative, as_ids: bool) -> dict[str, Any]:
    logprob = LOGPROB_FLOOR if token.logprob is None else _finite(token.logprob)
    return {"token": _name(token, as_ids), "logprob": logprob, "bytes": list(token.data)}


def _name(token: ShownToken | Alternative, as_ids: bool) -> str:
    return f"token_id:{token.token}" if as_ids else token.text


def _finite(logprob: float) -> float:
    return max(logprob, LOGPROB_FLOOR)
