"""The text room behind the `Words` that the HTTP side asks for."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import InvalidRequest
from headrace.text.chat import encode_chat
from headrace.text.output import OutputText
from headrace.text.template import ChatTemplate
from headrace.text.tokenizer import Tokenizer
from headrace.types import SamplingParams
from headrace.wire.calls import Conversation


class ModelWords:
    """One model's tokenizer, and its chat template if it has one."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens with which the model ends by itself."""
        return self._tokenizer.eos_token_ids

    def encode(self, text: str, add_special: bool) -> Sequence[int]:
        """Text → token ids; special tokens written in it are recognised, as OpenAI's completions do."""
        return self._tokenizer.encode(text, add_special=add_special)

    def encode_chat(self, conversation: Conversation) -> Sequence[int]:
        """Messages → token ids; special tokens in what people write are ordinary text.

        Raises:
            InvalidRequest: the model has no template, or its template refuses these messages.
        """
        if self._template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions", "messages")
        return encode_chat(
            self._tokenizer,
            self._template,
            conversation.messages,
            variables=conversation.template_kwargs,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids → text, special tokens included."""
        return self._tokenizer.decode(tokens, skip_special=False)

    def token_bytes(self, token: int) -> bytes:
        """One token's bytes; alone they need not be valid UTF-8."""
        return self._tokenizer.token_bytes(token)

    def open_output(self, sampling: SamplingParams, prompt: Sequence[int]) -> OutputText:
        """The text of a new sequence that continues ``prompt``."""
        return OutputText(self._tokenizer, sampling, prompt=prompt)
