"""A seeded world around the scheduler: arrivals, aborts, deadlines, a virtual clock, the fake model, and the checks."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.kvcache.cache import KVCache
from headrace.kvcache.integrity import problems
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.drafting import PromptLookup
from headrace.scheduler.sampling import derive_seed
from headrace.scheduler.scheduler import Scheduler
from headrace.scheduler.speculation import Speculation, SpeculationConfig
from headrace.scheduler.state import SequenceState
from headrace.types import FinishReason, Plan, Request, SamplingParams, TokenEvent
from tests.fakes import VOCAB, FakeBackend, expected_text, logprob_of, scores


@dataclass
class Seen:
    """What one sequence was heard to say."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: str | None = None
    cached_tokens: int | None = None
    events: int = 0


class World:
    """Steps the scheduler and checks after every step what must always hold."""

    def __init__(
        self,
        config: SchedulerConfig,
        num_blocks: int,
        *,
        prefix_caching: bool = True,
        speculation: Speculation | None = None,
    ) -> None:
        self.config = config
        self.cache = KVCache(num_blocks, prefix_caching=prefix_caching, secret=b"test")
        self.scheduler = Scheduler(config, self.cache, random.Random(1), speculation)
        self.backend = FakeBackend(num_blocks, lambda: self.cache.pool.free)
        self.now = 0.0
        self.requests: dict[str, Request] = {}
        self.seen: dict[tuple[str, int], Seen] = defaultdict(Seen)
        self.last_plan: Plan | None = None
        self.drafts: list[tuple[int, int]] = []
        """(drafted, accepted) of every row that checked a draft."""

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        self.scheduler.add(request)

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.hear(self.scheduler.abort(request_id, self.now, index))
        self.check_books()

    def step(self) -> Plan | None:
        self.now += 1.0
        self.hear(self.scheduler.expire(self.now))
        plan = self.last_plan = self.scheduler.schedule(self.now)
        if plan is None:
            assert not self.scheduler.has_work, "work waits and nothing is planned"
            return None
        self.check_plan(plan)
        result = self.backend.run(plan)
        self.hear(self.scheduler.commit(plan, result, self.now))
        self.drafts += self.scheduler.take_tally().drafts
        self.check_books()
        return plan

    def run(self, max_steps: int = 5000) -> None:
        for _ in range(max_steps):
            if self.step() is None:
                return
        raise AssertionError(f"not done after {max_steps} steps")

    def hear(self, events: list[TokenEvent]) -> None:
        for event in events:
            seen = self.seen[event.request_id, event.index]
            assert seen.finish is None, "an event after the last one"
            if event.prompt_logprobs is not None:
                prompt = self.requests[event.request_id].prompt
                want = tuple(logprob_of(prompt[:i], prompt[i]) for i in range(1, len(prompt)))
                assert event.prompt_logprobs == (None, *want)
            if event.cached_tokens is not None:
                assert seen.events == 0
                seen.cached_tokens = event.cached_tokens
            seen.tokens += event.tokens
            if event.logprobs:
                assert [entry.token for entry in event.logprobs] == list(event.tokens)
            self.check_logprobs(event, seen)
            self.check_embedding(event)
            seen.finish, seen.error = event.finish, event.error
            seen.events += 1

    def check_logprobs(self, event: TokenEvent, seen: Seen) -> None:
        """Those of each token in its own context."""
        request = self.requests[event.request_id]
        text = [*request.prompt, *seen.tokens]
        if event.tokens and request.sampling.logprobs is not None:
            first = len(text) - len(event.tokens)
            want = tuple(logprob_of(text[:i], text[i]) for i in range(first, len(text)))
            assert event.logprobs == want

    def check_embedding(self, event: TokenEvent) -> None:
        """There is one at the end of a request for one, and nowhere else."""
        request = self.requests[event.request_id]
        whole = request.embed and event.finish is FinishReason.STOP
        assert event.embedding == (scores(request.prompt) if whole else None)

    def check_plan(self, plan: Plan) -> None:
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert len(plan.rows) <= self.config.max_num_seqs
        ids = [row.sequence for row in plan.rows]
        assert len(set(ids)) == len(ids)

    def check_books(self) -> None:
        assert problems(self.cache) == []
        assert self.scheduler.num_running <= self.config.max_num_seqs
        assert len(self.cache.leases) == self.scheduler.num_running

    def check_idle(self) -> None:
        """Nothing is left behind."""
        assert not self.scheduler.has_work
        assert self.scheduler.num_running == self.scheduler.num_waiting == self.scheduler.num_unstarted == 0
        assert self.cache.pool.used == 0
        assert not self.scheduler.slots_wasted
        for request in self.requests.values():
            for index in range(request.n):
                assert self.seen[request.id, index].finish is not None

    def check_texts(self) -> None:
        """Each sequence said what it says alone, or as much of it as it was let."""
        for request in self.requests.values():
            for index in range(request.n):
                seen = self.seen[request.id, index]
                seed = derive_seed(request.sampling.seed or 0, index)
                want = expected_text(request, index, seed, self.config.max_model_len)
                if seen.finish in (FinishReason.STOP, FinishReason.LENGTH):
                    assert seen.tokens == want, (request.id, index)
                else:
                    assert seen.finish is FinishReason.ABORT or seen.error == "deadline", seen
                    assert seen.tokens == want[: len(seen.tokens)]


