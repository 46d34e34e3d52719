"""A call after parsing: what was asked for, whatever the dialect that asked.

Everything in here has been checked against the limits; what needs the tokenizer (prompt lengths, bad words, the room
left for the answer) is finished by ``api`` on admission.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

from headrace.constraint import Constraint
from headrace.types import SamplingParams

Prompt = str | tuple[int, ...]
"""Text still to be tokenised, or token ids."""


class Prompts(Struct, frozen=True):
    """What ``/v1/completions`` continues: one engine request for each item."""

    items: tuple[Prompt, ...]
    add_special_tokens: bool = True
    echo: bool = False
    """The answer's text begins with the prompt's."""
    truncate: int | None = None
    """Of a longer prompt, use the last so many tokens: only ever by the caller's own wish (TGI's ``truncate``)."""
    keep_first: bool = False
    """With ``truncate``: use the first tokens instead (Ollama's)."""
    field: str = "prompt"
    """What the body calls them, for errors."""


class Tool(Struct, frozen=True):
    """A function that the model may call. ``parameters`` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    """Arguments that do not match ``parameters`` are impossible, not merely unlikely."""


class ToolChoice(Struct, frozen=True):
    """Whether the answer calls tools. ``names`` are those that may be called, empty for all: one named tool is
    "required" with its name alone."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()


class Conversation(Struct, frozen=True):
    """What a chat continues.

    Each message has ``role`` (system, user, assistant, tool) and a string ``content``. An assistant's may have
    ``tool_calls``, a list of ``{"id", "type": "function", "function": {"name", "arguments"}}`` with the arguments as
    an object, and ``reasoning_content``; a tool's has ``tool_call_id`` and may have ``name``.
    """

    messages: tuple[Mapping[str, Any], ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    """Whether one answer may have several calls."""
    thinking: bool | None = None
    """Whether the model reasons before it answers; None leaves it to the model's template."""
    before: tuple[int, ...] = ()
    """Tokens that come before it all, as they are (Ollama's ``context``)."""
    plain_without_template: bool = False
    """A model without a template gets the contents alone, instead of refusing."""
    effort: str = ""
    """How much of it ("low", "medium", "high"), for templates that know; empty leaves it to the template."""

    @property
    def characters(self) -> int:
        """About how long its text is, which is what rendering and tokenising it cost."""
        total = sum([len(each["content"]) + len(each.get("reasoning_content", "")) for each in self.messages])
        total += sum([len(str(each["tool_calls"])) for each in self.messages if "tool_calls" in each])
        return total + len(str(self.tools))


class AnswerStyle(Struct, frozen=True):
    """How the answer is to be written."""

    stream: bool = False
    include_usage: bool = False
    """Streams only: a last chunk with the usage."""
    continuous_usage: bool = False
    """Streams only: the usage so far in every chunk."""
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    """Logprobs name tokens ``token_id:7`` instead of by their text."""
    include_reasoning: bool = True
    """The answer shows what the model reasoned. Told apart from the content it is in any case."""
    details: bool = False
    """TGI's: every token, and how it ended."""
    full_text: bool = False
    """TGI's: the whole text begins with the prompt's. (``Prompts.echo`` also puts it into the stream.)"""


class Embedding(Struct, frozen=True):
    """The prompts' embeddings are wanted instead of answers: each is the model's hidden state after the prompt's last
    token, brought to length 1."""

    dimensions: int | None = None
    """So many of the first numbers, brought to length 1 again; None: all."""
    base64: bool = False
    """Written as little-endian float32 in base64 instead of as a list of numbers."""
    queries: int = 0
    """For scores: so many of the prompts, the first, are compared with the others."""
    top: int | None = None
    """For ranks: so many of the best."""
    documents: bool = True
    """For ranks: the documents' texts are repeated."""


class Call(Struct, frozen=True):
    """One HTTP call.

    ``sampling.max_tokens`` is an upper bound until admission: with ``max_tokens`` None the answer may fill what the
    prompt leaves of the context, with 0 (only together with ``echo``) the prompt alone is answered.
    """

    content: Prompts | Conversation
    sampling: SamplingParams
    max_tokens: int | None
    style: AnswerStyle
    model: str | None = None
    n: int = 1
    bad_words: tuple[str, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None
    """Seconds that the caller gives the whole call; the server's own limit holds as well."""
    open_ended: bool = False
    """``max_tokens`` may be more than the context has room for: the answer then ends where the context does."""
    context: int | None = None
    """The most tokens of prompt and answer together, where the caller wants fewer than the model has."""
    repeated: Mapping[str, Any] = field(default_factory=dict)
    """What the dialect's answer repeats of the body."""
    constraint: Constraint | None = None
    """What the answer's text is held to."""
    watermark: bool = False
    """Mark the answer with the server's key."""
    embedding: Embedding | None = None
    """Set where embeddings are wanted; ``max_tokens`` is 0 then."""
