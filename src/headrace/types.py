"""The nouns of headrace: what every room may speak of, and nothing else.

Plain frozen values. A decision travels between rooms as one of these values;
whoever receives it cannot reach back into whoever made it.

Vocabulary (docs/architecture.md holds the whole glossary): a *request* is one user call; a *sequence* is one
continuation of it (``n`` > 1 makes several); a *step* is one run of the model over a batch; a *plan* is what the
scheduler decided for one step; a *block* is a fixed run of KV slots.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from headrace.constraint import Grammar
from headrace.watermark import GreenList, Watermark

BLOCK_SIZE = 16
"""Tokens per KV block. Mean waste is half a block per sequence: 8 of 256 tokens, 3 %."""


class FinishReason(enum.StrEnum):
    """Why a sequence ended. The first two are OpenAI's words, the others vLLM's."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Cause(enum.StrEnum):
    """Whose doing it is that a sequence ended with `FinishReason.ERROR`."""

    SERVER = "server"
    DEADLINE = "deadline"
    """Its request's time was over."""
    REQUEST = "request"
    """What its request asked for cannot be followed any further: the error says why, for whoever sent it."""


class SamplingParams(Struct, frozen=True):
    """How to choose the next token, and when to end. Validated where it is made (``wire``), below the dialects.

    ``temperature`` 0 is greedy. ``top_k`` 0 keeps all tokens. ``logprobs`` and ``prompt_logprobs`` are None (off) or
    how many alternatives to report beside the chosen token (0 reports the chosen one alone).
    ``penalty_window`` is how many of the last tokens penalties look at, 0 for all.
    ``stop_token_ids`` holds what the request asked for; the model's own EOS ids are in ``eos_token_ids`` and are
    disregarded with ``ignore_eos``. ``stop`` strings are matched by ``text``, never by the engine. With a ``grammar``
    only texts of it are made; ``max_tokens`` may cut them short.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    watermark: Watermark | None = None


class Request(Struct, frozen=True):
    """One user call after parsing and tokenising: everything that the engine needs to know of it.

    ``client`` is the fairness key (who asks); ``cache_salt`` keeps prefix-cache entries of different tenants apart;
    a lower ``priority`` runs earlier (vLLM's rule); ``arrival`` and ``deadline`` are seconds of ``time.monotonic()``.
    ``embed`` asks for the prompt's embedding (the model's hidden state after its last token) instead of an answer;
    ``sampling.max_tokens`` is 0 then.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    arrival: float
    n: int = 1
    priority: int = 0
    client: str = ""
    cache_salt: str = ""
    deadline: float | None = None
    embed: bool = False


# --------------------------------------------------------------------------------------------- scheduler → backend


