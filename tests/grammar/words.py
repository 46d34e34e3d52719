"""A small vocabulary of bytes and words, for grammars without a model."""

from __future__ import annotations

from headrace.grammar.vocabulary import Vocabulary

SPECIAL = ("<end>", "<call>", "</call>", "<think>", "</think>")
WORDS = ("true", "false", "null", "name", '":', '{"', "hello", "yes", "no", " the", "12", "34", '"}', "<tool>")
EOS = 256


class Bytes:
    """Id = byte up to 255, then special tokens, then words; the spelling is by bytes."""

    def __init__(self) -> None:
        self.tokens = [bytes([i]) for i in range(256)] + [s.encode() for s in SPECIAL] + [w.encode() for w in WORDS]
        self.special_ids = frozenset(range(256, 256 + len(SPECIAL)))

    def token_bytes(self, token: int) -> bytes:
        return self.tokens[token] if token < len(self.tokens) else b""

    def encode_literal(self, text: str, *, first: bool) -> list[int]:
        return list(text.encode())

    def ids(self, text: str) -> list[int]:
        """Byte by byte, special tokens by name."""
        found: list[int] = []
        while text:
            name = next((name for name in SPECIAL if text.startswith(name)), None)
            found += [256 + SPECIAL.index(name)] if name else list(text[0].encode())
            text = text[len(name or "x") :]
        return found


SIZE = 256 + len(SPECIAL) + len(WORDS) + 7
"""More logits than the tokenizer has tokens, as models pad theirs."""


def vocabulary() -> Vocabulary:
    return Vocabulary(Bytes(), SIZE, {EOS})


def allowed(mask: bytes | None) -> set[int]:
    """The tokens of a mask."""
    if mask is None:
        return set(range(SIZE))
    return {token for token in range(SIZE) if mask[token >> 3] >> (token & 7) & 1}
