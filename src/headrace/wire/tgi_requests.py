"""The body of TGI's ``/generate``, ``/generate_stream`` and ``/`` → `Call`.

Facts of TGI 3 that are kept: without ``parameters`` it samples, with them it is greedy unless ``do_sample`` or a
setting that shapes the distribution says otherwise; without ``max_new_tokens`` the answer may fill the context; a stop
sequence stays in the text; ``truncate`` keeps the last tokens; the model's own generation defaults are not looked at.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from headrace.errors import InvalidRequest, Unsupported
from headrace.types import SamplingParams
from headrace.wire.calls import AnswerStyle, Call, Prompts
from headrace.wire.constraints import tgi_grammar
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import Limits
from headrace.wire.sampling import INT32, SEED_MAX

BODY_FIELDS = frozenset({"inputs", "parameters", "stream"})
PARAMETERS = frozenset(
    {
        "best_of", "temperature", "repetition_penalty", "frequency_penalty", "top_k", "top_p", "typical_p", "do_sample",
        "max_new_tokens", "return_full_text", "stop", "truncate", "watermark", "details", "decoder_input_details",
        "seed", "top_n_tokens", "grammar", "adapter_id",
    }
)  # fmt: skip
_P = "parameters."


def parse_generate(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /generate``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    if Fields(body).boolean("stream"):
        raise InvalidRequest("stream is not for /generate; send this to /generate_stream or to /", "stream")
    return _parse(body, limits, stream=False, full_text=False)


def parse_stream(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /generate_stream``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    if not Fields(body).boolean("stream", True):
        raise InvalidRequest("stream cannot be false here; send this to /generate", "stream")
    return _parse(body, limits, stream=True, full_text=False)


def parse_root(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /``: ``stream`` decides, and the prompt is part of the text unless the caller says no.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    return _parse(body, limits, stream=Fields(body).boolean("stream"), full_text=True)


def parse_inputs(body: Mapping[str, Any]) -> str:
    """``inputs`` alone, of a body that is otherwise as for ``/generate`` (``/tokenize``).

    Raises:
        InvalidRequest: another field, or no text.
    """
    _known(body, BODY_FIELDS, "")
    return check_text(body.get("inputs"), "inputs")


def _parse(body: Mapping[str, Any], limits: Limits, *, stream: bool, full_text: bool) -> Call:
    inputs = parse_inputs(body)
    given = Fields(body).mapping("parameters", len(PARAMETERS) + 64)
    _known(given, PARAMETERS, _P)
    fields = Fields(given, _P)
    if fields.raw("adapter_id") is not None:
        raise Unsupported("parameters.adapter_id is not supported: there are no adapters", _P + "adapter_id")
    max_tokens = fields.integer("max_new_tokens", 1, limits.max_model_len)
    best_of = fields.integer("best_of", 1, limits.max_n) or 1
    details = fields.boolean("details")
    top = fields.integer("top_n_tokens", 0, limits.max_logprobs) or 0
    logprobs = top if stream or details or best_of > 1 else None
    sampling = _sampling(fields, limits, max_tokens, logprobs, always=body.get("parameters") is None)
    if best_of > 1:
        _check_best_of(fields, best_of, sampling.temperature > 0, stream)
        if max_tokens is not None and best_of * max_tokens > limits.max_work_tokens:
            raise fields.wrong("max_new_tokens", f"times {best_of} sequences is more than {limits.max_work_tokens}")
    if sampling.prompt_logprobs is not None and stream:
        raise fields.wrong("decoder_input_details", "is not supported when streaming tokens")
    return Call(
        content=Prompts((inputs,), truncate=fields.integer("truncate", 1, limits.max_model_len)),
        sampling=sampling,
        max_tokens=max_tokens,
        style=AnswerStyle(stream=stream, details=details, full_text=fields.boolean("return_full_text", full_text)),
        n=best_of,
        constraint=tgi_grammar(fields.raw("grammar"), limits),
        watermark=fields.boolean("watermark"),
    )


def _sampling(
    fields: Fields, limits: Limits, max_tokens: int | None, logprobs: int | None, *, always: bool
) -> SamplingParams:
    """``always``: sample even if nothing says so."""
    temperature = fields.number("temperature", 0, 100, above=True)
    top_k = fields.integer("top_k", 1, INT32)
    top_p = fields.number("top_p", 0, 1, above=True)
    if fields.number("typical_p", 0, 1, above=True) not in (None, 1.0):
        raise Unsupported("parameters.typical_p is not supported; use top_p, or leave it out", _P + "typical_p")
    warps = temperature not in (None, 1.0) or top_k is not None or top_p not in (None, 1.0)
    samples = fields.boolean("do_sample") or warps or always
    seed = fields.integer("seed", 0, SEED_MAX)
    if seed is None and samples:
        seed = secrets.randbits(63)  # the answer names it
    return SamplingParams(
        max_tokens=limits.max_model_len if max_tokens is None else max_tokens,
        temperature=(1.0 if temperature is None else temperature) if samples else 0.0,
        top_k=top_k if top_k is not None and top_k < limits.vocab_size else 0,
        top_p=1.0 if top_p is None else top_p,
        repetition_penalty=_or(fields.number("repetition_penalty", 0.01, 10), 1.0),
        frequency_penalty=_or(fields.number("frequency_penalty", -2, 2), 0.0),
        seed=seed if samples else None,
        stop=fields.texts("stop", limits.max_stop, limits.max_stop_chars),
        include_stop_str_in_output=True,
        logprobs=logprobs,
        prompt_logprobs=0 if fields.boolean("decoder_input_details") else None,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_best_of(fields: Fields, best_of: int, samples: bool, stream: bool) -> None:
    if stream:
        raise fields.wrong("best_of", f"is {best_of}, which is not supported when streaming tokens")
    if not samples:
        raise fields.wrong("best_of", f"is {best_of}, but greedy answers are all the same; set do_sample")
    if fields.raw("seed") is not None:
        raise fields.wrong("seed", "must not be set when best_of is above 1")


def _known(body: Mapping[str, Any], names: frozenset[str], path: str) -> None:
    for name in body:
        if name not in names:
            raise InvalidRequest(f"unknown field {path}{shown(name)}", path + "?")
