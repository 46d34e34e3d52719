"""TGI's way to write answers and errors."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from headrace.errors import EngineDead, EngineError, HeadraceError, OverloadError, RequestError
from headrace.wire.calls import Call, Prompts
from headrace.wire.chunks import escape, to_json
from headrace.wire.deltas import LOGPROB_FLOOR, Alternative, Delta, Head, ShownToken, Usage
from headrace.wire.dialects import EVENT_STREAM, Dialect, Headers
from headrace.wire.failures import ErrorShape, message_of, status_of
from headrace.wire.fold import Choice
from headrace.wire.tgi_requests import parse_generate, parse_root, parse_stream

COMPUTE_TYPE = b"cpu"

_OPEN_END = ',"generated_text":null,"details":null}\n\n'
_NO_TOKEN = ShownToken(0, "", b"", 0, 0.0, special=True)
"""For an end that no token brought: every event of a stream has one."""


class TokenWriter:
    """A stream's events: one for each token, the last with the whole text.

    Tokens are shown as they are made, those of a stop sequence and the end's included, whatever of their text is held
    back: only ``generated_text`` says what the answer is.
    """

    def __init__(self, head: Head, call: Call) -> None:
        self._call = call
        self._top = bool(call.sampling.logprobs)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._texts: list[str] = []
        self._made = 0
        self._finish: Delta | None = None

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """The delta's tokens. The last token of all waits for `end`."""
        self._texts.append(delta.text)
        tokens = delta.logprobs
        if delta.finish is not None:
            self._finish = delta
            tokens = tokens[:-1]
        return "".join([self._token(token) + _OPEN_END for token in tokens]).encode()

    def end(self, usage: Usage) -> bytes:
        """The last token, with the text and the details."""
        finish = self._finish or Delta(0, finish="length")
        event = self._token(finish.logprobs[-1] if finish.logprobs else _NO_TOKEN)
        text = _whole(self._call, "".join(self._texts))
        details: dict[str, Any] | None = None
        if self._call.style.details:
            details = {
                "finish_reason": _reason(finish.finish, finish.stop_reason),
                "generated_tokens": self._made,
                "seed": self._call.sampling.seed,
                "input_length": usage.prompt_tokens,
            }
        return f'{event},"generated_text":{escape(text)},"details":{to_json(details)}}}\n\n'.encode()

    def _token(self, token: ShownToken) -> str:
        self._made += 1
        text = token.text if token.special else self._decoder.decode(token.data)
        top = f',"top_tokens":{to_json(_top(token))}' if self._top else ""
        return (
            f'data:{{"index":{self._made},"token":{{"id":{token.token},"text":{escape(text)},'
            f'"logprob":{_finite(token.logprob)!r},"special":{"true" if token.special else "false"}}}{top}'
        )


def document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> dict[str, Any]:
    """The answer of ``/generate``: of several sequences the one with the highest mean logprob."""
    ranked = sorted(choices, key=_mean_logprob, reverse=True) if len(choices) > 1 else choices
    best = ranked[0]
    answer: dict[str, Any] = {"generated_text": _whole(call, best.text)}
    if call.style.details:
        answer["details"] = details = _details(call, best)
        if len(choices) > 1:
            details["best_of_sequences"] = [
                {"generated_text": _whole(call, other.text), **_details(call, other)} for other in ranked[1:]
            ]
    return answer


def root_document(head: Head, call: Call, choices: list[Choice], usage: Usage) -> list[dict[str, Any]]:
    """The answer of ``/``: a list of one."""
    return [document(head, call, choices, usage)]


def _details(call: Call, choice: Choice) -> dict[str, Any]:
    prefill = choice.prompt.logprobs if choice.prompt is not None else None
    details: dict[str, Any] = {
        "finish_reason": _reason(choice.finish, choice.stop_reason),
        "generated_tokens": len(choice.logprobs),
        # The others of a best_of draw from seeds of their own, with which they could not be asked for alone.
        "seed": call.sampling.seed if call.n == 1 else None,
        "prefill": [{"id": t.token, "text": t.text, "logprob": _known(t.logprob)} for t in prefill or ()],
        "tokens": tokens_json(choice.logprobs),
    }
    if call.sampling.logprobs:
        details["top_tokens"] = [_top(token) for token in choice.logprobs]
    return details


