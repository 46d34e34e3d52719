"""The numbers of one step, collected while it is planned and committed."""

from __future__ import annotations

from msgspec import Struct, field

from headrace.stats import RequestStats


class Tally(Struct):
    """What happened since the scheduler was last asked; the engine turns it into `StepStats`."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    gaps: dict[float, int] = field(default_factory=dict)
    """Time of the previous token → how many sequences got their next one in this step."""
    queue_times: list[float] = field(default_factory=list)
    first_token_times: list[float] = field(default_factory=list)
    drafts: list[tuple[int, int]] = field(default_factory=list)
    """(tokens drafted, of them accepted) of each row that checked a draft."""
    finished: list[RequestStats] = field(default_factory=list)
