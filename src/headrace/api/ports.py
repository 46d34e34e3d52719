"""What the HTTP side asks of the engine and of the text room: two small protocols, so that either can be a fake."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from headrace.constraint import Constraint, Grammar
from headrace.stats import EngineStats, Health
from headrace.text.output import OutputDelta
from headrace.types import FinishReason, Request, SamplingParams, TokenEvent
from headrace.wire.calls import Conversation, Prompts

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
"""ASGI 3's shapes: an application, a route's handler and every middleware are such a function."""


class EnginePort(Protocol):
    """The engine as HTTP knows it. Every method may be called from any thread and returns at once."""

    def start(self, listener: Callable[[Sequence[TokenEvent]], None]) -> None:
        """Start the step loop; ``listener`` gets all events of a step in one call, on the engine's thread."""
        ...

    def submit(self, request: Request) -> None:
        """Put a request into the queue.

        Raises:
            QueueFull, Draining, EngineDead, InvalidRequest.
        """
        ...

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        """End one sequence of a request, or all of them. Unknown ids are ignored: it may just have ended."""
        ...

    def health(self) -> Health:
        """Whether the loop turns and whether requests are taken."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot for gauges and counters."""
        ...


class OutputPort(Protocol):
    """The text of one sequence, as it grows (`headrace.text.output.OutputText`)."""

    def push(self, event: TokenEvent) -> OutputDelta:
        """What the event adds to the text: whole characters, no beginning of a stop string."""
        ...


class Words(Protocol):
    """One model's words. Encoding may be called on any thread."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens with which the model ends by itself."""
        ...

    @property
    def can_chat(self) -> bool:
        """Whether the model comes with a chat template."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text."""
        ...

    @property
    def longest_token(self) -> int:
        """Characters of the longest token, or more."""
        ...

    @property
    def chat_format(self) -> Mapping[str, Any] | None:
        """What people may know of how the model takes tools and reasons; None if it has no template."""
        ...

    def encode(self, text: str, add_special: bool) -> Sequence[int]:
        """Text → token ids."""
        ...

    def encode_spans(self, text: str) -> Sequence[tuple[int, int, int]]:
        """Text → (token id, first character, character after the last); added special tokens come from none."""
        ...

    def encode_chat(self, conversation: Conversation) -> Sequence[int]:
        """Messages → token ids, through the model's template.

        Raises:
            InvalidRequest: the template refuses these messages.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids → text, special tokens included."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """One token's bytes; alone they need not be valid UTF-8."""
        ...

    async def constrain(self, constraint: Constraint) -> Grammar:
        """The compiled grammar of a constraint.

        Raises:
            InvalidRequest: it has a fault, or something that is not supported.
            QueueFull: too many wait to be compiled.
        """
        ...

    def constraint_of(
        self, content: Prompts | Conversation, asked: Constraint | None, prompt: Sequence[int]
    ) -> Constraint | None:
        """What the answer is held to: ``asked`` for, or made by the tools of a chat.

        Raises:
            Unsupported: they cannot be had together, or not with this model.
        """
        ...

    def open_output(
        self, sampling: SamplingParams, prompt: Sequence[int], content: Prompts | Conversation | None = None
    ) -> OutputPort:
        """The text of a new sequence that continues ``prompt``, which was made of ``content``."""
        ...
