"""The sampling fields of a body, common to every dialect that has OpenAI's and vLLM's names.

The plain numbers are rows of `NUMBERS`; what needs more than bounds has a function of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from msgspec import Struct

from headrace.errors import InvalidRequest
from headrace.types import SamplingParams
from headrace.wire.fields import Fields
from headrace.wire.limits import Limits

INT32 = (1 << 31) - 1
SEED_MAX = (1 << 63) - 1
GREEDY_BELOW = 1e-5
"""A temperature below this is greedy (vLLM's threshold): dividing logits by less may overflow."""


class Bounds(Struct, frozen=True):
    """Where a number may lie (``above`` leaves ``low`` itself out), and the value that changes nothing."""

    low: float
    high: float
    neutral: float
    above: bool = False


NUMBERS: Mapping[str, Bounds] = {
    "temperature": Bounds(0, 2, neutral=1),
    "top_p": Bounds(0, 1, neutral=1, above=True),
    "min_p": Bounds(0, 1, neutral=0),
    "repetition_penalty": Bounds(0.01, 10, neutral=1),
    "presence_penalty": Bounds(-2, 2, neutral=0),
    "frequency_penalty": Bounds(-2, 2, neutral=0),
}

FIELDS = frozenset(
    {
        *NUMBERS, "max_tokens", "min_tokens", "top_k", "seed", "logit_bias", "allowed_token_ids", "bad_words", "stop",
        "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "prompt_logprobs",
    }
)  # fmt: skip


def parse_sampling(
    fields: Fields, limits: Limits, max_tokens: int | None, logprobs: int | None, defaults: Mapping[str, float]
) -> SamplingParams:
    """The sampling part of a call. ``defaults`` are the model's own, from its generation_config.json.

    Raises:
        InvalidRequest: a field's type or value is wrong.
    """
    upper = limits.max_model_len if max_tokens is None else max(max_tokens, 1)
    min_tokens = fields.integer("min_tokens", 0, limits.max_model_len) or 0
    if min_tokens > upper:
        raise fields.wrong("min_tokens", f"is {min_tokens}, more than max_tokens ({upper})")
    numbers: dict[str, float] = {}
    for name, bounds in NUMBERS.items():
        value = fields.number(name, bounds.low, bounds.high, above=bounds.above)
        numbers[name] = defaults.get(name, bounds.neutral) if value is None else value
    return SamplingParams(
        max_tokens=upper,
        min_tokens=min_tokens,
        top_k=_top_k(fields, limits, defaults),
        seed=fields.integer("seed", 0, SEED_MAX),
        logit_bias=_logit_bias(fields, limits),
        allowed_token_ids=_allowed(fields, limits),
        stop=fields.texts("stop", limits.max_stop, limits.max_stop_chars, single=True),
        stop_token_ids=frozenset(fields.token_ids("stop_token_ids", limits.max_token_ids, limits.vocab_size) or ()),
        ignore_eos=fields.boolean("ignore_eos"),
        include_stop_str_in_output=fields.boolean("include_stop_str_in_output"),
        skip_special_tokens=fields.boolean("skip_special_tokens", True),
        logprobs=logprobs,
        prompt_logprobs=fields.integer("prompt_logprobs", 0, limits.max_logprobs),
        temperature=numbers["temperature"] if numbers["temperature"] >= GREEDY_BELOW else 0.0,
        top_p=numbers["top_p"],
        min_p=numbers["min_p"],
        repetition_penalty=numbers["repetition_penalty"],
        presence_penalty=numbers["presence_penalty"],
        frequency_penalty=numbers["frequency_penalty"],
    )


def usable_defaults(defaults: Mapping[str, float]) -> dict[str, float]:
    """Those of a model's sampling defaults that a request could ask for too: files are no more trusted than callers."""
    top_k = defaults.get("top_k", 0)
    whole = isinstance(top_k, float) and top_k.is_integer()  # the files' reader makes floats of all of them
    fields = Fields({**defaults, "top_k": int(top_k) if whole else top_k})
    usable: dict[str, float] = {}
    for name, bounds in NUMBERS.items():
        with suppress(InvalidRequest):
            value = fields.number(name, bounds.low, bounds.high, above=bounds.above)
            if value is not None:
                usable[name] = value
    with suppress(InvalidRequest):
        usable["top_k"] = fields.integer("top_k", -1, INT32) or 0
    return usable


def _top_k(fields: Fields, limits: Limits, defaults: Mapping[str, float]) -> int:
    """Both 0 and -1 keep all tokens, and so does anything from the vocabulary's size on."""
    asked = fields.integer("top_k", -1, INT32)
    top_k = int(defaults.get("top_k", 0)) if asked is None else asked
    return top_k if 0 < top_k < limits.vocab_size else 0


def _logit_bias(fields: Fields, limits: Limits) -> Mapping[int, float]:
    """OpenAI's map from token id (as a string, JSON has no other keys) to a bias from -100 to 100."""
    entries = fields.mapping("logit_bias", limits.max_logit_bias)
    biases = Fields(entries, "logit_bias.")
    result: dict[int, float] = {}
    for key in entries:
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < limits.vocab_size):
            raise fields.wrong("logit_bias", f"has a key that is no token id from 0 to {limits.vocab_size - 1}")
        bias = biases.number(key, -100, 100)
        if bias is not None:
            result[int(key)] = bias
    return result


def _allowed(fields: Fields, limits: Limits) -> tuple[int, ...] | None:
    allowed = fields.token_ids("allowed_token_ids", limits.max_token_ids, limits.vocab_size)
    if allowed is not None and not allowed:
        raise fields.wrong("allowed_token_ids", "must not be empty: no token would be left to choose")
    return allowed
