"""A `Plan` as the flat arrays of the native ABI, and the native results as a `StepResult`.

The arrays are kept from step to step: a plain greedy decode row costs a few list appends on the way in and one
dictionary look-up on the way out.
"""

from __future__ import annotations

import ctypes
import struct
from array import array

from msgspec.structs import replace

from headrace.backends.cpu.abi import (
    ALL_BANNED,
    WANT_EMBEDDING,
    WANT_GREEDY,
    WANT_NOTHING,
    BatchStruct,
    ResultStruct,
    sampling_error,
)
from headrace.types import GREEDY, SCORED, Cause, Plan, PlanRow, RowResult, RowSampling, StepResult, TokenLogprobs

_SAMPLING = struct.Struct("@6d2Q2iP2i2P2i2PQdIi")
"""``hr_sampling`` (native/sampler.h), field for field."""

_ROW_FIELDS, _WANT = 9, 5
"""Numbers in ``hr_row``, and which of them is ``want``."""

_NOTHING = RowResult()
_KEPT_RESULTS = 8192
"""Results of plain rows kept for reuse: they are immutable and differ in their token only."""


class Batch:
    """The buffers of one model's steps. `fill` then the native call then `results`."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        self.batch = BatchStruct()
        self.result = ResultStruct()
        self._vocab_size = vocab_size
        self._hidden_size = hidden_size
        self._rows = array("i")
        self._tokens = array("i")
        self._blocks = array("i")
        self._copies = array("i")
        self._targets = array("i")
        self._choices = array("i")
        self._samplings = bytearray()
        self._scored = b""  # SCORED, packed
        self._kept: list[array[int] | array[float]] = []  # what samplings point to
        self._integers = array("i")
        self._floats = array("f")
        self._tops = 0
        self._embeddings = array("f")
        self._embedded = 0
        self._plain: dict[int, RowResult] = {}

    def fill(self, plan: Plan) -> None:
        """Write the plan into the buffers and point the structures at them."""
        rows, tokens, blocks, targets = self._rows, self._tokens, self._blocks, self._targets
        del rows[:], tokens[:], blocks[:], targets[:], self._choices[:]
        self._samplings.clear()
        self._kept.clear()
        self._tops = 0
        samplings, drafted, self._embedded = 0, False, 0
        for row in plan.rows:
            sampling = row.sampling
            if sampling is None:
                want = WANT_EMBEDDING if row.embed else WANT_NOTHING
                self._embedded += row.embed
            elif row.earlier:
                want = WANT_GREEDY if _is_plain(row) else samplings
                drafted = True
            elif sampling is GREEDY or sampling.is_plain_greedy:
                want = WANT_GREEDY
            else:
                want = samplings
            if want >= 0 and sampling is not None:
                samplings += 1 + len(row.earlier)
                for each in row.earlier:
                    self._add_sampling(each)
                self._add_sampling(sampling)
            place = len(tokens), len(row.tokens), row.start, len(blocks), len(row.blocks)
            rows.extend((*place, want, len(targets), len(row.targets), row.target_logprobs))
            tokens.extend(row.tokens)
            blocks.extend(row.blocks)
            if row.targets:
                targets.extend(row.targets)
        self._tops += sum(len(row.targets) * row.target_logprobs for row in plan.rows if row.targets)
        self._copies = array("i", [block for pair in plan.copies for block in pair])
        if drafted:
            self._choices.extend([1 + len(row.earlier) for row in plan.rows])
        self._point(len(plan.rows), len(plan.copies), samplings)

    def _add_sampling(self, s: RowSampling) -> None:
        if s is SCORED and self._scored:
            self._samplings += self._scored
            return
        bias = sorted(s.bias.items()) if s.bias else ()
        self._samplings += _SAMPLING.pack(
            s.temperature,
            s.top_p,
            s.min_p,
            s.repetition_penalty,
            s.presence_penalty,
            s.frequency_penalty,
            s.seed & 0xFFFFFFFFFFFFFFFF,
            s.position,
            s.top_k,
            -1 if s.logprobs is None else s.logprobs,
            self._keep(array("i", s.history)) if s.history else 0,
            len(s.history),
            s.prompt_length,
            self._keep(array("i", [token for token, _ in bias])) if bias else 0,
            self._keep(array("d", [value for _, value in bias])) if bias else 0,
            len(bias),
            -1 if s.allowed is None else len(s.allowed),
            self._keep(array("i", s.allowed)) if s.allowed else 0,
            0 if s.mask is None else self._keep(array("B", s.mask)),
            *((0, 0.0, 0) if s.green is None else (s.green.seed, s.green.delta, s.green.below)),
            0 if s.mask is None else len(s.mask) // 4,
        )
        self._tops += s.logprobs or 0
        if s is SCORED:
            self._scored = bytes(self._samplings[-_SAMPLING.size :])

    def _keep(self, values: array[int] | array[float]) -> int:
        if not values:
            return 0
        self._kept.append(values)
        return values.buffer_info()[0]

    def _point(self, num_rows: int, num_copies: int, samplings: int) -> None:
        entries = samplings + len(self._targets)
        choices = sum(self._choices) or num_rows
        integers, floats = 2 * choices + 4 * entries + self._tops, entries + self._tops
        if len(self._integers) < integers:
            self._integers = array("i", bytes(8 * integers))
        if len(self._floats) < floats:
            self._floats = array("f", bytes(8 * floats))
        if len(self._embeddings) < self._embedded * self._hidden_size:
            self._embeddings = array("f", bytes(4 * self._embedded * self._hidden_size))
        b = self.batch
        b.rows = self._rows.buffer_info()[0]
        b.tokens = self._tokens.buffer_info()[0]
        b.blocks = self._blocks.buffer_info()[0]
        b.copies = self._copies.buffer_info()[0]
        b.targets = self._targets.buffer_info()[0]
        b.samplings = ctypes.addressof(ctypes.c_char.from_buffer(self._samplings)) if samplings else None
        b.num_rows, b.num_tokens, b.num_blocks = num_rows, len(self._tokens), len(self._blocks)
        b.num_copies, b.num_targets, b.num_samplings = num_copies, len(self._targets), samplings
        b.num_choices = self._choices.buffer_info()[0] if self._choices else None
        r = self.result
        at = self._integers.buffer_info()[0]
        r.row_token, r.row_status = at, at + 4 * choices
        at += 8 * choices
        r.token, r.status, r.rank, r.top_count = (at + 4 * entries * i for i in range(4))
        r.top_ids = at + 16 * entries
        at = self._floats.buffer_info()[0]
        r.logprob, r.top_logprobs = at, at + 4 * entries
        r.embeddings = self._embeddings.buffer_info()[0]

    def results(self, plan: Plan) -> StepResult:
        """What the native call wrote, one result for each row of the plan that was filled in."""
        results = self._results(plan)
        return StepResult(self._with_embeddings(plan, results) if self._embedded else results)

    def _results(self, plan: Plan) -> list[RowResult]:
        n = sum(self._choices) or len(plan.rows)
        samplings = self.batch.num_samplings
        if not samplings and not self._targets and not self._choices:
            plain = zip(plan.rows, self._integers[:n], self._integers[n : 2 * n], strict=True)
            return [self._plain_result(row, token, status) for row, token, status in plain]
        reader = _EntryReader(self._integers[2 * n :], self._floats, samplings + len(self._targets))
        tokens = zip(self._integers[:n], self._integers[n : 2 * n], strict=True)
        results: list[RowResult] = []
        for row, want in zip(plan.rows, self._rows[_WANT::_ROW_FIELDS], strict=True):
            found = [self._plain_result(row, *next(tokens)) for _ in range(1 + len(row.earlier))]
            if want >= 0 and row.sampling is not None:
                found = [reader.next(sampling.logprobs) for sampling in (*row.earlier, row.sampling)]
            results.append(replace(found[-1], earlier=tuple(found[:-1])) if row.earlier else found[-1])
        if not self._targets:
            return results
        return [reader.with_targets(row, result) for row, result in zip(plan.rows, results, strict=True)]

    def _with_embeddings(self, plan: Plan, results: list[RowResult]) -> list[RowResult]:
        size, begin, choice = self._hidden_size, 0, sum(self._choices) or len(plan.rows)  # statuses follow the tokens
        for i, row in enumerate(plan.rows):
            choice += 1 + len(row.earlier)
            if row.embed:
                status = self._integers[choice - 1]
                error = sampling_error(status) if status else None
                results[i] = RowResult(embedding=self._embeddings[begin : begin + size], error=error)
                begin += size
        return results

    def _plain_result(self, row: PlanRow, token: int, status: int) -> RowResult:
        if row.sampling is None:
            return _NOTHING
        if status:
            return RowResult(error=sampling_error(status))
        result = self._plain.get(token)
        if result is None:
            if len(self._plain) >= _KEPT_RESULTS:
                self._plain.clear()
            result = self._plain[token] = RowResult(token=token)
        return result


def _is_plain(row: PlanRow) -> bool:
    """Whether each of the row's choices is the arg-max of the raw logits."""
    samplings = (*row.earlier, row.sampling)
    return all(each is GREEDY or (each is not None and each.is_plain_greedy) for each in samplings)


