"""Sequences that are held to a grammar, among others: batches, preemption, several sequences, drafts, ends."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from headrace.kvcache.cache import KVCache
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.drafting import PromptLookup
from headrace.scheduler.sampling import SamplingRule, derive_seed
from headrace.scheduler.scheduler import Scheduler
from headrace.scheduler.speculation import Speculation
from headrace.types import Cause, FinishReason, Request, RowSampling, SamplingParams, TokenEvent
from headrace.watermark import Watermark, green_list
from tests.fakes import VOCAB, FakeBackend, choose

LIMITS = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=300, max_prefill_tokens=64)
EOS = 31


@dataclass
class Beads:
    """A grammar: the i-th token is i modulo ``colours`` (EOS may come from ``soft`` on), and it is complete after
    ``length`` tokens; after ``breaks`` tokens it fails."""

    colours: int = 4
    length: int = 50
    soft: int = 1000
    breaks: int = 1000

    def matcher(self) -> BeadMatcher:
        return BeadMatcher(self)


@dataclass
class BeadMatcher:
    beads: Beads
    tokens: list[int] = field(default_factory=list)
    error: str | None = None

    def mask(self) -> bytes:
        place = len(self.tokens)
        may = {t for t in range(VOCAB - 1) if t % self.beads.colours == place % self.beads.colours}
        if place >= self.beads.soft:
            may.add(EOS)
        return sum(1 << t for t in may).to_bytes(VOCAB // 8, "little")

    def advance(self, token: int) -> bool:
        self.tokens.append(token)
        if len(self.tokens) >= self.beads.breaks:
            self.error = "the string broke"
            return False
        return len(self.tokens) < self.beads.length


def request(name: str, beads: Beads | None, *, n: int = 1, prompt: int = 20, **params: Any) -> Request:
    rng = random.Random(name)
    sampling = SamplingParams(**{"max_tokens": 40, "temperature": 0.7, "seed": 3, "grammar": beads, **params})
    return Request(name, tuple(rng.randrange(VOCAB) for _ in range(prompt)), sampling, 0.0, n=n)


def alone(asked: Request, index: int) -> list[int]:
    """What the sequence must say: one token after another, no scheduler."""
    params, output = asked.sampling, list[int]()
    matcher = params.grammar.matcher() if params.grammar else None
    stops = set() if params.ignore_eos else set(params.eos_token_ids)
    while len(output) < params.max_tokens:
        context = [*asked.prompt, *output]
        banned = len(output) < params.min_tokens or (matcher is not None and params.ignore_eos)
        bias = dict.fromkeys(params.eos_token_ids, float("-inf")) if banned else {}
        seed = derive_seed(params.seed or 0, index)
        mask = None if matcher is None else matcher.mask()
        sampling = RowSampling(params.temperature, seed=seed, position=len(context), bias=bias, mask=mask)
        token = choose(context, sampling)
        assert token is not None
        output.append(token)
        if token in stops or (matcher is not None and not matcher.advance(token)):
            break
    return output


def run(requests: list[Request], *, blocks: int = 200, speculates: bool = False) -> dict[tuple[str, int], TokenEvent]:
    """Serve them all together; each sequence's tokens, with its last event."""
    cache = KVCache(blocks)
    scheduler = Scheduler(LIMITS, cache, random.Random(0), Speculation(PromptLookup()) if speculates else None)
    backend, ends = FakeBackend(blocks), dict[tuple[str, int], TokenEvent]()
    texts: dict[tuple[str, int], tuple[int, ...]] = {}
    for asked in requests:
        scheduler.add(asked)
    for step in range(5000):
        plan = scheduler.schedule(float(step))
        if plan is None:
            break
        for row in plan.rows:
            if row.sampling is not None and row.sampling.mask is not None:
                assert not row.earlier, "a constrained sequence is not drafted for"
        for event in scheduler.commit(plan, backend.run(plan), float(step)):
            key = event.request_id, event.index
            assert key not in ends, "something came after the end"
            texts[key] = texts.get(key, ()) + event.tokens
            if event.finish is not None:
                ends[key] = event
    assert not scheduler.has_work
    return {key: replace(event, tokens=texts[key]) for key, event in ends.items()}


@pytest.mark.parametrize("blocks", [200, 14])
@pytest.mark.parametrize("speculates", [False, True])
def test_every_text_is_what_it_is_alone(blocks: int, speculates: bool) -> None:
    """With few blocks, sequences are preempted and computed again; their matchers stay where they were."""
    requests = [
        request("plain", None),
        request("held", Beads()),
        request("greedy", Beads(3), temperature=0.0),
        request("several", Beads(5, length=17), n=3),
        request("again", Beads(5, length=17), n=3),
        request("cut", Beads(length=100), max_tokens=9),
    ]
    ends = run(requests, blocks=blocks, speculates=speculates)
    for asked in requests:
        for index in range(asked.n):
            assert list(ends[asked.id, index].tokens) == alone(asked, index), asked.id
    assert ends["held", 0].finish is FinishReason.LENGTH
    assert ends["cut", 0].finish is FinishReason.LENGTH
    assert {ends["several", i].finish for i in range(3)} == {FinishReason.STOP}
    assert ends["several", 0].stop_token is None, "it ended because it was complete"


def test_complete_with_the_last_token_that_was_allowed_is_complete() -> None:
    assert run([request("r", Beads(length=9), max_tokens=9)])["r", 0].finish is FinishReason.STOP


def test_eos_only_where_the_grammar_may_end() -> None:
    eos = frozenset({EOS})
    for asked in (
        request("soft", Beads(soft=5), eos_token_ids=eos, temperature=2.0),
        request("later", Beads(soft=5, length=30), eos_token_ids=eos, temperature=2.0, min_tokens=12),
        request("never", Beads(soft=5, length=30), eos_token_ids=eos, temperature=2.0, ignore_eos=True),
    ):
        end = run([asked])[asked.id, 0]
        assert list(end.tokens) == alone(asked, 0)
        least = {"soft": 5, "later": 12, "never": 30}[asked.id]
        assert len(end.tokens) >= least
        assert EOS not in end.tokens[:-1]
        if asked.id == "never":
            assert EOS not in end.tokens


def test_a_grammar_that_fails_ends_its_request_alone() -> None:
    ends = run([request("bad", Beads(breaks=7), n=2), request("good", Beads(length=20))])
    assert {ends["bad", i].finish for i in range(2)} == {FinishReason.ERROR}
    assert (ends["bad", 0].error, ends["bad", 0].cause) == ("the string broke", Cause.REQUEST)
    assert ends["good", 0].finish is FinishReason.STOP


def test_nothing_left_to_choose_ends_the_request_alone() -> None:
    ends = run([request("none", Beads(2), allowed_token_ids=(1,)), request("good", Beads(length=20))])
    assert (ends["none", 0].finish, ends["none", 0].cause) == (FinishReason.ERROR, Cause.REQUEST)
    assert ends["good", 0].finish is FinishReason.STOP


def test_the_green_list_follows_the_last_token() -> None:
    mark = Watermark(key=5)
    rule = SamplingRule(SamplingParams(10, temperature=0.0, watermark=mark), 0, 3)
    assert rule.at(array("i", [1, 2, 3])).green == green_list(mark, 3)
    assert rule.at(array("i", [1, 2, 3, 9]), 3).green == green_list(mark, 3)
