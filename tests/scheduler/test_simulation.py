"""Whole random lives against a total oracle, and proof that the oracle sees what it should."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from headrace.kvcache.cache import KVCache, Lease
from headrace.kvcache.pool import BlockPool
from headrace.kvcache.prefix import BlockKeys, Entry, PrefixIndex
from headrace.scheduler.coming import MOST_SECONDS
from headrace.scheduler.config import SchedulerConfig
from headrace.scheduler.roster import Roster
from headrace.scheduler.sampling import SamplingRule
from headrace.scheduler.state import RequestState
from headrace.types import FinishReason, Request, RowSampling, SamplingParams
from tests.fakes import VOCAB
from tests.scheduler.simulation import World, live, random_request

SEEDS_PER_TEST = 50


@pytest.mark.parametrize("start", range(0, 400, SEEDS_PER_TEST))
def test_everything_ends_as_it_would_alone(start: int) -> None:
    for seed in range(start, start + SEEDS_PER_TEST):
        try:
            live(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_seeds_reach_the_interesting_places() -> None:
    worlds = [live(seed) for seed in range(80)]
    finishes = {seen.finish for world in worlds for seen in world.seen.values()}
    assert finishes == set(FinishReason)
    assert sum(world.scheduler.preemptions for world in worlds) > 50
    assert sum(world.cache.stats().hit_tokens for world in worlds) > 100
    assert any(seen.error == "deadline" for world in worlds for seen in world.seen.values())


# ------------------------------------------------------------------------------- planted bugs must be found


def _assert_found(seeds: Iterator[int] | range = range(150)) -> None:
    for seed in seeds:
        try:
            live(seed)
        except Exception:
            return
    raise AssertionError("the planted bug went unseen")


def test_finds_a_fork_that_does_not_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = KVCache.fork

    def fork(self: KVCache, lease: Lease, num_tokens: int) -> tuple[Lease, tuple[tuple[int, int], ...]] | None:
        forked = real(self, lease, num_tokens)
        return None if forked is None else (forked[0], ())

    monkeypatch.setattr(KVCache, "fork", fork)
    _assert_found()


def test_finds_a_prefix_hit_on_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    real = KVCache.open

    def open_(self: KVCache, tokens: array[int], keys: BlockKeys, reuse: bool = True) -> Lease:
        return real(self, array("i", [*tokens, 0]), keys, reuse)

    monkeypatch.setattr(KVCache, "open", open_)
    _assert_found()


def test_finds_blocks_that_are_matched_by_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(self: PrefixIndex, key: bytes, parent: int | str, tokens: bytes) -> Entry | None:
        return next((entry for entry in self._by_key.values() if entry.tokens == tokens), None)

    monkeypatch.setattr(PrefixIndex, "find", find)
    _assert_found()


def test_finds_indexed_blocks_that_were_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BlockPool.drop
    monkeypatch.setattr(BlockPool, "drop", lambda self, block, keep: real(self, block, False))
    _assert_found()


def test_finds_a_preemption_that_forgets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = KVCache.open

    def open_(self: KVCache, tokens: array[int], keys: BlockKeys, reuse: bool = True) -> Lease:
        lease = real(self, tokens, keys, reuse)
        if len(tokens) > 20 and not lease.blocks and self.grow(lease, 16):
            pass  # as if the first block still held what it held before
        return lease

    monkeypatch.setattr(KVCache, "open", open_)
    _assert_found()


def test_finds_a_leak_on_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Roster.end

    def end(self: Roster, owner: RequestState, *args: object, **kwargs: object) -> object:
        for sequence in owner.sequences.values():
            if sequence.lease is not None and len(sequence.lease.blocks) > 1:
                self._cache.pool.references[sequence.lease.blocks[0]] += 1
        return real(self, owner, *args, **kwargs)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(Roster, "end", end)
    _assert_found()


def test_finds_noise_that_depends_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = SamplingRule._row, iter(range(10**9))

    def row(self: SamplingRule, tokens: array[int], bias: dict[int, float]) -> RowSampling:
        made = real(self, tokens, bias)
        return made if made.temperature == 0 else RowSampling(1.0, position=next(calls), bias=bias)

    monkeypatch.setattr(SamplingRule, "_row", row)
    _assert_found()


# ----------------------------------------------------------------------------------------- single properties


def _config(**changes: int) -> SchedulerConfig:
    base = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 200, "max_prefill_tokens": 64}
    return SchedulerConfig(**{**base, **changes})


def _request(
    name: str,
    prompt: int | tuple[int, ...],
    output: int,
    *,
    sampling: SamplingParams | None = None,
    n: int = 1,
    cache_salt: str = "",
    deadline: float | None = None,
) -> Request:
    rng = random.Random(name)
    ids = tuple(rng.randrange(VOCAB) for _ in range(prompt)) if isinstance(prompt, int) else prompt
    params = sampling or SamplingParams(output, temperature=0.0)
    return Request(name, ids, params, 0.0, n=n, cache_salt=cache_salt, deadline=deadline)


@pytest.mark.parametrize("when", range(1, 40))
def test_abort_at_every_step_leaves_nothing(when: int) -> None:
    """Queued, in every chunk of the prompt, with siblings, decoding, preempted: two requests fight for six blocks."""
    for victim in ("a", "b", "c"):
        world = World(_config(max_num_batched_tokens=8, max_prefill_tokens=5), num_blocks=6)
        world.add(_request("a", 30, 20, n=2))
        world.add(_request("b", 40, 20))
        world.add(_request("c", 20, 10))
        for _ in range(when):
            world.step()
        running = world.scheduler.num_running
        world.abort(victim)
        assert world.scheduler.num_running <= running
        world.run()
        world.check_idle()
        world.check_texts()


@pytest.mark.parametrize("when", [0, 1, 3, 12])
def test_one_of_several_sequences_may_be_aborted(when: int) -> None:
    for index in range(3):
        world = World(_config(max_prefill_tokens=8, max_num_batched_tokens=8), num_blocks=30)
        world.add(_request("a", 40, 20, n=3))
        for _ in range(when):
            world.step()
        world.abort("a", index)
        world.run()
        world.check_idle()
        world.check_texts()
        assert [world.seen["a", i].finish for i in range(3)].count(FinishReason.ABORT) == 1


def test_a_prompt_is_computed_once_for_all_its_sequences() -> None:
    world = World(_config(), num_blocks=40, prefix_caching=False)
    world.add(_request("a", 50, 4, n=4))
    world.run()
    world.check_texts()
    assert world.backend.computed == 50 + 3 + 4 * 3, "the prompt, its last token for each sibling, then the rest"


def test_a_known_prefix_is_not_computed_again_and_is_reported() -> None:
    world = World(_config(), num_blocks=40)
    first = _request("a", 50, 1)
    world.add(first)
    world.run()
    for name, salt, cached in (("b", "", 48), ("c", "other", 0), ("d", "other", 48)):
        before = world.backend.computed
        world.add(_request(name, first.prompt, 1, cache_salt=salt))
        world.run()
        assert world.seen[name, 0].cached_tokens == cached
        assert world.backend.computed - before == 50 - cached
    world.check_texts()


def test_prompt_logprobs_are_whole_despite_a_known_prefix() -> None:
    world = World(_config(), num_blocks=40)
    request = _request("a", 50, 1)
    world.add(request)
    world.run()
    params = SamplingParams(1, temperature=0.0, prompt_logprobs=0)
    world.add(_request("b", request.prompt, 1, sampling=params))
    world.run()  # World checks the logprobs themselves
    assert world.seen["b", 0].cached_tokens == 0


def test_a_prompt_alone_may_be_asked_for() -> None:
    world = World(_config(), num_blocks=40)
    world.add(_request("a", 50, 0, sampling=SamplingParams(0, temperature=0.0, prompt_logprobs=3)))
    world.run()
    assert world.seen["a", 0].finish is FinishReason.LENGTH
    assert world.seen["a", 0].events == 1


def test_the_context_ends_a_sequence() -> None:
    world = World(_config(max_model_len=60), num_blocks=40)
    world.add(_request("a", 50, 100))
    world.run()
    world.check_texts()
    assert len(world.seen["a", 0].tokens) == 10


@pytest.mark.parametrize("steps", [0, 2, 10])
def test_deadlines_end_requests_wherever_they_are(steps: int) -> None:
    world = World(_config(max_num_seqs=1, max_num_batched_tokens=16), num_blocks=40)
    world.add(_request("running", 40, 100, deadline=5.0 + steps))
    world.add(_request("waiting", 40, 100, deadline=4.0 + steps))
    world.add(_request("in time", 10, 5))
    world.run()
    world.check_idle()
    assert [world.seen[name, 0].error for name in ("running", "waiting", "in time")] == ["deadline", "deadline", None]


def test_the_deadlines_of_ended_requests_are_forgotten() -> None:
    world = World(_config(), num_blocks=40)
    for i in range(1000):
        world.add(_request(f"r{i}", 1, 1, deadline=1e9))
        world.run()
    assert len(world.scheduler._roster._deadlines) < 100


def test_texts_with_a_drawn_seed_differ() -> None:
    world = World(_config(), num_blocks=40)
    params = SamplingParams(20, temperature=1.0)
    world.add(_request("a", 30, 20, sampling=params, n=2))
    world.add(_request("b", world.requests["a"].prompt, 20, sampling=params))
    world.run()
    texts = [tuple(seen.tokens) for seen in world.seen.values()]
    assert len(set(texts)) == 3


def test_random_requests_are_servable() -> None:
    """The simulator must not be shy: every kind of parameter occurs."""
    rng = random.Random(0)
    requests = [random_request(rng, str(i), 0.0, 100) for i in range(500)]
    for name in ("min_tokens", "logit_bias", "allowed_token_ids", "bad_words", "stop_token_ids", "temperature"):
        values = [getattr(request.sampling, name) for request in requests]
        assert any(values), name
        assert not all(values), name


def test_a_sequence_that_is_computed_for_ever_is_ended() -> None:
    world = World(_config(max_num_batched_tokens=16, max_num_seqs=2), 64)
    world.add(_request("stuck", 40, 4))
    world.add(_request("fine", 5, 60))
    stuck = world.scheduler._roster.requests["stuck"].lead
    assert stuck is not None
    for _ in range(32 * 40):
        world.step()
        if world.seen["stuck", 0].finish is not None:
            break
        stuck.num_computed = 0  # the bug: what was computed is forgotten
    assert (world.seen["stuck", 0].finish, world.seen["stuck", 0].error) == (FinishReason.ERROR, "no progress")
    assert world.scheduler.stalled == 1
    world.run()
    assert world.seen["fine", 0].finish is FinishReason.LENGTH
    assert world.cache.stats().used == 0


@pytest.mark.parametrize("caching", [True, False])
def test_a_prefix_that_comes_at_once_is_computed_once(caching: bool) -> None:
    world = World(
        _config(max_num_seqs=8, max_num_batched_tokens=200, max_prefill_tokens=200), 256, prefix_caching=caching
    )
    shared = tuple(random.Random(3).randrange(VOCAB) for _ in range(128))
    prompts = [(*shared, *(random.Random(i).randrange(VOCAB) for i in range(k, k + 20))) for k in range(0, 160, 20)]
    for number, prompt in enumerate(prompts):
        world.add(_request(f"user {number}", prompt, 4))
    steps = 0
    while not all(world.seen[f"user {i}", 0].tokens for i in range(8)):
        world.step()
        steps += 1
    assert steps == 2 if caching else steps >= 6
    computed = sum(148 - (world.seen[f"user {i}", 0].cached_tokens or 0) for i in range(8))
    assert computed == (128 + 8 * 20 if caching else 8 * 148)


def test_nobody_waits_long_for_a_prefix_that_is_slow_to_come() -> None:
    world = World(_config(max_num_seqs=4, max_num_batched_tokens=16, max_prefill_tokens=16), 256)
    shared = tuple(random.Random(3).randrange(VOCAB) for _ in range(160))
    world.add(replace(_request("first", (*shared, 1), 4), client="one"))
    world.add(replace(_request("second", (*shared, 2), 4), client="two"))
    second = world.scheduler._roster.requests["second"]
    for _ in range(4):
        world.step()
        assert second.started_at == (None if world.now <= MOST_SECONDS else 3.0)
    world.run()
    assert world.seen["second", 0].finish is FinishReason.LENGTH
