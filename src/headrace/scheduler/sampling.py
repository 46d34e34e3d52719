"""From a request's sampling parameters to what a backend needs at each position."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from msgspec.structs import replace

from headrace.constraint import Matcher
from headrace.types import GREEDY, SCORED, RowSampling, SamplingParams
from headrace.watermark import green_list

_BAN = -math.inf
_SHARED = {each.logprobs: each for each in (GREEDY, SCORED)}


def derive_seed(seed: int, index: int) -> int:
    """The 64-bit seed of a request's ``index``-th sequence. Sequence 0 has the request's own."""
    own = seed & (2**64 - 1)
    if index == 0:
        return own
    return int.from_bytes(blake2b(own.to_bytes(8) + index.to_bytes(8), digest_size=8).digest())


def stop_token_ids(params: SamplingParams) -> frozenset[int]:
    """Tokens that end a sequence: what the request asked for, and the model's own unless they are to be ignored."""
    return params.stop_token_ids if params.ignore_eos else params.stop_token_ids | params.eos_token_ids


def always_banned(params: SamplingParams) -> set[int]:
    """Tokens that may never be chosen: bad words of one token."""
    return {word[0] for word in params.bad_words if len(word) == 1}


def banned_next(bad_words: Iterable[tuple[int, ...]], output: array[int]) -> list[int]:
    """Tokens that would complete one of ``bad_words`` (of two tokens or more) after ``output``."""
    banned = []
    for word in bad_words:
        head = word[:-1]
        if len(output) >= len(head) and tuple(output[-len(head) :]) == head:
            banned.append(word[-1])
    return banned


def _with_bans(bias: Mapping[int, float], banned: Iterable[int]) -> Mapping[int, float]:
    return {**bias, **dict.fromkeys(banned, _BAN)}


class SamplingRule:
    """One sequence's way of choosing tokens, prepared once so that a step costs little.

    A rule whose answer never changes (greedy, nothing else asked for) gives one shared object for ever. ``min_tokens``
    bans the stop tokens until that many were generated; bad words are matched against the output alone, as vLLM does.
    ``matcher``, if there is one, stands where the sequence's last token is: only there can the rule be asked.
    """

    __slots__ = (
        "_bias", "_fixed", "_free_from", "_matcher", "_min_bias", "_params", "_penalised", "_prompt", "_seed",
        "_window", "_words",
    )  # fmt: skip

    def __init__(self, params: SamplingParams, seed: int, num_prompt: int, matcher: Matcher | None = None) -> None:
        self._params = params
        self._matcher = matcher
        self._seed = seed
        self._prompt = num_prompt
        self._window = params.penalty_window
        self._free_from = num_prompt + params.min_tokens
        self._words: dict[int, list[tuple[int, ...]]] = {}  # by the token before the last one
        for word in params.bad_words:
            if len(word) > 1:
                self._words.setdefault(word[-2], []).append(word)
        self._bias = _with_bans(params.logit_bias, always_banned(params))
        if matcher is not None and params.ignore_eos:  # a grammar ends by being complete
            self._bias = _with_bans(self._bias, params.eos_token_ids)
        self._min_bias = _with_bans(self._bias, stop_token_ids(params)) if params.min_tokens else self._bias
        self._penalised = not (
            params.repetition_penalty == 1.0 and params.presence_penalty == 0.0 and params.frequency_penalty == 0.0
        )
        self._fixed: RowSampling | None = None
        changes = self._penalised or self._words or matcher is not None or params.watermark is not None
        if params.temperature == 0.0 and not changes:
            plain = self._row(array("i"), self._bias)
            self._fixed = plain
            if replace(plain, logprobs=None).is_plain_greedy and plain.logprobs in _SHARED:
                self._fixed = _SHARED[plain.logprobs]

    def at(self, tokens: array[int], length: int | None = None) -> RowSampling:
        """How to choose the token after ``tokens`` (prompt and output so far), or after their first ``length``."""
        length = len(tokens) if length is None else length
        free = length >= self._free_from
        if free and self._fixed is not None:
            return self._fixed
        if length < len(tokens):
            tokens = tokens[:length]
        bias = self._bias if free else self._min_bias
        if self._words and len(tokens) > self._prompt:
            candidates = self._words.get(tokens[-1])
            if candidates:
                banned = banned_next(candidates, tokens[self._prompt :])
                bias = _with_bans(bias, banned) if banned else bias
        return self._row(tokens, bias)

    def _row(self, tokens: array[int], bias: Mapping[int, float]) -> RowSampling:
        params = self._params
        history: Sequence[int] = tokens if self._penalised else ()
        prompt = self._prompt
        if self._window and len(history) > self._window:
            prompt = max(0, prompt - (len(history) - self._window))
            history = history[-self._window :]
        return RowSampling(
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
            self._seed,
            len(tokens),
            prompt,
            history,
            bias,
            params.allowed_token_ids,
            params.logprobs,
            None if self._matcher is None else self._matcher.mask(),
            None if params.watermark is None else green_list(params.watermark, tokens[-1]),
        )
