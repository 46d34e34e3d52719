"""A parsed call → engine requests: tokenised, measured against the context, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from headrace.api.callers import Caller
from headrace.api.ports import Words
from headrace.api.settings import Served
from headrace.errors import InvalidRequest
from headrace.types import Request
from headrace.wire.calls import Call, Conversation, Prompts

LONG_TEXT = 2048
"""Characters from which tokenising leaves the event loop for a thread: about a millisecond's work."""


class Admitted(Struct, frozen=True):
    """One engine request; the prompt's text if the answer repeats it; the field that holds the answer to something."""

    request: Request
    echo: str | None
    held_by: str | None


async def admit(
    call: Call, served: Served, call_id: str, caller: Caller, arrival: float, request_timeout: float | None
) -> list[Admitted]:
    """The engine requests of a call, one for each prompt.

    ``arrival`` is in seconds of ``time.monotonic()``.

    Raises:
        InvalidRequest: a prompt is empty or does not fit; the template refuses the messages; what the answer is to be
            held to does not compile.
        QueueFull: too many wait to have theirs compiled.
    """
    _refuse_hopeless(call.content, served)
    prompts = await encode(call.content, served.words)
    banned = await _banned(call.bad_words, served.words)
    constraint = served.words.constraint_of(call.content, call.constraint, prompts[0])
    grammar = None if constraint is None else await served.words.constrain(constraint)
    timeouts = [limit for limit in (call.timeout, request_timeout) if limit is not None]
    deadline = arrival + min(timeouts) if timeouts else None
    admitted = []
    for index, prompt in enumerate(prompts):
        context = min(call.context or served.limits.max_model_len, served.limits.max_model_len)
        max_tokens, prompt_logprobs = _fit(call, len(prompt), context)
        sampling = replace(
            call.sampling,
            max_tokens=max_tokens,
            prompt_logprobs=prompt_logprobs,
            eos_token_ids=served.words.eos_token_ids,
            bad_words=banned,
            grammar=grammar,
            watermark=served.watermark if call.watermark else None,
        )
        request = Request(
            id=f"{call_id}-{index}",
            prompt=prompt,
            sampling=sampling,
            arrival=arrival,
            n=call.n,
            priority=call.priority,
            client=caller.client,
            cache_salt=f"{caller.tenant}/{call.cache_salt}",
            deadline=deadline,
            embed=call.embedding is not None,
        )
        echo = _echo(call.content, index, prompt, served.words)
        admitted.append(Admitted(request, echo, None if constraint is None else constraint.field))
    return admitted


def _refuse_hopeless(content: Prompts | Conversation, served: Served) -> None:
    """A text that cannot fit whatever its tokens are is not worth tokenising."""
    if isinstance(content, Conversation):
        field, longest = "messages", sum(len(message["content"]) for message in content.messages)
    else:
        if content.truncate is not None:
            return
        field, longest = content.field, max((len(item) for item in content.items if isinstance(item, str)), default=0)
    context = served.limits.max_model_len
    if longest > context and longest > context * served.words.longest_token:
        raise InvalidRequest(
            f"the {field} has {longest} characters, more than any {context} tokens have, which the context holds; "
            "shorten it",
            field,
        )


async def encode(content: Prompts | Conversation, words: Words) -> list[tuple[int, ...]]:
    """The prompts' token ids.

    Raises:
        InvalidRequest: the model's template refuses the messages.
    """
    if isinstance(content, Conversation):
        if content.characters >= LONG_TEXT:
            return [await asyncio.to_thread(_encode_chat, content, words)]
        return [_encode_chat(content, words)]
    length = sum(len(item) for item in content.items if isinstance(item, str))
    if length >= LONG_TEXT:
        return await asyncio.to_thread(_encode_items, content, words)
    return _encode_items(content, words)


def _encode_chat(content: Conversation, words: Words) -> tuple[int, ...]:
    if content.plain_without_template and not words.can_chat:
        text = "\n\n".join(message["content"] for message in content.messages)
        return (*content.before, *words.encode(text, not content.before))
    return (*content.before, *words.encode_chat(content))


def _encode_items(content: Prompts, words: Words) -> list[tuple[int, ...]]:
    add_special, keep = content.add_special_tokens, content.truncate
    prompts = [tuple(words.encode(item, add_special)) if isinstance(item, str) else item for item in content.items]
    if keep is None:
        return prompts
    return [prompt[:keep] if content.keep_first else prompt[-keep:] for prompt in prompts]


def _fit(call: Call, prompt_tokens: int, context: int) -> tuple[int, int | None]:
    """``max_tokens`` and ``prompt_logprobs``, settled. Nothing is ever cut to fit."""
    field = "messages" if isinstance(call.content, Conversation) else call.content.field
    if prompt_tokens == 0:
        raise InvalidRequest(f"the {field} has no tokens; send some text", field)
    room = context - prompt_tokens
    if call.embedding is not None:
        if room < 0:
            raise InvalidRequest(f"the {field} has {prompt_tokens} tokens, but the context holds {context}", field)
        return call.sampling.max_tokens, call.sampling.prompt_logprobs
    if room < 1:
        raise InvalidRequest(
            f"the {field} has {prompt_tokens} tokens, but the context holds {context}, answer included; shorten it",
            field,
        )
    asked = room if call.max_tokens is None else max(call.max_tokens, 1)
    if call.open_ended:
        asked = min(asked, room)
    if asked > room:
        raise InvalidRequest(
            f"the {field} has {prompt_tokens} tokens and max_tokens asks for {asked} more, but the context holds "
            f"{context}; lower max_tokens to {room} or shorten the {field}",
            "max_tokens",
        )
    sampling = call.sampling
    if sampling.min_tokens > asked:
        raise InvalidRequest(f"min_tokens is {sampling.min_tokens}, but there is room for {asked}", "min_tokens")
    prompt_logprobs = sampling.prompt_logprobs
    if isinstance(call.content, Prompts) and call.content.echo and sampling.logprobs is not None:
        prompt_logprobs = max(sampling.logprobs, prompt_logprobs or 0)
    return asked, prompt_logprobs


def _echo(content: Prompts | Conversation, index: int, prompt: tuple[int, ...], words: Words) -> str | None:
    if isinstance(content, Conversation) or not content.echo:
        return None
    item = content.items[index]
    return item if isinstance(item, str) else words.decode(prompt)


async def _banned(bad: Sequence[str], words: Words) -> tuple[tuple[int, ...], ...]:
    if sum(map(len, bad)) >= LONG_TEXT:
        return await asyncio.to_thread(_bad_words, bad, words)
    return _bad_words(bad, words)


def _bad_words(bad: Sequence[str], words: Words) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens as it stands, and after a space where that is another single run of the same length."""
    banned: list[tuple[int, ...]] = []
    for word in bad:
        plain = tuple(words.encode(word.lstrip(), False))
        spaced = tuple(words.encode(" " + word.lstrip(), False))
        if not plain:
            raise InvalidRequest("bad_words has an entry without tokens", "bad_words")
        banned.append(plain)
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            banned.append(spaced)
    return tuple(banned)
