"""Live requests and sequences: the scheduler's memory between steps."""

from __future__ import annotations

from array import array

from headrace.kvcache.cache import Lease
from headrace.kvcache.prefix import BlockKeys
from headrace.scheduler.admission import end_of
from headrace.scheduler.sampling import SamplingRule, derive_seed, stop_token_ids
from headrace.stats import RequestStats
from headrace.types import FinishReason, Request, TokenLogprobs


class RequestState:
    """What the sequences of one request have in common."""

    __slots__ = (
        "cached_tokens",
        "end",
        "finish",
        "first_token_at",
        "generated",
        "lead",
        "order",
        "preemptions",
        "prompt_logprobs",
        "request",
        "seed",
        "sequences",
        "started_at",
        "stops",
    )

    def __init__(self, request: Request, order: int, seed: int, max_model_len: int) -> None:
        self.request = request
        self.order = order
        """Its place in the order of arrival."""
        self.seed = seed
        self.end = end_of(request, max_model_len)
        """Tokens, prompt included, at which its sequences end."""
        self.stops = stop_token_ids(request.sampling)
        self.sequences: dict[int, SequenceState] = {}
        """By index. At first only the one that computes the prompt, then all that have not ended."""
        self.lead: SequenceState | None = None
        """The sequence that computes the prompt for all, until it ends."""
        self.finish: list[FinishReason | None] = [None] * request.n
        self.generated = [0] * request.n
        self.cached_tokens: int | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []
        """One for each prompt token after the first, as far as computed."""
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.preemptions = 0

    def stats(self, now: float) -> RequestStats:
        """The request in numbers, all its sequences having ended."""
        arrival, started, first = self.request.arrival, self.started_at, self.first_token_at
        return RequestStats(
            finish=tuple(reason for reason in self.finish if reason is not None),
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens or 0,
            generation_tokens=tuple(self.generated),
            max_tokens=self.request.sampling.max_tokens,
            preemptions=self.preemptions,
            e2e_time=now - arrival,
            prefill_time=None if started is None or first is None else first - started,
            decode_time=None if first is None else now - first,
        )


class SequenceState:
    """One continuation of a request. ``num_computed`` catches up with ``len(tokens)``; there is no other state.

    A sequence without a lease waits; one with a lease runs. It is *behind* until a token has been chosen after its
    last one was computed; from then on each step computes one token and chooses one.
    """

    __slots__ = (
        "announced",
        "fruitless",
        "id",
        "index",
        "keys",
        "last_token_at",
        "lease",
        "matcher",
        "num_computed",
        "order",
        "owner",
        "rule",
        "tokens",
    )

    def __init__(self, owner: RequestState, index: int, sequence_id: int, keys: BlockKeys) -> None:
        request = owner.request
        self.id = sequence_id
        self.owner = owner
        self.tokens: array[int] = array("i", request.prompt)
        self.num_computed = 0
        self.lease: Lease | None = None
        self.keys = keys
        self.announced = False
        """Its first event has been made."""
        self.last_token_at = 0.0
        self.fruitless = 0
        """Tokens computed since it last got one of its own."""
        self.become(index)

    def become(self, index: int) -> None:
        """Be the request's ``index``-th sequence. For one that has chosen no token yet."""
        owner, request = self.owner, self.owner.request
        self.index = index
        self.order = (request.priority, owner.order, index)
        """Its rank: the lowest is served first, the highest preempted first."""
        params = request.sampling
        self.matcher = None if params.grammar is None else params.grammar.matcher()
        self.rule = SamplingRule(params, derive_seed(owner.seed, index), len(request.prompt), self.matcher)
        owner.sequences[index] = self

    @property
    def remaining(self) -> int:
        """Tokens that are yet to be computed."""
        return len(self.tokens) - self.num_computed

    @property
    def room(self) -> int:
        """Tokens that its blocks have room for."""
        return 0 if self.lease is None else self.lease.capacity

    @property
    def wants_prompt_logprobs(self) -> bool:
        """It computes its request's prompt logprobs: the whole prompt then, with no help from the prefix cache."""
        owner = self.owner
        return owner.lead is self and not self.announced and owner.request.sampling.prompt_logprobs is not None

    @property
    def computed_prompt(self) -> Lease | None:
        """The lease in which another sequence of the request has the prompt computed; None once there is no use for it.

        Blocks of a sequence that is behind again, after a preemption, are of no use either.
        """
        lead = self.owner.lead
        if lead is None or lead is self or self.announced or lead.num_computed < len(self.tokens) - 1:
            return None
        return lead.lease
