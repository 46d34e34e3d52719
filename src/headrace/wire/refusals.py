"""Fields that are known and not honoured, as data.

A field that we do not honour is refused by name, never ignored, unless its value asks for nothing (``neutral``).
A field that cannot change an answer (``HINTS``) is checked for its type and otherwise left alone. A name in none of
the tables is unknown: a typing error, or something of another server's, and refused as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from headrace.errors import InvalidRequest, Unsupported

_TOOLS = "tools are for /v1/chat/completions"
_FUNCTIONS = "use tools and tool_choice, which took its place"
_REASONING = "reasoning is told apart in /v1/chat/completions"


class Refusal(Struct, frozen=True):
    """Values that ask for nothing, and what to tell whoever asks for more."""

    neutral: tuple[Any, ...]
    reason: str


NOT_HONOURED: Mapping[str, Refusal] = {
    # OpenAI
    "tools": Refusal(([],), _TOOLS),
    "tool_choice": Refusal(("none", "auto"), _TOOLS),
    "functions": Refusal(([],), _FUNCTIONS),
    "function_call": Refusal(("none", "auto"), _FUNCTIONS),
    "suffix": Refusal(("",), "filling in the middle is not supported"),
    "store": Refusal((False,), "answers are not stored"),
    "service_tier": Refusal(("auto", "default"), "there is one tier; use priority"),
    "modalities": Refusal((["text"],), "only text is supported"),
    "audio": Refusal((), "only text is supported"),
    "prediction": Refusal((), "predicted outputs are not supported"),
    "reasoning_effort": Refusal(("none",), _REASONING),
    "verbosity": Refusal(("medium",), "the model has no such control"),
    "web_search_options": Refusal((), "there is no web search"),
    # vLLM
    "use_beam_search": Refusal((False,), "beam search is not supported"),
    "length_penalty": Refusal((1, 1.0), "it belongs to beam search, which is not supported"),
    "spaces_between_special_tokens": Refusal((True,), "special tokens are always written with their own spaces"),
    "truncate_prompt_tokens": Refusal((), "prompts are never cut; shorten it before sending"),
    "truncation_side": Refusal((), "prompts are never cut; shorten it before sending"),
    "logprob_token_ids": Refusal(([],), "use logprobs or top_logprobs"),
    "prompt_embeds": Refusal((), "prompts are text or token ids"),
    "documents": Refusal(([],), "put documents into the messages"),
    "chat_template": Refusal((), "templates come with the model, never with a request"),
    "mm_processor_kwargs": Refusal(({},), "only text is supported"),
    "request_id": Refusal((), "send the header X-Request-Id instead"),
    "kv_transfer_params": Refusal((), "it is not for clients"),
    "vllm_xargs": Refusal(({},), "there are no extension arguments"),
    "repetition_detection": Refusal((), "it is not supported; use repetition_penalty"),
    "stream_interval": Refusal((1,), "every token is sent when it is made"),
    "thinking_token_budget": Refusal((), "how long the model reasons is up to it; use max_tokens"),
    "watermarking": Refusal((), "TGI's routes can mark an answer: parameters.watermark of /generate"),
}

HINTS: Mapping[str, type] = {
    "user": str,
    "metadata": dict,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "session_id": str,
    "parallel_tool_calls": bool,
    "include_reasoning": bool,
}
"""They name the caller or tune what is off anyway: honouring them or not, the answer is the same."""


def _asks_for_nothing(value: object, neutral: tuple[Any, ...]) -> bool:
    return any(type(value) is type(candidate) and value == candidate for candidate in neutral)


def refuse_unhonoured(
    body: Mapping[str, Any], honoured: Collection[str], more: Mapping[str, Refusal] = MappingProxyType({})
) -> None:
    """Check that every field of ``body`` is honoured, neutral or a hint. ``more`` are refusals of one route alone.

    Raises:
        Unsupported: a known field asks for something that is not done.
        InvalidRequest: a field's name is unknown, or a hint has the wrong type.
    """
    for name, value in body.items():
        if name in honoured or value is None:
            continue
        if name in NOT_HONOURED or name in more:
            refusal = more.get(name) or NOT_HONOURED[name]
            if not _asks_for_nothing(value, refusal.neutral):
                raise Unsupported(f"{name} is not supported with this value: {refusal.reason}", name)
        elif name in HINTS:
            if type(value) is not HINTS[name]:
                raise InvalidRequest(f"{name} has the wrong type", name)
        else:
            raise _unknown(name, honoured)


def _unknown(name: str, honoured: Collection[str]) -> InvalidRequest:
    from difflib import get_close_matches  # only a mistake pays for it

    known = sorted({*honoured, *NOT_HONOURED, *HINTS})
    close = get_close_matches(name[:64], known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    label = ascii(name if len(name) <= 64 else name[:64] + "…")
    return InvalidRequest(f"unknown field {label}{hint}", name[:64].encode("utf-8", "replace").decode())
