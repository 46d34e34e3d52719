"""OpenAI's two text bodies, with vLLM's extra fields → `Call`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headrace.errors import InvalidRequest, Unsupported
from headrace.types import SamplingParams
from headrace.wire import constraints, sampling
from headrace.wire.calls import AnswerStyle, Call, Conversation, Prompts
from headrace.wire.fields import Fields, check_text, shown
from headrace.wire.limits import Limits
from headrace.wire.messages import parse_messages
from headrace.wire.prompts import parse_prompts
from headrace.wire.refusals import refuse_unhonoured
from headrace.wire.tools import parse_tool_choice, parse_tools

COMPLETION_DEFAULT_MAX_TOKENS = 16
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_SALT = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
INT32 = sampling.INT32

_COMMON = sampling.FIELDS | constraints.FIELDS | {
    "model", "n", "best_of", "stream", "stream_options", "logprobs", "priority", "cache_salt", "echo",
    "add_special_tokens", "return_token_ids", "return_tokens_as_token_ids", "timeout",
}  # fmt: skip
COMPLETION_FIELDS = _COMMON | {"prompt"}
_TOOLS_AND_REASONING = frozenset({"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"})
CHAT_FIELDS = _COMMON | {
    "messages", "max_completion_tokens", "top_logprobs", "add_generation_prompt", "continue_final_message",
    "chat_template_kwargs", "include_reasoning", *_TOOLS_AND_REASONING,
}  # fmt: skip


def parse_completion(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /v1/completions``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    refuse_unhonoured(body, COMPLETION_FIELDS)
    fields = Fields(body)
    echo = fields.boolean("echo")
    max_tokens = fields.integer("max_tokens", 0 if echo else 1, limits.max_model_len)
    if max_tokens is None:
        max_tokens = COMPLETION_DEFAULT_MAX_TOKENS
    logprobs = fields.integer("logprobs", 0, limits.max_logprobs)
    params = sampling.parse_sampling(fields, limits, max_tokens, logprobs, defaults)
    prompts = Prompts(parse_prompts(fields, "prompt", limits), fields.boolean("add_special_tokens", True), echo)
    return _call(fields, limits, prompts, params, max_tokens)


def parse_chat(body: Mapping[str, Any], limits: Limits, defaults: Mapping[str, float]) -> Call:
    """The body of ``POST /v1/chat/completions``.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    refuse_unhonoured(body, CHAT_FIELDS)
    fields = Fields(body)
    max_tokens = fields.integer("max_completion_tokens", 1, limits.max_model_len)
    older = fields.integer("max_tokens", 1, limits.max_model_len)
    if max_tokens is None:
        max_tokens = older
    if fields.boolean("echo"):
        raise fields.wrong("echo", "is for /v1/completions; a chat's prompt is its messages")
    if fields.boolean("add_special_tokens"):
        raise Unsupported("add_special_tokens is not supported: the chat template writes them", "add_special_tokens")
    params = sampling.parse_sampling(fields, limits, max_tokens, _chat_logprobs(fields, limits), defaults)
    messages = parse_messages(fields.raw("messages"), limits)
    continues = fields.boolean("continue_final_message")
    generates = fields.boolean("add_generation_prompt", not continues)
    if continues and generates:
        raise fields.wrong("continue_final_message", "and add_generation_prompt exclude each other")
    conversation = Conversation(
        messages=messages,
        add_generation_prompt=generates,
        continue_final_message=continues,
        template_kwargs=_template_kwargs(fields, limits),
        **({} if _TOOLS_AND_REASONING.isdisjoint(body) else _tools_and_reasoning(fields, limits, continues)),
    )
    return _call(fields, limits, conversation, params, max_tokens)


