"""Ids to text, a few tokens at a time: a character comes out when its last byte is there, and never in parts."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one sequence as its tokens arrive.

    However the ids are divided between calls, the texts returned, `finish`'s included, join to the text of all the
    ids. Bytes that no continuation can make valid become U+FFFD as soon as that is certain; a character that the
    last token leaves incomplete becomes U+FFFD at `finish`.
    """

    __slots__ = ("_decode", "_strip", "_table")

    def __init__(self, table: Mapping[int, bytes], *, strip_leading_space: bool = False) -> None:
        """Read bytes from ``table`` (`Tokenizer.readable_bytes_of` or `bytes_of`).

        ``strip_leading_space``: nothing readable precedes this text, and the tokenizer put a space in front of it.
        """
        self._table = table
        self._decode = _utf8_decoder("replace").decode
        self._strip = strip_leading_space

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that these tokens complete."""
        table = self._table
        text = self._decode(b"".join([table[token] for token in tokens]))
        return self._without_prefix(text) if self._strip else text

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD for an incomplete character, else nothing."""
        return self._decode(b"", True)

    def _without_prefix(self, text: str) -> str:
        if text:
            self._strip = False
        return text[1:] if text.startswith(" ") else text


class MarkingDetokenizer(Detokenizer):
    """A detokenizer that shows some special tokens, each as a lone surrogate.

    No decoded text contains those: so a special token differs from text that merely spells the same.
    """

    __slots__ = ("_marks",)

    def __init__(
        self, table: Mapping[int, bytes], marks: Mapping[int, str], *, strip_leading_space: bool = False
    ) -> None:
        """``marks`` has the surrogate of each such token."""
        super().__init__(table, strip_leading_space=strip_leading_space)
        self._marks = marks

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that these tokens complete. A mark ends a character that is incomplete before it."""
        parts = []
        for token in tokens:
            mark = self._marks.get(token)
            parts.append(super().push((token,)) if mark is None else self.finish() + mark)
        return "".join(parts)
