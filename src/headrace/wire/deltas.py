"""What an answer is made of, before any dialect: deltas of choices, and the usage."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

LOGPROB_FLOOR = -9999.0
"""JSON has no -Infinity; vLLM writes this number for it."""


class Alternative(Struct, frozen=True):
    """A token that could have been chosen."""

    token: int
    text: str
    data: bytes
    logprob: float
    rank: int
    special: bool = False


class ShownToken(Struct, frozen=True):
    """A token with its logprob, ready to be written.

    ``text`` is how the token is named, ``data`` its bytes (alone they need not be valid UTF-8), ``offset`` where its
    text begins in the choice's text, in characters. ``logprob`` is None for the first token of an echoed prompt,
    which nothing precedes. ``top`` has the most likely tokens, best first.
    """

    token: int
    text: str
    data: bytes
    offset: int
    logprob: float | None
    rank: int = 0
    top: tuple[Alternative, ...] = ()
    special: bool = False
    """It is no text: an end, a turn's mark."""


class PromptPart(Struct, frozen=True):
    """What the first delta of a choice may say of its prompt, if it was asked for."""

    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[ShownToken, ...] | None = None


class ToolCallDelta(Struct, frozen=True):
    """More of a choice's tool call number ``index``, from 0. ``id`` and ``name`` come whole and in the call's first
    delta only; the ``arguments`` of all its deltas join to the text of a JSON object."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(Struct, frozen=True):
    """What a step added to one choice. ``finish`` is set in the choice's last delta and in no other.

    ``finish`` is "tool_calls" where the model ended its turn with at least one call; an answer that was cut off is
    "length" even in the middle of a call. ``stop_reason`` is the stop string or the stop token that ended it; None for
    the model's own end. Within a delta ``reasoning`` comes before ``text``, and ``text`` before ``tool_calls``; where
    the model wrote in another order, an event makes several deltas.
    """

    index: int
    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[ShownToken] = ()
    finish: str | None = None
    stop_reason: int | str | None = None
    prompt: PromptPart | None = None
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    embedding: Sequence[float] = ()


class Timing(Struct, frozen=True):
    """Where a whole call's time went, in seconds: until it was checked and tokenised, until the engine began, until the
    first token, until the end. ``load`` is what of ``validation`` was waiting for the model to be loaded."""

    validation: float = 0.0
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    load: float = 0.0

    @property
    def total(self) -> float:
        """From the call's arrival to its last token."""
        return self.validation + self.queue + self.prefill + self.decode


class Usage(Struct, frozen=True):
    """Tokens of a whole call: every prompt once, the answers of all its choices. ``timing`` is known at the end."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    """Those of ``completion_tokens`` with which the model reasoned."""
    timing: Timing = Timing()


class Head(Struct, frozen=True):
    """What is the same in every chunk of an answer."""

    id: str
    created: int
    model: str
    fingerprint: str
