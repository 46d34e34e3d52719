"""How much one step may hold."""

from __future__ import annotations

from msgspec import Struct

from headrace.errors import ConfigError


class SchedulerConfig(Struct, frozen=True):
    """How much one step may hold, in sequences and tokens.

    Raises:
        ConfigError: a value is out of its limits, or two do not go together.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_prefill_tokens: int = 512
    """Prefill units (see `pace`) in a step that also decodes, or while several clients are about; fewer if they would
    take longer than ``prefill_seconds``, and than half as long again as the step's decoding. Both bound the gap between
    two tokens of whoever is being answered, and the wait of whoever comes next."""
    prefill_seconds: float = 0.06
    context_unit: float = 1000.0
    """Positions of context that cost a token's attention as much as all its linear layers: a number of the model."""
    short_share: float = 0.25
    """Part of a step's prefill budget that a long prompt leaves to short ones behind it."""

    newcomer_share: float = 1 / 16
    """Part of the seats and of the blocks that is kept for clients with nothing running, while several are about."""

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ConfigError(f"max_num_seqs is {self.max_num_seqs}, and must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, and must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence computes one token in a step"
            )
        if self.max_prefill_tokens < 1:
            raise ConfigError(f"max_prefill_tokens is {self.max_prefill_tokens}, and must be at least 1")
        if self.prefill_seconds <= 0 or self.context_unit <= 0:
            raise ConfigError("prefill_seconds and context_unit must be above 0")
        if not (0.0 <= self.short_share < 1.0 and 0.0 <= self.newcomer_share < 1.0):
            raise ConfigError("short_share and newcomer_share must be at least 0 and less than 1")
