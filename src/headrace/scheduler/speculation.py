"""Speculative decoding without loss: drafted tokens are computed beside the last one, and the model's own choices rule.

A step computes the last token of a sequence and a draft of the next ones, and chooses a token after each of them, with
exactly the sampling that each position would have had. Since a choice is a pure function of (logits, sampling), and
logits do not depend on how tokens were cut into steps, the choices are the right ones for as long as the draft agrees
with them; the first that disagrees is itself the right next token. So the text is the same, bit for bit, greedy or
sampled, with speculation or without, and nothing need be rejected at random.

How long drafts are is decided by what they bring (`Odds`) and what they cost (`Cost`), in tokens and time.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

from msgspec import Struct

from headrace.errors import ConfigError
from headrace.kvcache.cache import KVCache, blocks_for
from headrace.scheduler.drafting import Drafter
from headrace.scheduler.state import SequenceState
from headrace.types import PlanRow, RowResult

MOST_TOKENS = 16
"""Longest draft that can be asked for."""


class SpeculationConfig(Struct, frozen=True):
    """How far speculation may go.

    Raises:
        ConfigError: a value is out of its limits.
    """

    num_tokens: int = 15
    """Longest draft: with the token before it, the rows of one matrix tile."""
    max_rows: int = 16
    """Tokens, drafts among them, of a step that speculates. In larger ones computing a token has its price."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= MOST_TOKENS:
            raise ConfigError(f"num_speculative_tokens is {self.num_tokens}, and must be from 1 to {MOST_TOKENS}")
        if self.max_rows < 2:
            raise ConfigError(f"max_rows is {self.max_rows}, and must be at least 2")


def accepted(row: PlanRow, answer: RowResult, stops: Collection[int]) -> list[RowResult]:
    """The choices of a row that count: up to the first that differs from the draft, failed, or ends the sequence."""
    kept: list[RowResult] = []
    for choice, draft in zip(answer.earlier, row.tokens[-len(row.earlier) :], strict=True):
        kept.append(choice)
        if choice.token != draft or draft in stops:
            return kept
    return [*kept, answer]


def best_length(chance: float, cost: float, most: int) -> int:
    """The draft length with the most tokens per time, when each drafted token is right with ``chance`` if the one
    before it was, and costs ``cost`` of a step without drafts: (1 + chance + chance² + …) / (1 + cost · length)."""
    length, tokens, power = 0, 1.0, chance
    while length < most and power * (1.0 + cost * length) > cost * tokens:
        length += 1
        tokens += power
        power *= chance
    return length


class Odds:
    """How one sequence's drafts have done of late, and how long its next should be.

    Where they do not pay, none are made for a while; then one of a single token tries again.
    """

    __slots__ = ("_hits", "_pause", "_rest", "_tries", "length")

    _MEMORY = 0.75
    """What is left of a draft's weight one draft later."""
    _PAUSES = (32, 256)
    """Steps without drafts: at first, and at most."""

    def __init__(self) -> None:
        self._hits, self._tries = 1.0, 2.0
        self._pause, self._rest = self._PAUSES[0], 0
        self.length = 2
        """Of the next draft; 0: none."""

    def skip(self) -> None:
        """A step without a draft, the length being 0."""
        self._rest -= 1
        if self._rest <= 0:
            self.length = 1

    def learn(self, drafted: int, right: int, cost: float) -> None:
        """``right`` of ``drafted`` tokens were accepted; a token costs ``cost`` of a step."""
        self._hits = self._MEMORY * self._hits + right
        self._tries = self._MEMORY * self._tries + right + (right < drafted)
        self.length = best_length(self._hits / self._tries, cost, MOST_TOKENS)
        if self.length:
            self._pause = self._PAUSES[0]
        else:
            self._rest, self._pause = self._pause, min(2 * self._pause, self._PAUSES[1])


