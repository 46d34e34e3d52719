"""One choice of an answer: the engine's events of one sequence → deltas."""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterator

from headrace.api.ports import Words
from headrace.text.formats.calls import Run
from headrace.types import FinishReason, SamplingParams, TokenEvent, TokenLogprobs
from headrace.wire.calls import AnswerStyle, Conversation, Prompts
from headrace.wire.deltas import Alternative, Delta, PromptPart, ShownToken, ToolCallDelta


class Choice:
    """Grows by `on_event` until ``done``.

    ``echo`` is the prompt's text if the answer begins with it; ``prompt_logprobs`` says whether they are to be answered
    beside that. ``silent`` leaves out all that was generated: with ``max_tokens`` 0 only the prompt is answered, and
    the one token that the engine made to get there is neither shown nor counted.
    """

    def __init__(
        self,
        index: int,
        words: Words,
        sampling: SamplingParams,
        style: AnswerStyle,
        prompt: tuple[int, ...],
        *,
        content: Prompts | Conversation | None = None,
        echo: str | None = None,
        prompt_logprobs: bool = False,
        silent: bool = False,
    ) -> None:
        self.index = index
        self.done = False
        self.stopped_by_text = False
        """A stop string ended it, which the engine does not know."""
        self.tokens = 0
        self.reasoning_tokens = 0
        self._words = words
        self._special = words.special_ids
        self._sampling = sampling
        self._style = style
        self._prompt = prompt
        self._echo = echo
        self._prompt_logprobs = prompt_logprobs
        self._silent = silent
        self._output = words.open_output(sampling, prompt, content)
        self._begun = False
        self._called = False

    def on_event(self, event: TokenEvent) -> tuple[Delta, ...]:
        """What the event adds to the answer. Nothing if the choice was over already (a stop string ended it)."""
        if self.done:
            return ()
        lead, prompt, echoed = ("", None, ()) if self._begun else self._begin(event)
        if self._silent:
            self.done = event.finish is not None
            return (Delta(self.index, lead, (), echoed, FinishReason.LENGTH if self.done else None, None, prompt),)
        output = self._output.push(event)
        self.tokens += output.used
        finish: str | None = event.finish
        reason: int | str | None = None
        if output.stop is not None or output.ended:
            self.stopped_by_text = True
            finish, reason = FinishReason.STOP, output.stop
        elif event.stop_token in self._sampling.stop_token_ids:
            reason = event.stop_token
        self.done = finish is not None
        logprobs = (*echoed, *self._generated(event, output.offsets)) if event.logprobs else echoed
        ids = event.tokens[: output.used] if self._style.return_token_ids else ()
        self.reasoning_tokens += output.reasoning_tokens
        earlier: tuple[Delta, ...] = ()
        reasoning, text, calls = "", lead + output.text, list[ToolCallDelta]()
        if output.runs:
            *before, run = output.runs
            earlier = tuple(
                Delta(self.index, each.text, (), (), None, None, None, *self._told(each)) for each in before
            )
            text, (reasoning, calls) = run.text, self._told(run)
        if self._called and finish == FinishReason.STOP:
            finish = "tool_calls"
        delta = Delta(self.index, text, ids, logprobs, finish, reason, prompt, reasoning, calls)
        return (*earlier, delta)

    def _told(self, run: Run) -> tuple[str, list[ToolCallDelta]]:
        """A run's reasoning, if it is to be shown, and its calls, each with an id of its own."""
        calls = []
        for piece in run.calls:
            self._called = True
            call_id = "call_" + secrets.token_hex(12) if piece.name else ""
            calls.append(ToolCallDelta(piece.index, call_id, piece.name, piece.arguments))
        return run.reasoning if self._style.include_reasoning else "", calls

    def _begin(self, event: TokenEvent) -> tuple[str, PromptPart | None, tuple[ShownToken, ...]]:
        """What the first event says of the prompt: its echoed text, its part of the delta, its echoed logprobs."""
        self._begun = True
        ids = self._prompt if self._style.return_token_ids else None
        known = self._of_prompt(event) if event.prompt_logprobs is not None else ()
        logprobs = known if self._prompt_logprobs else None
        part = PromptPart(ids, logprobs) if ids is not None or logprobs is not None else None
        echoed = known if self._echo is not None and self._sampling.logprobs is not None else ()
        return self._echo or "", part, echoed

    def _of_prompt(self, event: TokenEvent) -> tuple[ShownToken, ...]:
        """The prompt's tokens; each begins at the character to which the tokens before it have come."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        shown, offset = [], 0
        for token, known in zip(self._prompt, event.prompt_logprobs or (), strict=True):
            data = self._words.token_bytes(token)
            bare = ShownToken(token, _name(data), data, offset, None)
            shown.append(bare if known is None else self._shown(known, offset))
            offset += len(decoder.decode(data))
        return tuple(shown)

    def _generated(self, event: TokenEvent, offsets: tuple[int, ...]) -> list[ShownToken]:
        """The event's tokens, counted from where an echoed prompt ends."""
        start = len(self._echo or "")
        return [self._shown(known, start + offset) for known, offset in zip(event.logprobs, offsets, strict=False)]

    def _shown(self, known: TokenLogprobs, offset: int) -> ShownToken:
        data = self._words.token_bytes(known.token)
        special = known.token in self._special
        top = tuple(self._alternatives(known)) if known.top else ()
        return ShownToken(known.token, _name(data), data, offset, known.logprob, known.rank, top, special)

    def _alternatives(self, known: TokenLogprobs) -> Iterator[Alternative]:
        for rank, (token, logprob) in enumerate(known.top, start=1):
            data = self._words.token_bytes(token)
            yield Alternative(token, _name(data), data, logprob, rank, token in self._special)


class VectorChoice:
    """The embedding of one prompt: a single delta, and none of the tokens that a `Choice` has."""

    stopped_by_text = False
    tokens = 0
    reasoning_tokens = 0

    def __init__(self, index: int) -> None:
        self.index = index

    def on_event(self, event: TokenEvent) -> tuple[Delta, ...]:
        """The embedding."""
        return (Delta(self.index, finish=event.finish, embedding=event.embedding or ()),)


def _name(data: bytes) -> str:
    return data.decode("utf-8", "replace")
