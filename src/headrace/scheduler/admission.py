"""What can never be served, said at once and by name. Below every dialect, so that none can forget it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from headrace.errors import InvalidRequest
from headrace.scheduler.sampling import always_banned, stop_token_ids
from headrace.types import Request


class Limits(Struct, frozen=True):
    """What the model and the pool allow, in tokens."""

    vocab_size: int
    max_model_len: int
    kv_tokens: int
    """Slots of the whole KV pool."""


def end_of(request: Request, max_model_len: int) -> int:
    """Tokens of one sequence, prompt included, at which it ends in any case."""
    return min(len(request.prompt) + request.sampling.max_tokens, max_model_len)


def _check_ids(ids: Iterable[int], param: str, vocab_size: int) -> None:
    bad = next((i for i in ids if not 0 <= i < vocab_size), None)
    if bad is not None:
        raise InvalidRequest(f"{param}: token id {bad} is not between 0 and {vocab_size - 1}", param)


def _check_length(request: Request, limits: Limits) -> None:
    length = len(request.prompt)
    if length == 0:
        raise InvalidRequest("prompt: is empty; at least one token is needed", "prompt")
    room = limits.max_model_len - (0 if request.embed else 1)
    if length > room:
        answer = "" if request.embed else " with at least one for the answer"
        raise InvalidRequest(
            f"prompt: has {length} tokens, and this model's context holds {limits.max_model_len}{answer}; "
            f"shorten it by {length - room} or more",
            "prompt",
        )
    end = end_of(request, limits.max_model_len)
    if end > limits.kv_tokens:
        raise InvalidRequest(
            f"max_tokens: prompt and answer may reach {end} tokens, and the server's KV cache holds "
            f"{limits.kv_tokens}; lower max_tokens to {max(limits.kv_tokens - length, 0)} or shorten the prompt",
            "max_tokens",
        )


def _check_choices(request: Request) -> None:
    """Some token must remain that can be chosen."""
    params = request.sampling
    if params.allowed_token_ids is None:
        return
    banned = always_banned(params)
    if params.min_tokens:
        banned |= stop_token_ids(params)
    if banned.issuperset(params.allowed_token_ids):
        raise InvalidRequest(
            "allowed_token_ids: every one of them is banned by bad_words or min_tokens (or there is none); "
            "allow at least one other token",
            "allowed_token_ids",
        )


def check(request: Request, limits: Limits) -> None:
    """Refuse a request that could not be served even on an idle server.

    Raises:
        InvalidRequest: it names the field, the limit and the fix.
    """
    params = request.sampling
    if request.n < 1:
        raise InvalidRequest(f"n: is {request.n}, and must be at least 1", "n")
    if params.max_tokens < 0:
        raise InvalidRequest(f"max_tokens: is {params.max_tokens}, and must not be negative", "max_tokens")
    if request.embed and (params.max_tokens or request.n > 1):
        raise InvalidRequest("max_tokens: must be 0, and n 1, where the prompt's embedding is asked for", "max_tokens")
    if not 0 <= params.min_tokens <= params.max_tokens:
        raise InvalidRequest(
            f"min_tokens: is {params.min_tokens}, and must be between 0 and max_tokens ({params.max_tokens})",
            "min_tokens",
        )
    _check_length(request, limits)
    _check_ids(request.prompt, "prompt", limits.vocab_size)
    _check_ids(params.logit_bias, "logit_bias", limits.vocab_size)
    _check_ids(params.stop_token_ids, "stop_token_ids", limits.vocab_size)
    _check_ids(params.allowed_token_ids or (), "allowed_token_ids", limits.vocab_size)
    for word in params.bad_words:
        if not word:
            raise InvalidRequest("bad_words: one of them has no tokens", "bad_words")
        _check_ids(word, "bad_words", limits.vocab_size)
    _check_choices(request)
