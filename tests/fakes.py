"""Stand-ins for a model: logits are a hash of every token id read back through the block table.

So any wrong, stale, foreign or never written block changes the text that comes out, which makes "the text is right" a
total oracle for the block bookkeeping and the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from msgspec.structs import replace

from headrace.types import (
    BLOCK_SIZE,
    Cause,
    MemoryItem,
    Plan,
    PlanRow,
    Request,
    RowResult,
    RowSampling,
    StepResult,
    TokenLogprobs,
)

VOCAB = 32
POISON = -1


def scores(context: Sequence[int]) -> list[float]:
    """The fake logits after ``context``."""
    digest = blake2b(b"".join(t.to_bytes(4) for t in context), digest_size=2 * VOCAB).digest()
    return [int.from_bytes(digest[2 * v : 2 * v + 2]) / 6553.6 for v in range(VOCAB)]


def choose(context: Sequence[int], sampling: RowSampling) -> int | None:
    """A choice that depends on all of (context, sampling) that a real one depends on. None: nothing is left."""
    logits = scores(context)
    if sampling.history:
        output = list(sampling.history[sampling.prompt_length :])
        for v in set(sampling.history):
            logits[v] /= sampling.repetition_penalty
        for v in set(output):
            logits[v] -= sampling.presence_penalty + sampling.frequency_penalty * output.count(v)
    if sampling.temperature > 0:
        noise = scores([sampling.seed % 2**31, sampling.seed >> 33, sampling.position])
        logits = [logit / sampling.temperature + n for logit, n in zip(logits, noise, strict=True)]
    for v, bias in sampling.bias.items():
        logits[v] += bias
    allowed = range(VOCAB) if sampling.allowed is None else sampling.allowed
    if sampling.mask is not None:
        allowed = [v for v in allowed if sampling.mask[v >> 3] >> (v & 7) & 1]
        if not allowed:
            return None
    best = max(allowed, key=lambda v: (logits[v], v))
    return None if logits[best] == float("-inf") else best


def logprob_of(context: Sequence[int], token: int) -> TokenLogprobs:
    """A fake logprob: a function of the whole context."""
    logits = scores(context)
    return TokenLogprobs(token, -logits[token], 1 + sum(x > logits[token] for x in logits))


class FakeBackend:
    """Keeps token ids where a real backend keeps KV. ``free_blocks``, if given, names blocks to poison at each step."""

    vocab_size = VOCAB
    kv_block_bytes = 64

    def __init__(self, num_blocks: int, free_blocks: Callable[[], Iterable[int]] = tuple) -> None:
        self._free_blocks = free_blocks
        self._slots: list[list[int]] = []
        self.steps = 0
        self.computed = 0
        self.allocate_kv(num_blocks)

    def memory(self) -> tuple[MemoryItem, ...]:
        return (MemoryItem("KV", len(self._slots) * self.kv_block_bytes),)

    def allocate_kv(self, num_blocks: int) -> None:
        self._slots = [[POISON] * BLOCK_SIZE for _ in range(num_blocks)]

    def close(self) -> None:
        pass

    def run(self, plan: Plan) -> StepResult:
        self.steps += 1
        self.computed += plan.num_tokens
        for source, destination in plan.copies:
            self._slots[destination] = list(self._slots[source])
        for block in self._free_blocks():
            self._slots[block] = [POISON] * BLOCK_SIZE
        for row in plan.rows:  # all rows write before any reads: two that write to one block are found out
            for i, token in enumerate(row.tokens, row.start):
                self._slots[row.blocks[i // BLOCK_SIZE]][i % BLOCK_SIZE] = token
        return StepResult([self._answer(row) for row in plan.rows])

    def _answer(self, row: PlanRow) -> RowResult:
        end = row.start + len(row.tokens)
        context = [t for b in row.blocks[: -(-end // BLOCK_SIZE)] for t in self._slots[b]][:end]
        if POISON in context:
            return RowResult(error="read a slot that was never written, or was freed")
        targets = tuple(logprob_of(context[: row.start + i + 1], t) for i, t in enumerate(row.targets))
        if row.embed:
            return RowResult(embedding=scores(context), target_logprobs=targets)
        if row.sampling is None:
            return RowResult(target_logprobs=targets)
        before = [_choice(context[: i - len(row.earlier)], sampling) for i, sampling in enumerate(row.earlier)]
        return replace(_choice(context, row.sampling), target_logprobs=targets, earlier=tuple(before))


def _choice(context: Sequence[int], sampling: RowSampling) -> RowResult:
    token = choose(context, sampling)
    if token is None:
        return RowResult(error="every token is banned", cause=Cause.REQUEST)
    return RowResult(token, None if sampling.logprobs is None else logprob_of(context, token))


def expected_text(request: Request, index: int, seed: int, max_model_len: int) -> list[int]:
    """What sequence ``index`` of ``request`` must say: computed alone, with no scheduler, block or batch.

    Written from the vocabulary of `SamplingParams`, not with the scheduler's own code. ``seed`` is that sequence's.
    """
    params = request.sampling
    prompt, output = list(request.prompt), list[int]()
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(params.eos_token_ids))
    while len(output) < params.max_tokens and len(prompt) + len(output) < max_model_len:
        bias = dict(params.logit_bias)
        if len(output) < params.min_tokens:
            bias |= dict.fromkeys(stops, float("-inf"))
        for word in params.bad_words:
            if len(output) >= len(word) - 1 and output[len(output) - len(word) + 1 :] == list(word[:-1]):
                bias[word[-1]] = float("-inf")
        sampling = RowSampling(
            temperature=params.temperature,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=seed,
            position=len(prompt) + len(output),
            prompt_length=len(prompt),
            history=prompt + output,
            bias=bias,
            allowed=params.allowed_token_ids,
        )
        token = choose(prompt + output, sampling)
        if token is None:
            break
        output.append(token)
        if token in stops:
            break
    return output