class _EntryReader:
    """Reads the entries of a native result in order: samplings first, then targets."""

    def __init__(self, integers: array[int], floats: array[float], entries: int) -> None:
        self._integers, self._floats, self._entries = integers, floats, entries
        self._entry = 0
        self._top = 0

    def next(self, tops: int | None) -> RowResult:
        """The next entry, which asked for ``tops`` alternatives; None: for no logprobs at all."""
        n, e = self._entries, self._entry
        token, status, rank, count = self._integers[e], *(self._integers[e + n * i] for i in (1, 2, 3))
        begin = self._top
        self._entry += 1
        self._top += tops or 0
        if status:
            cause = Cause.REQUEST if status == ALL_BANNED else Cause.SERVER
            return RowResult(error=sampling_error(status), cause=cause)
        if tops is None:
            return RowResult(token=token)
        if not count:
            return RowResult(token, TokenLogprobs(token, self._floats[e], rank))
        ids = self._integers[4 * n + begin : 4 * n + begin + count]
        logprobs = self._floats[n + begin : n + begin + count]
        top = tuple(zip(ids, logprobs, strict=True))
        return RowResult(token, TokenLogprobs(token, self._floats[e], rank, top))

    def with_targets(self, row: PlanRow, result: RowResult) -> RowResult:
        """The row's result with the logprobs of its targets, which are the next entries."""
        if not row.targets:
            return result
        entries = [self.next(row.target_logprobs) for _ in row.targets]
        errors = [entry.error for entry in entries if entry.error]
        if errors:
            return RowResult(error=result.error or errors[0], earlier=result.earlier, cause=result.cause)
        targets = tuple(entry.logprobs for entry in entries if entry.logprobs)
        return replace(result, target_logprobs=targets)
