"""A model's vocabulary as llguidance needs it: every token's bytes, which are special, and how text becomes tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class TokenSource(Protocol):
    """The part of a tokenizer that is needed here (`headrace.text.tokenizer.Tokenizer` has it)."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens, which no text makes."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the id stands for."""
        ...

    def encode_literal(self, text: str, *, first: bool) -> list[int]:
        """Ids of text in which special tokens are ordinary characters."""
        ...


class Vocabulary:
    """Built at the first constrained request: a quarter of a second for 50,000 tokens, a few megabytes."""

    def __init__(self, source: TokenSource, size: int, eos: Iterable[int]) -> None:
        """``size`` is the width of the logits, which may be more than the tokenizer knows."""
        from llguidance import LLTokenizer, TokenizerWrapper

        self.size = size
        tokens = [source.token_bytes(token) for token in range(size)]
        special = sorted(token for token in source.special_ids if token < size)
        self.special: Mapping[str, int] = {
            name: token for token in special if (name := tokens[token].decode("utf-8", "replace"))
        }
        ends = sorted(token for token in eos if token < size)
        self.tokenizer: LLTokenizer = LLTokenizer(
            TokenizerWrapper(_Wrapped(source, tokens, special, ends[0] if ends else None)),
            n_vocab=size,
            eos_token=ends or None,
        )


class _Wrapped:
    """What `llguidance.TokenizerWrapper` asks of a tokenizer."""

    def __init__(self, source: TokenSource, tokens: Sequence[bytes], special: list[int], eos: int | None) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = eos
        self.bos_token_id = None
        self._source = source
        self._ids = {
            data: token for token, data in reversed(list(enumerate(tokens))) if data and token not in set(special)
        }
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens that the model itself would write this text in, if they are exactly its bytes."""
        data = text.encode() if isinstance(text, str) else text
        try:
            ids = self._source.encode_literal(data.decode(), first=False)
        except ValueError:
            ids = []
        if b"".join(self.tokens[token] for token in ids) == data:
            return ids
        return self._longest_match(data)

    def _longest_match(self, data: bytes) -> list[int]:
        """For tokenizers that change text on its way: the longest token that fits, again and again."""
        ids, at = [], 0
        while at < len(data):
            for end in range(min(len(data), at + self._longest), at, -1):
                token = self._ids.get(data[at:end])
                if token is not None:
                    ids.append(token)
                    break
            else:
                return ids  # the vocabulary cannot say it
            at = end
        return ids