def _call(
    fields: Fields, limits: Limits, content: Prompts | Conversation, params: SamplingParams, max_tokens: int | None
) -> Call:
    """The fields that both bodies share, and the one limit that spans several of them."""
    n = fields.integer("n", 1, limits.max_n) or 1
    best_of = fields.integer("best_of", 1, limits.max_n)
    if best_of is not None and best_of != n:
        raise fields.wrong("best_of", f"must equal n ({n}) or be left out: choosing among hidden answers is not done")
    sequences = n * (len(content.items) if isinstance(content, Prompts) else 1)
    if sequences > limits.max_sequences:
        raise fields.wrong("n", f"times the prompts makes {sequences} sequences; the limit is {limits.max_sequences}")
    if max_tokens is not None and sequences * max_tokens > limits.max_work_tokens:
        raise fields.wrong(
            "max_tokens", f"times {sequences} sequences is more than {limits.max_work_tokens} tokens for one call"
        )
    return Call(
        content=content,
        sampling=params,
        max_tokens=max_tokens,
        style=_style(fields),
        model=fields.text("model", limits.max_name_chars),
        n=n,
        bad_words=fields.texts("bad_words", limits.max_bad_words, limits.max_stop_chars),
        priority=fields.integer("priority", -INT32, INT32) or 0,
        cache_salt=cache_salt(fields),
        timeout=fields.number("timeout", 0, limits.max_timeout, above=True),
        constraint=constraints.parse_constraint(fields, limits),
    )


def _style(fields: Fields) -> AnswerStyle:
    stream = fields.boolean("stream")
    options = fields.mapping("stream_options", 16)
    if options and not stream:
        raise fields.wrong("stream_options", "needs stream to be true")
    for name in options:
        if name not in ("include_usage", "continuous_usage_stats", "include_obfuscation"):
            raise fields.wrong("stream_options", "knows include_usage and continuous_usage_stats only")
    inner = Fields(options, "stream_options.")
    if inner.boolean("include_obfuscation"):
        raise fields.wrong("stream_options", "cannot have include_obfuscation: it is not supported")
    include, continuous = inner.boolean("include_usage"), inner.boolean("continuous_usage_stats")
    return AnswerStyle(
        stream=stream,
        include_usage=include,
        continuous_usage=include and continuous,
        return_token_ids=fields.boolean("return_token_ids"),
        tokens_as_ids=fields.boolean("return_tokens_as_token_ids"),
        include_reasoning=fields.boolean("include_reasoning", True),
    )


def _tools_and_reasoning(fields: Fields, limits: Limits, continues: bool) -> dict[str, Any]:
    """Fields of `Conversation` that few calls have."""
    tools = parse_tools(fields.raw("tools"), limits)
    if tools and continues:
        raise fields.wrong("continue_final_message", "cannot be combined with tools: a call has no middle")
    effort = parse_effort(fields.raw("reasoning_effort"))
    return {
        "tools": tools,
        "tool_choice": parse_tool_choice(fields.raw("tool_choice"), tools),
        "parallel_tool_calls": fields.boolean("parallel_tool_calls", True),
        "thinking": None if effort is None else effort != "none",
        "effort": "" if effort in (None, "none") else effort,
    }


def parse_effort(value: object, name: str = "reasoning_effort") -> str | None:
    """How much the model is to reason, "none" for not at all; None if it is not said.

    Raises:
        InvalidRequest: no such word.
    """
    if value is None or (isinstance(value, str) and value in EFFORTS):
        return value
    raise InvalidRequest(f"{name} must be one of {', '.join(EFFORTS)}, not {shown(value)}", name)


def _chat_logprobs(fields: Fields, limits: Limits) -> int | None:
    """How many alternatives to report; None when ``logprobs`` is off."""
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, limits.max_logprobs)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "needs logprobs to be true")
    return (top or 0) if wanted else None


def cache_salt(fields: Fields) -> str:
    """The tenant whose cached prefixes a call shares."""
    salt = fields.raw("cache_salt")
    if salt is None:
        return ""
    if not isinstance(salt, str) or not _SALT.fullmatch(salt):
        raise fields.wrong("cache_salt", "must be 1 to 128 characters out of A-Z a-z 0-9 . _ -")
    return salt


def _template_kwargs(fields: Fields, limits: Limits) -> Mapping[str, Any]:
    """Scalars by name. Which names the template may see is decided in ``text``."""
    kwargs = fields.mapping("chat_template_kwargs", limits.max_template_kwargs)
    for name, value in kwargs.items():
        if not isinstance(value, str | int | float | bool | None):
            raise InvalidRequest(
                f"chat_template_kwargs.{name[:64]} must be a string, a number or a boolean, not {shown(value)}",
                "chat_template_kwargs",
            )
        if isinstance(value, str):
            check_text(value, "chat_template_kwargs", limits.max_name_chars)
    return kwargs
