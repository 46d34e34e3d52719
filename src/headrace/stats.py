"""The engine in numbers: what it tells metrics and health. Plain frozen data."""

from __future__ import annotations

from msgspec import Struct

from headrace.types import BLOCK_SIZE, FinishReason


class StepStats(Struct, frozen=True):
    """What one step of the engine did, as numbers. Times are seconds.

    ``inter_token`` groups the step's gaps between consecutive tokens of a sequence: (gap, how many sequences had
    it), so that a step of 128 sequences in lock-step is one observation of weight 128. ``queue_times`` (arrival to
    first being planned) and ``first_token_times`` (arrival to first token) have one entry for each request for which
    that happened in this step.
    """

    duration: float
    """Schedule, run and commit together."""
    backend_time: float
    """The backend's share of ``duration``; the rest is Python's overhead."""
    sequences: int
    """Rows of the plan."""
    prefill_tokens: int
    """Tokens computed in rows that were catching up with their prompt (or with a preempted past)."""
    decode_tokens: int
    """Tokens computed in rows that had one token to compute."""
    generated_tokens: int
    """Tokens chosen, over all sequences."""
    preemptions: int
    failed: bool = False
    """The backend raised: the step's requests ended with an error."""
    inter_token: tuple[tuple[float, int], ...] = ()
    queue_times: tuple[float, ...] = ()
    first_token_times: tuple[float, ...] = ()
    drafts: tuple[tuple[int, int], ...] = ()
    """(tokens drafted, of them accepted) of each row that checked a draft."""


class RequestStats(Struct, frozen=True):
    """One request, after its last sequence ended. Times are seconds and None where that stage was not reached.

    ``time_to_first_token`` and ``queue_time`` repeat what `StepStats` reported when it happened, for logs; a
    recorder that feeds histograms takes each from one place only.
    """

    finish: tuple[FinishReason, ...]
    """One for each sequence, by index."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens served from the prefix cache."""
    generation_tokens: tuple[int, ...]
    """One for each sequence, by index."""
    max_tokens: int
    preemptions: int
    e2e_time: float
    """Arrival to the end."""
    prefill_time: float | None = None
    """First being planned to first token."""
    decode_time: float | None = None
    """First token to the end."""

    @property
    def n(self) -> int:
        """How many sequences the request had."""
        return len(self.finish)


class EngineStats(Struct, frozen=True):
    """A snapshot of the engine for gauges and counters. Counters (``*_total``) only grow."""

    running: int = 0
    """Sequences that hold KV blocks."""
    waiting: int = 0
    """Sequences that hold none: they wait for their first step, or for blocks after a preemption."""
    kv_blocks: int = 0
    """All blocks of the pool."""
    kv_blocks_used: int = 0
    """Blocks that a sequence holds."""
    kv_blocks_cached: int = 0
    """Blocks that no sequence holds and that the prefix index keeps: given out again when needed."""
    kv_blocks_touched: int = 0
    """Blocks that were ever given out: the memory of the others is only reserved."""
    kv_slots_wasted: int = 0
    """Slots of used blocks that hold no token: allocated minus used."""
    prefix_query_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    preemptions_total: int = 0
    integrity_failures_total: int = 0
    """Times the idle integrity check found the block books wrong. Anything but 0 is a bug."""
    step_failures_total: int = 0
    """Steps in which the backend raised."""
    stalled_total: int = 0
    """Sequences that were computed again and again without getting a token. Anything but 0 is a bug."""
    unsatisfied_total: int = 0
    """Requests whose grammar failed midway, or that left no token to choose."""

    @property
    def kv_usage(self) -> float:
        """Share of the pool's blocks that sequences hold, from 0 to 1."""
        return self.kv_blocks_used / self.kv_blocks if self.kv_blocks else 0.0

    @property
    def kv_waste(self) -> float:
        """Share of the allocated slots that hold no token, from 0 to 1."""
        return self.kv_slots_wasted / (self.kv_blocks_used * BLOCK_SIZE) if self.kv_blocks_used else 0.0


class Health(Struct, frozen=True):
    """Whether the step loop turns (``live``) and whether new requests are taken (``ready``); ``detail`` says why not.

    ``heartbeat_age`` is the seconds since the loop last turned; 0 when it is idle.
    """

    live: bool
    ready: bool
    detail: str = ""
    heartbeat_age: float = 0.0