def tokens_json(tokens: Sequence[ShownToken]) -> list[dict[str, Any]]:
    """Tokens with their text, as they come in a stream: a character is in the token that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [
        {
            "id": token.token,
            "text": token.text if token.special else decoder.decode(token.data),
            "logprob": _finite(token.logprob),
            "special": token.special,
        }
        for token in tokens
    ]


def _top(token: ShownToken) -> list[dict[str, Any]]:
    return [_alternative(other) for other in token.top]


def _alternative(other: Alternative) -> dict[str, Any]:
    return {"id": other.token, "text": other.text, "logprob": _finite(other.logprob), "special": other.special}


def _mean_logprob(choice: Choice) -> float:
    return sum(_finite(token.logprob) for token in choice.logprobs) / max(1, len(choice.logprobs))


def _known(logprob: float | None) -> float | None:
    return None if logprob is None else _finite(logprob)


def _finite(logprob: float | None) -> float:
    return LOGPROB_FLOOR if logprob is None else max(logprob, LOGPROB_FLOOR)


def _whole(call: Call, text: str) -> str:
    if not call.style.full_text or not isinstance(call.content, Prompts):
        return text
    return f"{call.content.items[0]}{text}"


def _reason(finish: str | None, stop: int | str | None) -> str:
    if finish != "stop":
        return "length"
    return "eos_token" if stop is None else "stop_sequence"


# ------------------------------------------------------------------------------------------------------- headers


def _stream_headers() -> Headers:
    return (*EVENT_STREAM, (b"x-compute-type", COMPUTE_TYPE))


def answer_headers(call: Call, usage: Usage) -> Headers:
    """Where the time went: milliseconds, but seconds for ``x-compute-time``."""
    timing = usage.timing
    inference = timing.prefill + timing.decode
    prompt = call.content.items[0] if isinstance(call.content, Prompts) else ""
    values = {
        "x-compute-type": COMPUTE_TYPE.decode(),
        "x-compute-time": f"{timing.total:.6f}",
        "x-compute-characters": str(len(prompt)),
        "x-total-time": _ms(timing.total),
        "x-validation-time": _ms(timing.validation),
        "x-queue-time": _ms(timing.queue),
        "x-inference-time": _ms(inference),
        "x-time-per-token": _ms(inference / max(1, usage.completion_tokens)),
        "x-prompt-tokens": str(usage.prompt_tokens),
        "x-generated-tokens": str(usage.completion_tokens),
    }
    return tuple((name.encode(), value.encode()) for name, value in values.items())


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


# -------------------------------------------------------------------------------------------------------- errors


def _type(error: Exception) -> str:
    if isinstance(error, RequestError):
        return "validation" if error.status in (400, 413, 415) else "request"
    if isinstance(error, OverloadError):
        return "incomplete_generation" if error.status == 504 else "overloaded"
    return "generation"


def _status(error: Exception) -> int:
    """400 is 422, and a generation that failed is 424. A dead engine stays 503, so that load balancers notice."""
    if isinstance(error, RequestError) and error.status == 400:
        return 422
    failed = isinstance(error, EngineError) or not isinstance(error, HeadraceError)
    return 424 if failed and not isinstance(error, EngineDead) else status_of(error)


def _body(error: Exception) -> dict[str, str]:
    return {"error": message_of(error), "error_type": _type(error)}


def _event(error: Exception) -> bytes:
    return f"data:{to_json(_body(error))}\n\n".encode()


ERRORS = ErrorShape(_body, _event, _status)


def _no_model(body: object) -> None:
    """TGI serves one model and its bodies name none."""


GENERATE = Dialect("tgi-", parse_generate, TokenWriter, document, _no_model, ERRORS, _stream_headers(), answer_headers)
GENERATE_STREAM = Dialect(
    "tgi-", parse_stream, TokenWriter, document, _no_model, ERRORS, _stream_headers(), answer_headers
)
ROOT = Dialect("tgi-", parse_root, TokenWriter, root_document, _no_model, ERRORS, _stream_headers(), answer_headers)