class RowSampling(Struct, frozen=True):
    """How a backend chooses one token at one position. Complete in itself: a backend keeps no state per sequence,
    so nothing of one request can leak into the next that takes its place in the batch.

    The choice is a pure function of (logits, this value): with ``seed`` and ``position`` keying a counter-based
    generator (Philox 4x32-10), the batch's composition cannot matter.

    ``history`` is the prompt followed by the output so far, given only when a penalty needs it; its first
    ``prompt_length`` ids are the prompt (repetition penalty counts both parts, presence and frequency the output
    alone). ``bias`` is added to the logits; ``-inf`` bans a token. ``allowed`` bans all others, and so does ``mask``, a
    bit for each token in little-endian 32-bit words (those beyond its end are banned). ``green`` raises its tokens.
    ``logprobs`` (None or the number of alternatives) are taken after penalties, bias and bans and before
    temperature, top-k, top-p and min-p (vLLM's ``raw_logprobs`` differ: they are taken before penalties).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    position: int = 0
    prompt_length: int = 0
    history: Sequence[int] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: Sequence[int] | None = None
    logprobs: int | None = None
    mask: bytes | None = None
    green: GreenList | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """True when the choice is the arg-max of the raw logits and nothing else is asked for."""
        return (
            self.temperature == 0.0
            and self.repetition_penalty == 1.0
            and self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
            and not self.bias
            and self.allowed is None
            and self.logprobs is None
            and self.mask is None
            and self.green is None
        )


GREEDY = RowSampling()
SCORED = RowSampling(logprobs=0)
"""Greedy, with the logprob of what was chosen."""


class PlanRow(Struct, frozen=True):
    """A run of consecutive tokens of one sequence, computed in one step.

    ``tokens[i]`` sits at position ``start + i``; positions before ``start`` are already in the KV cache.
    ``blocks`` is the sequence's block table: it covers at least ``start + len(tokens)`` slots.
    ``sampling`` is set when a token is to be chosen after the last of ``tokens``; None for a prefill chunk that
    does not end its prompt. ``targets`` is set when prompt logprobs are asked for: ``targets[i]`` is the token
    that follows ``tokens[i]``, whose logprob is wanted, with ``target_logprobs`` alternatives.
    ``earlier``, with ``sampling``, asks for tokens after earlier ones too: its last says how to choose after
    ``tokens[-2]``, the one before after ``tokens[-3]``, and so on. That is how drafted tokens are checked.
    ``embed``, without ``sampling``, asks for the embedding of all up to the last of ``tokens``.
    """

    sequence: int
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    sampling: RowSampling | None = None
    targets: Sequence[int] = ()
    target_logprobs: int = 0
    earlier: Sequence[RowSampling] = ()
    embed: bool = False


class Plan(Struct, frozen=True):
    """What the scheduler decided for one step: block copies first (copy-on-write), then the rows."""

    rows: tuple[PlanRow, ...]
    copies: tuple[tuple[int, int], ...] = ()
    """(source block, destination block) pairs, applied in order before any row is computed."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if not row.tokens:
                raise ValueError(f"sequence {row.sequence}: a plan row has no tokens")
            if len(row.blocks) * BLOCK_SIZE < row.start + len(row.tokens):
                raise ValueError(f"sequence {row.sequence}: {len(row.blocks)} blocks do not cover its tokens")
            if row.targets and len(row.targets) > len(row.tokens):
                raise ValueError(f"sequence {row.sequence}: more targets than tokens")
            if row.earlier and (row.sampling is None or len(row.earlier) >= len(row.tokens)):
                raise ValueError(f"sequence {row.sequence}: more choices than tokens, or none after the last")

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step, over all rows."""
        return sum(len(row.tokens) for row in self.rows)


class TokenLogprobs(Struct, frozen=True):
    """The logprob of one token and its rank (1 = most likely), with the most likely alternatives, best first."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class RowResult(Struct, frozen=True):
    """What a step gave for one plan row: the chosen token (None if none was asked for), or why the row failed.

    ``target_logprobs`` has one entry for each of the row's ``targets``. A row with an ``error`` (a NaN logit, say)
    ends its own request only. ``earlier`` has one result for each of the row's ``earlier``, each with its own error.
    """

    token: int | None = None
    logprobs: TokenLogprobs | None = None
    target_logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None
    earlier: tuple[RowResult, ...] = ()
    embedding: Sequence[float] | None = None
    """The hidden state of the row's last token after the final norm, not normalised to length 1."""
    cause: Cause = Cause.SERVER
    """Of the error. ``REQUEST``: bias, allowed ids and mask leave no token to choose."""


class StepResult(Struct, frozen=True):
    """One result for each row of the plan, in the plan's order."""

    rows: Sequence[RowResult]


# ------------------------------------------------------------------------------------------------ engine → listener


class TokenEvent(Struct, frozen=True):
    """Something that happened to one sequence in one step.

    The first event of a sequence carries ``cached_tokens`` (prompt tokens served from the prefix cache), ``queue_time``
    (seconds from the request's arrival to its first being planned) and ``prompt_logprobs`` (None for the first token,
    which nothing precedes) if they were asked for. The last one, and only it, carries ``finish``, with ``error`` and
    its ``cause`` if that is ERROR. An EOS or stop token that ends the sequence is in ``tokens``: it was generated and
    is counted; ``text`` leaves it out of what people read. ``stop_token`` names it.
    """

    request_id: str
    index: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    stop_token: int | None = None
    error: str | None = None
    cached_tokens: int | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    queue_time: float | None = None
    embedding: Sequence[float] | None = None
    cause: Cause = Cause.SERVER


class MemoryItem(Struct, frozen=True):
    """One line of the memory plan."""

    name: str
    bytes: int


class MemoryPlan(Struct, frozen=True):
    """Where the memory goes: what there is, what each part takes, how many KV blocks fit, and what to do if few do."""

    limit: int
    items: tuple[MemoryItem, ...]
    kv_blocks: int
    kv_block_bytes: int
    suggestion: str | None = None

    @property
    def left(self) -> int:
        """Bytes of the limit that nothing takes."""
        return self.limit - sum(item.bytes for item in self.items)
