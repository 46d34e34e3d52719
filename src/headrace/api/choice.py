"""One choice of an answer: the engine's events of one sequence → deltas."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.api.ports import Words
from headrace.types import FinishReason, SamplingParams, TokenEvent, TokenLogprobs
from headrace.wire.calls import AnswerStyle
from headrace.wire.deltas import Alternative, Delta, PromptPart, ShownToken


class Choice:
    """Grows by `on_event` until ``done``. ``echo`` is the prompt's text if the answer begins with it;
    ``prompt_logprobs`` says whether they are to be answered beside that.

    ``silent`` leaves out all that was generated: with ``max_tokens`` 0 only the prompt is answered, and the one token
    that the engine made to get there is neither shown nor counted.
    """

    def __init__(
        self,
        index: int,
        words: Words,
        sampling: SamplingParams,
        style: AnswerStyle,
        prompt: tuple[int, ...],
        *,
        echo: str | None = None,
        prompt_logprobs: bool = False,
        silent: bool = False,
    ) -> None:
        self.index = index
        self.done = False
        self.tokens = 0
        self._words = words
        self._sampling = sampling
        self._style = style
        self._prompt = prompt
        self._echo = echo
        self._prompt_logprobs = prompt_logprobs
        self._silent = silent
        self._output = words.open_output(sampling)
        self._begun = False
        self._offset = 0

    def on_event(self, event: TokenEvent) -> Delta | None:
        """What the event adds to the answer. None if the choice was over already (a stop string ended it)."""
        if self.done:
            return None
        lead, prompt, echoed = ("", None, []) if self._begun else self._begin(event)
        if self._silent:
            return self._silent_delta(event, lead, echoed, prompt)
        self.tokens += len(event.tokens)
        text = self._output.push(self._readable(event))
        finish = event.finish
        reason: int | str | None = None
        if finish is not None and self._output.stopped is None:
            text += self._output.finish()
            if event.stop_token in self._sampling.stop_token_ids:
                reason = event.stop_token
        if self._output.stopped is not None:
            finish, reason = FinishReason.STOP, self._output.stopped
        self.done = finish is not None
        logprobs = [*echoed, *(self._shown(token) for token in event.logprobs)]
        ids = event.tokens if self._style.return_token_ids else ()
        return Delta(self.index, lead + text, ids, logprobs, finish, reason, prompt)

    @property
    def stopped_by_text(self) -> bool:
        """A stop string ended it, which the engine does not know."""
        return self._output.stopped is not None

    def _begin(self, event: TokenEvent) -> tuple[str, PromptPart | None, list[ShownToken]]:
        """What the first event says of the prompt: its echoed text, its part of the delta, its echoed logprobs."""
        self._begun = True
        ids = self._prompt if self._style.return_token_ids else None
        known = self._prompt_tokens(event) if event.prompt_logprobs is not None else []
        logprobs = tuple(known) if self._prompt_logprobs else None
        part = PromptPart(ids, logprobs) if ids is not None or logprobs is not None else None
        if self._echo is None:
            self._offset = 0
        echoed = known if self._echo is not None and self._sampling.logprobs is not None else []
        return self._echo or "", part, echoed

    def _silent_delta(self, event: TokenEvent, lead: str, echoed: list[ShownToken], prompt: PromptPart | None) -> Delta:
        self.done = event.finish is not None
        return Delta(self.index, lead, (), echoed, FinishReason.LENGTH if self.done else None, None, prompt)

    def _readable(self, event: TokenEvent) -> Sequence[int]:
        """The event's tokens without the one that ended the sequence, unless that is asked for."""
        if event.stop_token is None or event.finish is None or self._sampling.include_stop_str_in_output:
            return event.tokens
        return event.tokens[:-1]

    def _prompt_tokens(self, event: TokenEvent) -> list[ShownToken]:
        shown = []
        for token, known in zip(self._prompt, event.prompt_logprobs or (), strict=False):
            shown.append(self._shown(known) if known is not None else self._bare(token))
        return shown

    def _bare(self, token: int) -> ShownToken:
        data = self._words.token_bytes(token)
        return ShownToken(token, self._name(data), data, self._advance(data), None)

    def _shown(self, known: TokenLogprobs) -> ShownToken:
        data = self._words.token_bytes(known.token)
        top = tuple(
            Alternative(token, self._name(other), other, logprob, rank)
            for rank, (token, logprob) in enumerate(known.top, start=1)
            for other in (self._words.token_bytes(token),)
        )
        return ShownToken(known.token, self._name(data), data, self._advance(data), known.logprob, known.rank, top)

    def _advance(self, data: bytes) -> int:
        offset = self._offset
        self._offset += len(self._name(data))
        return offset

    @staticmethod
    def _name(data: bytes) -> str:
        return data.decode("utf-8", "replace")
