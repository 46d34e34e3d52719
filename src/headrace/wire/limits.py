"""Every limit on a request, once. Guards live here, below the dialects, so that no dialect can lack one."""

from __future__ import annotations

from msgspec import Struct

MAX_NAME_CHARS = 512
"""Of what is looked at before the model is known."""
MAX_TIMEOUT = 86_400.0
"""Seconds; looked at before the model is known."""


class Limits(Struct, frozen=True):
    """The first two are the model's; the others are the server's, with the reason for the number beside it."""

    max_model_len: int
    """Tokens of prompt and answer together."""
    vocab_size: int
    """Width of the logits: token ids are checked against this, not against the tokenizer's length."""

    max_n: int = 128
    """OpenAI's own limit."""
    max_prompts: int = 1024
    """Evaluation harnesses send hundreds in one call."""
    max_sequences: int = 1024
    """Prompts times n: what one call may put into the queue."""
    max_work_tokens: int = 1 << 22
    """Sequences times max_tokens: what one call may make the engine compute."""
    max_logprobs: int = 20
    """OpenAI's and vLLM's limit."""
    max_stop: int = 64
    """OpenAI takes 4, vLLM any number; every one is looked for in every token."""
    max_stop_chars: int = 1024
    max_logit_bias: int = 1024
    max_token_ids: int = 4096
    """Entries of stop_token_ids and of allowed_token_ids."""
    max_bad_words: int = 256
    max_constraint_chars: int = 1 << 19
    """Of a schema, regex, grammar or list of choices: what compiles in about a second."""
    max_choices: int = 10_000
    """Alternatives of structured_outputs.choice."""
    max_messages: int = 4096
    max_tools: int = 128
    """OpenAI's limit, of tools and of calls in one message."""
    max_template_kwargs: int = 16
    max_name_chars: int = MAX_NAME_CHARS
    """Model names, user names and the like."""
    max_timeout: float = MAX_TIMEOUT