class Cost:
    """What a drafted token costs, as a share of a step without drafts: learned from how long steps take."""

    _RATE = 0.2
    _UNKNOWN = 0.1
    _LIMITS = (0.01, 1.0)
    _FRESH = 64
    """Steps with drafts after which one without is due."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds of a step without drafts, by sequences
        self._cost: dict[int, float] = {}
        self._since: dict[int, int] = {}  # steps with drafts since the last one without

    def of(self, sequences: int) -> float:
        """Of one token in a step of so many sequences."""
        return self._cost.get(sequences, self._UNKNOWN)

    def needs_plain(self, sequences: int) -> bool:
        """Whether a step of so many sequences should do without drafts, to compare with."""
        return sequences not in self._plain or self._since.get(sequences, 0) >= self._FRESH

    def learn(self, sequences: int, drafted: int, seconds: float) -> None:
        """A step of ``sequences`` decoding sequences with ``drafted`` tokens in all took so long."""
        plain = self._plain.get(sequences, 0.0)
        self._since[sequences] = self._since.get(sequences, 0) + 1 if drafted else 0
        if not drafted:
            step = min(seconds, 2 * plain) if plain else seconds  # one that was held up says little
            self._plain[sequences] = plain + self._RATE * (step - plain) if plain else step
        elif plain:
            low, high = self._LIMITS
            seen = min(max((seconds / plain - 1.0) / drafted, low), high)
            cost = self.of(sequences)
            self._cost[sequences] = cost + self._RATE * (seen - cost)


class Speculation:
    """Puts drafts into steps that only decode, and learns from what becomes of them."""

    def __init__(self, drafter: Drafter, config: SpeculationConfig | None = None) -> None:
        self.config = config or SpeculationConfig()
        self._drafter = drafter
        self._costs = Cost()
        self._odds: dict[int, Odds] = {}
        self._step: tuple[int, int, float] | None = None
        """Of the step that was planned last: sequences, drafted tokens, when. None if it says nothing of costs."""

    def plan(
        self, sequences: Sequence[SequenceState], rows: list[PlanRow], cache: KVCache, max_tokens: int, now: float
    ) -> list[PlanRow]:
        """The ``rows`` of all decoding ``sequences``, one token each, with drafts where they pay.

        The step may hold ``max_tokens`` tokens. Drafts take only blocks that nobody will miss soon.
        """
        drafted = 0
        limit = min(max_tokens, self.config.max_rows) - len(rows)
        if limit >= len(rows):
            wanted = self._wanted(sequences, limit // len(rows))
            drafts = self._drafter.propose(wanted)
            rows = [
                _with_draft(row, sequence, draft, cache, spare=len(rows)) if draft else row
                for row, sequence, draft in zip(rows, sequences, drafts, strict=True)
            ]
            drafted = sum(len(row.earlier) for row in rows)
            if not drafted and self._drafter.costs_time and any(most for _, most in wanted):
                self._step = None  # a step without drafts, but not without drafting
                return rows
        self._step = (len(rows), drafted, now) if limit > 0 else None
        return rows

    def stand_by(self) -> None:
        """The step that is planned now does more than decode."""
        self._step = None

    def ran(self, now: float) -> None:
        """The step that was planned last has been computed."""
        if self._step is not None:
            sequences, drafted, begin = self._step
            self._costs.learn(sequences, drafted, now - begin)

    def learn(self, sequence: SequenceState, drafted: int, right: int) -> None:
        """Of ``drafted`` tokens of the last step, ``right`` were."""
        odds = self._odds.get(sequence.id)
        if odds is not None and self._step is not None:
            odds.learn(drafted, right, self._costs.of(self._step[0]))

    def _wanted(self, sequences: Sequence[SequenceState], share: int) -> list[tuple[SequenceState, int]]:
        """How long a draft each sequence should have. None reaches its end: one more token is chosen after it."""
        known = self._odds
        if len(known) > len(sequences):
            self._odds = known = {s.id: known[s.id] for s in sequences if s.id in known}
        most = 0 if self._costs.needs_plain(len(sequences)) else min(share, self.config.num_tokens)
        wanted = []
        for sequence in sequences:
            odds = known.get(sequence.id)
            if odds is None:
                odds = known[sequence.id] = Odds()
            if not odds.length:
                odds.skip()
            left = sequence.owner.end - len(sequence.tokens) - 1
            if sequence.matcher is not None:
                left = 0  # which tokens may come is known for the next one alone
            wanted.append((sequence, min(odds.length, most, left)))
        return wanted


def _with_draft(row: PlanRow, sequence: SequenceState, draft: Sequence[int], cache: KVCache, spare: int) -> PlanRow:
    """The row with as much of the draft as there is room for, taking blocks only while more than ``spare`` are left."""
    lease, tokens = sequence.lease, sequence.tokens
    if lease is None:
        return row
    end = len(tokens) + len(draft)
    missing = blocks_for(end) - len(lease.blocks)
    if missing > 0 and (cache.available - missing < spare or not cache.grow(lease, end)):
        draft = draft[: lease.capacity - len(tokens)]
    if not draft:
        return row
    context = tokens + array("i", draft)
    first = len(tokens)
    *earlier, last = [sequence.rule.at(context, n) for n in range(first, len(context) + 1)]
    return PlanRow(row.sequence, context[first - 1 :], row.start, row.blocks, last, earlier=earlier)
