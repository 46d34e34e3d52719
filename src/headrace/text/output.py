"""What people read of one sequence: tokens in, text out, until a stop string or the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from headrace.text.detokenizer import Detokenizer, MarkingDetokenizer
from headrace.text.formats.calls import Run, joined
from headrace.text.formats.reader import Reader
from headrace.text.stop import StopMatcher, Stops
from headrace.text.tokenizer import Tokenizer
from headrace.types import SamplingParams, TokenEvent


class OutputDelta(Struct, frozen=True):
    """What one event adds.

    ``text`` is to be sent on. ``stop`` is the stop string that ended the sequence here, for which the engine's work on
    it is to be aborted. ``used`` counts the event's tokens up to the one that completed the stop string: tokens after
    it are not part of the answer. ``offsets`` (with logprobs only) has, for each used token, the character of the
    sequence's text at which it begins; a token that continues a character begins where that character does.

    With a `Reader` the text is in ``runs`` instead. ``ended`` says that the answer is over here although no stop string
    came, as for ``stop``: the one call that it may have is complete. ``reasoning_tokens`` counts those of the used
    tokens that are reasoning, from the one that completes its opening mark to the one that completes its closing mark.
    """

    text: str = ""
    stop: str | None = None
    used: int = 0
    offsets: tuple[int, ...] = ()
    runs: tuple[Run, ...] = ()
    ended: bool = False
    reasoning_tokens: int = 0


class OutputText:
    """The text of one sequence as its events arrive; the text ends before a stop string, a stop token or EOS.

    Stop strings complete within the first ``min_tokens`` tokens are ordinary text.
    """

    __slots__ = (
        "_detokenizer", "_done", "_include_stop", "_length", "_matcher", "_min_tokens", "_offsets", "_reader", "_seen",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        prompt: Sequence[int] = (),
        stops: Stops | None = None,
        reader: Reader | None = None,
        marks: Mapping[int, str] | None = None,
    ) -> None:
        """Start after ``prompt``, which only decides whether a leading space belongs to the text.

        ``stops`` may be built once with `stops_of` and shared by the sequences of a request. ``reader`` tells reasoning
        and calls apart; ``marks`` are the special tokens that it is to see, with their stand-ins.
        """
        table = tokenizer.readable_bytes_of if sampling.skip_special_tokens else tokenizer.bytes_of
        first = tokenizer.strips_leading_space and all(token in tokenizer.special_ids for token in prompt)
        self._detokenizer = (
            MarkingDetokenizer(table, marks, strip_leading_space=first)
            if marks
            else Detokenizer(table, strip_leading_space=first)
        )
        stops = stops or stops_of(sampling)
        self._matcher = StopMatcher(stops) if stops else None
        self._include_stop = sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self._offsets = sampling.logprobs is not None
        self._reader = reader
        self._seen = 0  # Tokens so far.
        self._length = 0  # Characters decoded so far.
        self._done = False

    def push(self, event: TokenEvent) -> OutputDelta:
        """Take an event of this sequence. After a stop or the last event, everything is empty."""
        if self._done:
            return OutputDelta()
        tokens = event.tokens
        if event.stop_token is not None and not self._include_stop:
            tokens = tokens[:-1]
        if self._reader is not None:
            return self._read(self._reader, tokens, event)
        if self._matcher is None and not self._offsets:
            delta = OutputDelta(self._detokenizer.push(tokens), used=len(event.tokens))
        elif self._matcher is None and len(tokens) == 1 == len(event.tokens):
            text, offset = self._detokenizer.push(tokens), self._length
            self._length += len(text)
            delta = OutputDelta(text, None, 1, (offset,))
        else:
            delta = self._one_by_one(tokens, len(event.tokens))
        if delta.stop is not None:
            self._done = True
        elif event.finish is not None:
            delta = self._last(delta)
        return delta

    def _read(self, reader: Reader, tokens: Sequence[int], event: TokenEvent) -> OutputDelta:
        """The same with a reader: token by token, so that nothing depends on how many come at once."""
        runs: list[Run] = []
        offsets: list[int] = []
        used, stop, reasoned = len(event.tokens), None, 0
        for count, token in enumerate(tokens, 1):
            thinking = reader.thinking
            delta = self._one_by_one((token,), 1)
            runs += reader.push(delta.text)
            offsets += delta.offsets
            reasoned += thinking or reader.thinking
            if delta.stop is not None or reader.ended:
                used, stop, self._done = count, delta.stop, True
                break
        else:
            offsets += [self._length] * (len(event.tokens) - len(tokens) if self._offsets else 0)
            if event.finish is not None:
                last = self._last(OutputDelta())
                runs += reader.push(last.text)
                stop = last.stop
        if self._done:
            runs += reader.finish()
        return OutputDelta("", stop, used, tuple(offsets), joined(runs), reader.ended, reasoned)

    def _one_by_one(self, tokens: Sequence[int], total: int) -> OutputDelta:
        texts, offsets = [], []
        for used, token in enumerate(tokens, 1):
            offsets.append(self._length)
            self._seen += 1
            piece = self._detokenizer.push((token,))
            self._length += len(piece)
            stop = None
            if self._matcher is not None:
                piece, stop = self._matcher.push(piece, armed=self._seen > self._min_tokens)
            texts.append(piece)
            if stop is not None:
                return OutputDelta("".join(texts), stop, used, tuple(offsets) if self._offsets else ())
        offsets += [self._length] * (total - len(tokens))
        return OutputDelta("".join(texts), None, total, tuple(offsets) if self._offsets else ())

    def _last(self, delta: OutputDelta) -> OutputDelta:
        """Add what was held back: half a character, or the beginning of a stop string that never came."""
        self._done = True
        rest, stop = self._detokenizer.finish(), None
        if self._matcher is not None:
            rest, stop = self._matcher.push(rest, armed=self._seen > self._min_tokens)
            if stop is None:
                rest += self._matcher.finish()
        return OutputDelta(delta.text + rest, stop, delta.used, delta.offsets)


def stops_of(sampling: SamplingParams) -> Stops | None:
    """The request's stop strings, prepared; None if it has none."""
    stops = [stop for stop in sampling.stop if stop]
    return Stops.of(stops, include=sampling.include_stop_str_in_output) if stops else None
