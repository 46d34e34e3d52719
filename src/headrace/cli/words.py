"""One model's tokenizer and chat template as the HTTP side wants them (`headrace.api.ports.Words`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headrace.constraint import Constraint, Grammar
from headrace.errors import InvalidRequest
from headrace.grammar.compiler import Compiler
from headrace.grammar.vocabulary import Vocabulary
from headrace.text.output import OutputText
from headrace.text.template import load_template
from headrace.text.tokenizer import Tokenizer, load_tokenizer
from headrace.types import SamplingParams
from headrace.weights import TextSource
from headrace.wire.calls import Conversation, Prompts

if TYPE_CHECKING:
    from headrace.cli.chats import Chats

COMPILE_SECONDS = 10.0
"""The longest that a request waits for its grammar. The compiler's own limits keep it under one or two."""


class ModelWords:
    """Words ↔ ids of one checkpoint. May be called on any thread."""

    def __init__(self, source: TextSource, vocab_size: int) -> None:
        """Build tokenizer and template for a model with ``vocab_size`` logits.

        Raises:
            ModelFileError, UnsupportedModel: the checkpoint's description of them is broken, or of an unknown kind.
        """
        self._tokenizer: Tokenizer = load_tokenizer(source)
        tokenizer, eos = self._tokenizer, source.eos_token_ids
        self._template = load_template(source)
        self.eos_token_ids = eos
        # Not of self: whatever is in a circle is not freed when its model leaves.
        self._compiler = Compiler(lambda: Vocabulary(tokenizer, vocab_size, eos))

    @cached_property
    def _chats(self) -> Chats | None:
        """None without a template. Completions do without it, and without the formats of calls that it imports."""
        if self._template is None:
            return None
        from headrace.cli.chats import Chats

        return Chats(self._tokenizer, self._template)

    @property
    def can_chat(self) -> bool:
        """Whether the model comes with a chat template."""
        return self._template is not None

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text."""
        return self._tokenizer.special_ids

    @property
    def longest_token(self) -> int:
        """Characters of the longest token, or more."""
        return self._tokenizer.longest_token

    @property
    def chat_format(self) -> Mapping[str, Any] | None:
        """How the model writes calls, whether its template describes tools to it, and whether it reasons."""
        if self._chats is None:
            return None
        form = self._chats.form
        return {
            "tool_calls": form.family.name,
            "tools": "template" if form.native else "system_prompt",
            "reasoning": form.reasoning is not None,
        }

    def prepare(self) -> None:
        """Compile the chat template and find out its format now, so that the first request need not wait for it."""
        if self._template is not None and self._chats is not None:
            self._template.prepare()
            _ = self._chats.form

    def encode(self, text: str, add_special: bool) -> Sequence[int]:
        """Text → token ids."""
        return self._tokenizer.encode(text, add_special=add_special)

    def encode_spans(self, text: str) -> Sequence[tuple[int, int, int]]:
        """Text → (token id, first character, character after the last); added special tokens come from none."""
        whole = self._tokenizer.encode(text)
        ids, offsets = self._tokenizer.encode_with_offsets(text)
        size = len(ids)
        lead = next((k for k in range(len(whole) - size + 1) if whole[k : k + size] == ids), 0)
        spans = [(0, 0)] * lead + offsets + [(len(text), len(text))] * (len(whole) - lead - size)
        return [(token, *span) for token, span in zip(whole, spans, strict=True)]

    def encode_chat(self, conversation: Conversation) -> Sequence[int]:
        """Messages → token ids.

        Raises:
            InvalidRequest: the model has no chat template, or its template refuses these messages.
        """
        if self._chats is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions", "messages")
        return self._chats.encode(conversation)

    def constraint_of(
        self, content: Prompts | Conversation, asked: Constraint | None, prompt: Sequence[int]
    ) -> Constraint | None:
        """What the answer is held to: ``asked`` for, or made by the tools of a chat.

        Raises:
            Unsupported: they cannot be had together, or not with this model.
        """
        if not isinstance(content, Conversation) or self._chats is None:
            return asked
        return self._chats.constrain(content, asked, prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids → text, special tokens included."""
        return self._tokenizer.decode(tokens, skip_special=False)

    def token_bytes(self, token: int) -> bytes:
        """One token's bytes; alone they need not be valid UTF-8."""
        return self._tokenizer.token_bytes(token)

    def open_output(
        self, sampling: SamplingParams, prompt: Sequence[int], content: Prompts | Conversation | None = None
    ) -> OutputText:
        """The text of a new sequence that continues ``prompt``, which was made of ``content``."""
        if isinstance(content, Conversation) and self._chats is not None:
            return self._chats.open_output(sampling, prompt, content)
        return OutputText(self._tokenizer, sampling, prompt=prompt)

    async def constrain(self, constraint: Constraint) -> Grammar:
        """The compiled grammar of a constraint. The event loop goes on meanwhile.

        Raises:
            InvalidRequest: it has a fault, or something that is not supported, or takes too long to compile.
            QueueFull: too many wait to be compiled.
        """
        future = self._compiler.compile(constraint)
        try:
            if future.done():
                return future.result()
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), COMPILE_SECONDS)
        except TimeoutError:
            message = f"it does not compile within {COMPILE_SECONDS:.0f} s; simplify it"
        except InvalidRequest as error:  # raised anew: the same one may be kept for many requests
            message = str(error)
        raise InvalidRequest(f"{constraint.field}: {message}", constraint.field)
