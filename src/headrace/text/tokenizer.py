"""A model's tokenizer: text to ids, ids to bytes.

Encoding is the `tokenizers` library's. Decoding is ours: every id stands for a fixed run of bytes, so the text of any
ids is those bytes read as UTF-8, and decoding can go on one token at a time (see `detokenizer`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import pre_tokenizers

from headrace.errors import HeadraceError, InvalidRequest, ModelFileError, UnsupportedModel
from headrace.text import gguf_vocabulary
from headrace.text.expressions import refuse_costly_expressions
from headrace.text.source import TextSource

_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def load_tokenizer(source: TextSource) -> Tokenizer:
    """Build the tokenizer that a checkpoint's files describe.

    Raises:
        ModelFileError: the description is malformed.
        UnsupportedModel: a kind of tokenizer that is not served.
    """
    add_bos, bos = source.add_bos, source.bos_token_id
    duplicates: Mapping[int, str] = {}
    if source.tokenizer_json is not None:
        with _named_errors(source.tokenizer_json):
            core = Core.from_file(source.tokenizer_json)
    elif source.gguf is not None:
        with _named_errors("the GGUF file's tokenizer metadata"):
            core, duplicates = gguf_vocabulary.build(source.gguf)
        if add_bos is None:
            add_bos = bos is not None and gguf_vocabulary.default_add_bos(source.gguf)
    else:
        raise ModelFileError("the model has no tokenizer: neither a tokenizer.json nor GGUF metadata")
    eos = source.eos_token_ids
    return Tokenizer(core, add_bos=add_bos, bos_token_id=bos, eos_token_ids=eos, duplicates=duplicates)


@contextmanager
def _named_errors(origin: str) -> Iterator[None]:
    """Turn what the library raises on bad input, Rust panics included, into a `ModelFileError` that names the file."""
    try:
        yield
    except HeadraceError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or _is_panic(error)):
            raise
        raise ModelFileError(f"{origin} does not describe a tokenizer: {error}") from error


class Tokenizer:
    """Text to ids and back. Immutable once built; safe to use from several threads."""

    def __init__(
        self,
        core: Core,
        *,
        add_bos: bool | None = None,
        bos_token_id: int | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        duplicates: Mapping[int, str] | None = None,
    ) -> None:
        """Wrap a library tokenizer. ``add_bos`` None leaves BOS to the post-processor of its tokenizer.json.

        ``duplicates`` are texts of ids that the library cannot name.

        Raises:
            ModelFileError: there are no tokens, or BOS is to go first but is not named.
            UnsupportedModel: the decoder is neither byte-level nor SentencePiece's.
        """
        core.no_truncation()  # A tokenizer.json may ask for either: prompts are never cut or padded silently.
        core.no_padding()
        self._core = core
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True) + len(duplicates or ())
        if not self.vocab_size:
            raise ModelFileError("the tokenizer has no tokens")
        self._decoder = _parts(core.decoder)
        for part in (core.normalizer, core.pre_tokenizer, core.decoder):
            refuse_costly_expressions(_state(part))
        if add_bos and bos_token_id is None:
            raise ModelFileError("the tokenizer puts BOS first, but no file names the BOS token")
        self._add_bos, self.bos_token_id, self.eos_token_ids = add_bos, bos_token_id, eos_token_ids
        self._added = core.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special) | eos_token_ids
        """Ids that people do not read and that only a template, never a message's content, may place."""
        self.bytes_of: Mapping[int, bytes] = _ByteTable(core, self._added, self._decoder, duplicates or {})
        """The bytes that an id stands for, special tokens' own text included; empty for ids without a token."""
        self.readable_bytes_of: Mapping[int, bytes] = _ReadableTable(self.bytes_of, self.special_ids)
        """The same with special tokens empty."""

    @cached_property
    def strips_leading_space(self) -> bool:
        """Whether text starts with a space that encoding put there and decoding takes away (SentencePiece)."""
        for part in self._decoder:
            if part["type"] == "Strip" and part.get("content") == " " and part.get("start", 0) > 0:
                return True
            if part["type"] == "Metaspace" and part.get("prepend_scheme") != "never":
                return True
        return False

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of the text; special tokens written in it are recognised. ``add_special``: BOS first, if the model wants.

        Raises:
            InvalidRequest: the text has a lone surrogate, which no UTF-8 text can have.
        """
        with _encodable(text):
            if not add_special or self._add_bos is not None:
                ids = self._core.encode(text, add_special_tokens=False).ids
            else:
                ids = self._core.encode(text, add_special_tokens=True).ids
        if add_special and self._add_bos and self.bos_token_id is not None:
            return [self.bos_token_id, *ids]
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the text without BOS, and the characters [begin, end) of the text that each one came from."""
        with _encodable(text):
            encoding = self._core.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_literal(self, text: str, *, first: bool) -> list[int]:
        """Ids of text in which special tokens are ordinary characters. ``first``: nothing comes before it.

        Raises:
            InvalidRequest: the text has a lone surrogate, or a special token that is a single character.
        """
        core = self._literal_first if first else self._literal_rest
        with _encodable(text):
            ids = core.encode(text, add_special_tokens=False).ids
        if self.special_ids.isdisjoint(ids):
            return ids
        # Merges alone made a special token (Llama 2's "</s>"): spell each of those in two halves.
        spelled: list[int] = []
        for i in ids:
            if i not in self.special_ids:
                spelled.append(i)
                continue
            token = core.id_to_token(i) or ""
            if len(token) < 2:
                raise InvalidRequest(f"the text contains {token!r}, which is a control token of this model")
            half = len(token) // 2
            spelled += self.encode_literal(token[:half], first=False)
            spelled += self.encode_literal(token[half:], first=False)
        return spelled

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        table = self.readable_bytes_of if skip_special else self.bytes_of
        text = b"".join([table[i] for i in ids]).decode("utf-8", "replace")
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the id stands for; a character may be spread over several tokens."""
        return self.bytes_of[token]

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, or more: a text of more than n times this has more than n tokens."""
        return max(map(len, self._core.get_vocab()))

    @cached_property
    def special_chars(self) -> frozenset[str]:
        """Characters without which no special token can be written: of each the first that is not a letter or digit."""
        texts = [text for i in self.special_ids if (text := self._core.id_to_token(i))]
        return frozenset(next((char for char in text if not char.isalnum()), text[0]) for text in texts)

    def to_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json: one derived from GGUF loads faster from there."""
        return str(self._core.to_str())

    @cached_property
    def _literal_first(self) -> Core:
        """The same model, shared, with only the added tokens that are not special."""
        return self._without_special(self._core.pre_tokenizer)

    @cached_property
    def _literal_rest(self) -> Core:
        """`_literal_first` for text with something before it: a prefix space that is for "first" text is left out."""
        state = _state(self._core.pre_tokenizer)
        rest = state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        if rest == state:
            return self._literal_first
        part = pre_tokenizers.Metaspace()
        part.__setstate__(rest.encode())  # Whatever the state describes, a Metaspace or a sequence around one.
        return self._without_special(part)

    def _without_special(self, pre_tokenizer: Any) -> Core:
        core = Core(self._core.model)
        if self._core.normalizer is not None:
            core.normalizer = self._core.normalizer
        if pre_tokenizer is not None:
            core.pre_tokenizer = pre_tokenizer
        core.add_tokens([token for i, token in sorted(self._added.items()) if i not in self.special_ids])
        return core


class _ByteTable(dict[int, bytes]):
    """Id to bytes, filled as ids are first asked for: a lookup is one dictionary hit, building costs nothing."""

    def __init__(
        self,
        core: Core,
        added: Mapping[int, Any],
        decoder: Sequence[Mapping[str, Any]],
        duplicates: Mapping[int, str],
    ) -> None:
        super().__init__()
        self._core, self._added, self._duplicates = core, added, duplicates
        self._spelling = _spelling(decoder)

    def __missing__(self, token: int) -> bytes:
        text = self._core.id_to_token(token) if 0 <= token < 1 << 32 else None
        text = self._duplicates.get(token) if text is None else text
        if text is None:
            found = b""
        elif token in self._added and not (self._spelling is _sentencepiece_bytes and text.startswith(_SPACE)):
            found = text.encode()
        else:
            found = self._spelling(text)
        self[token] = found
        return found


class _ReadableTable(dict[int, bytes]):
    """A byte table in which special tokens are empty."""

    def __init__(self, table: Mapping[int, bytes], special: frozenset[int]) -> None:
        super().__init__()
        self._table, self._special = table, special

    def __missing__(self, token: int) -> bytes:
        found = b"" if token in self._special else self._table[token]
        self[token] = found
        return found


def _spelling(decoder: Sequence[Mapping[str, Any]]) -> Callable[[str], bytes]:
    kinds = {part["type"] for part in decoder}
    if "ByteLevel" in kinds:
        return _byte_level_bytes
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return _sentencepiece_bytes
    raise UnsupportedModel(f"the tokenizer's decoder is {sorted(kinds) or None}; served: ByteLevel, SentencePiece's")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for U+0100 onwards."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTES[char] for char in token])
    except KeyError:  # Not spelled in bytes: the library decodes such a token as it is written.
        return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.match(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def _state(part: Any) -> str:
    """The JSON of a normalizer, pre-tokenizer or decoder; empty if there is none."""
    return "" if part is None else part.__getstate__().decode()


def _parts(decoder: Any) -> list[dict[str, Any]]:
    """The decoder's steps, sequences flattened."""

    def flatten(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if node["type"] == "Sequence":
            for child in node["decoders"]:
                yield from flatten(child)
        else:
            yield node

    return [] if decoder is None else list(flatten(json.loads(_state(decoder))))


@contextmanager
def _encodable(text: str) -> Iterator[None]:
    """Blame the text, by name of what is wrong with it, for what the library cannot encode."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, TypeError) and any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidRequest("the text has a lone surrogate: it is not valid Unicode text") from error
        if _is_panic(error):  # Oniguruma's limit on backtracking: about ten million equal characters in a row.
            raise InvalidRequest(f"the text cannot be cut into words: {error}") from error
        raise


def _is_panic(error: BaseException) -> bool:
    """Whether a Rust library panicked; the exception's class cannot be imported."""
    return type(error).__name__ == "PanicException"
