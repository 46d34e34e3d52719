"""A scripted engine and a byte-per-token vocabulary: everything that the HTTP side needs, without a model."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.api import App, Models, Served, ServerSettings, constant, host
from headrace.api.cards import Card, unknown
from headrace.api.shelf import Shelf
from headrace.constraint import Constraint, Grammar
from headrace.errors import EngineDead, HeadraceError, InvalidRequest, QueueFull
from headrace.grammar.compiler import Compiler
from headrace.grammar.vocabulary import Vocabulary
from headrace.metrics import Recorder
from headrace.stats import EngineStats, Health
from headrace.text.output import OutputText
from headrace.text.tokenizer import Tokenizer
from headrace.types import Cause, FinishReason, Request, SamplingParams, TokenEvent, TokenLogprobs
from headrace.wire.calls import Conversation, Prompts
from headrace.wire.limits import Limits
from tests.api.raw import PATIENCE

EOS = 256
TEXT = "Hello, wörld! The wheel 🛞 turns."


def byte_tokenizer() -> Tokenizer:
    """Token id = byte; 256 ends."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Core

    from headrace.text.tokenizer import _byte_alphabet

    core = Core(models.BPE(vocab=_byte_alphabet(), merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<end>", special=True)])
    return Tokenizer(core, eos_token_ids=frozenset({EOS}))


class ByteWords:
    """The text room's real tokenizer and output text over bytes, with the plainest of templates."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()
        self.eos_token_ids = frozenset({EOS})
        self._compiler = Compiler(lambda: Vocabulary(self.tokenizer, 257, self.eos_token_ids))

    @property
    def can_chat(self) -> bool:
        return True

    @property
    def chat_format(self) -> Mapping[str, Any] | None:
        return None

    @property
    def special_ids(self) -> frozenset[int]:
        return self.tokenizer.special_ids

    @property
    def longest_token(self) -> int:
        return self.tokenizer.longest_token

    def encode(self, text: str, add_special: bool) -> Sequence[int]:
        return self.tokenizer.encode(text, add_special=add_special)

    def encode_spans(self, text: str) -> Sequence[tuple[int, int, int]]:
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        return [(i, *span) for i, span in zip(ids, offsets, strict=True)]

    def encode_chat(self, conversation: Conversation) -> Sequence[int]:
        if conversation.template_kwargs.get("refuse"):
            raise InvalidRequest("the template refuses", "messages")
        return self.encode("".join(f"{m['role']}:{m['content']}\n" for m in conversation.messages), False)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special=False)

    def token_bytes(self, token: int) -> bytes:
        return self.tokenizer.token_bytes(token)

    async def constrain(self, constraint: Constraint) -> Grammar:
        return await asyncio.wrap_future(self._compiler.compile(constraint))

    def constraint_of(
        self, content: Prompts | Conversation, asked: Constraint | None, prompt: Sequence[int]
    ) -> Constraint | None:
        return asked

    def open_output(
        self, sampling: SamplingParams, prompt: Sequence[int], content: Prompts | Conversation | None = None
    ) -> OutputText:
        return OutputText(self.tokenizer, sampling, prompt=prompt)


@dataclass
class Running:
    """One sequence in the fake engine."""

    request: Request
    index: int
    script: list[int]
    sent: int = 0


def says(text: str) -> Callable[[Request, int], list[int]]:
    return lambda request, index: [*text.encode(), EOS]


@dataclass
class FakeEngine:
    """Says what its script says, ``per_step`` tokens at a time. `step` runs one step; with ``pace`` a thread does."""

    script: Callable[[Request, int], list[int]] = field(default_factory=lambda: says(TEXT))
    pace: float | None = None
    per_step: int = 1
    max_queued: int = 1000
    dead: bool = False
    ready: bool = True
    error: str | None = None
    cause: Cause = Cause.SERVER
    error_after: int = 0
    """Tokens that a sequence gets before it fails with ``error``."""
    refuse: HeadraceError | None = None
    submitted: list[Request] = field(default_factory=list)
    aborted: list[tuple[str, int | None]] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    starts: int = 0
    touched: int = 0
    """Of the 100 KV blocks."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._listener: Callable[[Sequence[TokenEvent]], None] = lambda events: None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, listener: Callable[[Sequence[TokenEvent]], None]) -> None:
        self._listener = listener
        self.starts += 1
        if self.pace is not None:
            self._thread = threading.Thread(target=self._loop, daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def submit(self, request: Request) -> None:
        if self.dead:
            raise EngineDead("the step loop has stopped")
        if self.refuse is not None:
            raise self.refuse
        with self._lock:
            if len(self.running) + request.n > self.max_queued:
                raise QueueFull("the queue is full", retry_after=3)
            self.submitted.append(request)
            self.running += [Running(request, k, self.script(request, k)) for k in range(request.n)]

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        with self._lock:
            self.aborted.append((request_id, index))
            self.running = [r for r in self.running if r.request.id != request_id or index not in (None, r.index)]

    def health(self) -> Health:
        return Health(live=not self.dead, ready=self.ready, detail="dead" if self.dead else "")

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.running), kv_blocks=100, kv_blocks_touched=self.touched)

    def step(self) -> None:
        """One step of everything that runs."""
        with self._lock:
            events = [self._advance(each) for each in self.running]
            self.running = [each for each, event in zip(self.running, events, strict=True) if event.finish is None]
        if events:
            self._listener(events)

    def _advance(self, each: Running) -> TokenEvent:
        first, sampling = each.sent == 0, each.request.sampling
        if self.error is not None and each.sent >= self.error_after:
            return TokenEvent(
                each.request.id, each.index, finish=FinishReason.ERROR, error=self.error, cause=self.cause
            )
        if each.request.embed:
            state = [1.0 + token for token in (0, 0, 0, *each.request.prompt)[-4:]]
            return TokenEvent(each.request.id, each.index, finish=FinishReason.STOP, embedding=state)
        room = sampling.max_tokens - each.sent
        tokens = tuple(each.script[each.sent : each.sent + min(self.per_step, room)])
        each.sent += len(tokens)
        stop = next((t for t in tokens[-1:] if t in sampling.stop_token_ids | {EOS}), None)
        over = each.sent >= sampling.max_tokens or each.sent >= len(each.script)
        finish = FinishReason.STOP if stop is not None else FinishReason.LENGTH if over else None
        known = tuple(logprobs_of(t, sampling.logprobs) for t in tokens) if sampling.logprobs is not None else ()
        prompt = None
        if first and sampling.prompt_logprobs is not None:
            rest = (logprobs_of(t, sampling.prompt_logprobs) for t in each.request.prompt[1:])
            prompt = (None, *rest)
        return TokenEvent(each.request.id, each.index, tokens, known, finish, stop, None, 4 if first else None, prompt)

    def _loop(self) -> None:
        while not self._closed.wait(self.pace):
            self.step()


def logprobs_of(token: int, top: int) -> TokenLogprobs:
    others = tuple(((token + k) % 256, -0.5 - k) for k in range(top))
    return TokenLogprobs(token, -0.5, 1, others)


def served(**changes: object) -> Served:
    limits = Limits(max_model_len=512, vocab_size=257)
    base = {"names": ("tiny", "org/tiny"), "words": ByteWords(), "limits": limits, "created": 1_700_000_000}
    return Served(**{**base, **changes})  # type: ignore[arg-type]  # keyword arguments of mixed types


def app_of(
    engine: FakeEngine,
    settings: ServerSettings | None = None,
    shelf: Shelf | None = None,
    card: Callable[[], Card] = unknown,
    **changes: object,
) -> App:
    settings, recorder = settings or ServerSettings(), Recorder("tiny", 512)
    models = Models([constant(host(engine, served(**changes), recorder, settings), card)], settings)
    return App(models, recorder, settings, shelf)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for something that another thread does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not happen in time")
        time.sleep(0.005)