def random_request(rng: random.Random, name: str, arrival: float, max_total: int) -> Request:
    """Any request that fits into ``max_total`` tokens; prompts often share beginnings."""
    length = rng.choice([1, 2, 15, 16, 17, 31, 32, 33, rng.randint(1, max_total - 1)])
    length = min(length, max_total - 1)
    stem = random.Random(rng.randint(0, 2))
    prompt = [stem.randrange(VOCAB) for _ in range(length)]
    if rng.random() < 0.5:
        fresh = rng.randrange(length)
        prompt[fresh:] = [rng.randrange(VOCAB) for _ in range(length - fresh)]
    if rng.random() < 0.3:
        prompt[16:] = [7] * len(prompt[16:])  # equal blocks after different ones
    max_tokens = rng.choice([0, *[rng.randint(0, max_total - len(prompt))] * 9])
    rare = rng.random
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=rng.randint(0, max_tokens) if rare() < 0.2 else 0,
        temperature=rng.choice([0.0, 0.0, 1.0]),
        seed=rng.getrandbits(64),
        repetition_penalty=rng.choice([1.0, 1.0, 1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.0, 0.0, 1.5]),
        logit_bias={rng.randrange(VOCAB): rng.uniform(-5, 5)} if rare() < 0.2 else {},
        allowed_token_ids=tuple(rng.sample(range(VOCAB), 8)) if rare() < 0.1 else None,
        bad_words=tuple(tuple(rng.choices(range(VOCAB), k=rng.randint(1, 2))) for _ in range(4))
        if rare() < 0.2
        else (),
        stop_token_ids=frozenset([rng.randrange(VOCAB)]) if rare() < 0.5 else frozenset(),
        eos_token_ids=frozenset([0, 1]),
        ignore_eos=rare() < 0.5,
        logprobs=rng.choice([None, None, 2]),
        prompt_logprobs=0 if rare() < 0.15 else None,
    )
    embed = not max_tokens and rare() < 0.5
    return Request(
        id=name,
        prompt=tuple(prompt),
        sampling=params,
        arrival=arrival,
        n=1 if embed else rng.choice([1, 1, 1, 2, 3, 5]),
        priority=rng.choice([0, 0, 0, -1, 3]),
        client=rng.choice(["", "a", "b"]),
        cache_salt=rng.choice(["", "", "salt"]),
        deadline=arrival + rng.randint(1, 60) if rare() < 0.1 else None,
        embed=embed,
    )


class Prophet:
    """Drafts what the sequence will say, wrong now and then, and ends it early or late as it likes."""

    costs_time = False

    def __init__(self, rng: random.Random, error_rate: float, max_model_len: int) -> None:
        self._rng = rng
        self._error_rate = error_rate
        self._max_model_len = max_model_len
        self._texts: dict[tuple[str, int], list[int]] = {}

    def propose(self, wanted: Sequence[tuple[SequenceState, int]]) -> list[Sequence[int]]:
        return [self._guess(sequence, self._rng.randint(0, most)) for sequence, most in wanted]

    def _guess(self, sequence: SequenceState, most: int) -> list[int]:
        request, index = sequence.owner.request, sequence.index
        key = request.id, index
        if key not in self._texts:
            seed = derive_seed(request.sampling.seed or 0, index)
            self._texts[key] = expected_text(request, index, seed, self._max_model_len)
        said = len(sequence.tokens) - len(request.prompt)
        rest = [*self._texts[key][said:], *self._rng.choices(range(VOCAB), k=most)]
        wrong = self._rng.random
        return [self._rng.randrange(VOCAB) if wrong() < self._error_rate else token for token in rest[:most]]


def random_speculation(rng: random.Random, max_model_len: int) -> Speculation:
    drafter = PromptLookup() if rng.random() < 0.2 else Prophet(rng, rng.choice([0.0, 0.1, 0.5]), max_model_len)
    return Speculation(drafter, SpeculationConfig(rng.choice([1, 3, 15]), rng.choice([4, 16, 64])))


def live(seed: int, *, speculates: bool = False) -> World:
    """One whole random life: everything ends, and everything is checked on the way."""
    rng = random.Random(seed)
    num_blocks = rng.choice([4, 6, 9, 20, 60])
    max_total = num_blocks * 16 if num_blocks < 10 else 100
    seats = rng.randint(1, 8)
    config = SchedulerConfig(
        max_num_seqs=seats,
        max_num_batched_tokens=seats + rng.choice([0, 1, 7, 16, 40, 200]),
        max_model_len=rng.choice([max_total, max_total + 50]),
        max_prefill_tokens=rng.choice([1, 5, 16, 512]),
        short_share=rng.choice([0.0, 0.25, 0.5]),
        prefill_seconds=rng.choice([1e-9, 0.5, 20.0, 1e9]),
        context_unit=rng.choice([1.0, 30.0, 1e6]),
    )
    speculation = random_speculation(random.Random(seed), config.max_model_len) if speculates else None
    world = World(config, num_blocks, prefix_caching=rng.random() < 0.8, speculation=speculation)
    abort_rate = rng.choice([0.0, 0.1, 0.5])
    for i in range(rng.randint(1, 14)):
        world.add(random_request(rng, f"r{i}", world.now, max_total))
        for _ in range(rng.choice([0, 0, 1, 3, 10])):
            if rng.random() < abort_rate:
                victim = rng.choice(list(world.requests))
                world.abort(victim, rng.choice([None, None, 0, 1, 2]))
            world.step()
    world.run()
    world.check_idle()
    world.check_texts()
    return world
