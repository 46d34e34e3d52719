"""Every metric, in one table.

vLLM's names and labels where vLLM has the thing (its dashboards, alerts and autoscalers then work), ``headrace:``
names where it does not. Every metric has the labels ``model_name`` and ``engine`` unless ``bare``; the other labels
have a closed set of values, all of which exist from the start, so that rates begin at 0 and no caller's string can
grow the number of series.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from msgspec import Struct, field

from headrace.stats import EngineStats


class Kind(enum.Enum):
    """Prometheus' metric types. A counter is exposed as ``name_total``."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(Struct, frozen=True):
    """One metric. ``read`` takes its value from the engine's statistics when Prometheus asks; without it the
    recorder counts. ``values`` are those of the label ``label``, if it has one beside the common ones."""

    name: str
    kind: Kind
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    read: Callable[[EngineStats], float] | None = None
    reads: Mapping[str, Callable[[EngineStats], float]] = field(default_factory=dict)
    """For a gauge with a label: one reader for each of its values."""


def one_two_five(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, … up to ``limit``: vLLM's buckets for counts of tokens."""
    found: list[float] = []
    power = 1
    while power <= limit:
        found += [power * step for step in (1, 2, 5) if power * step <= limit]
        power *= 10
    return tuple(found)


LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
INTER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
BATCH_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SHORT = (0.00001, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)

DRAFT_POSITIONS = tuple(str(position) for position in range(16))
"""Places in a draft, the first being 0: as many as ``num_speculative_tokens`` may be."""

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM


_LOAD = (
    Metric("vllm:num_requests_running", _G, "Sequences being computed.", read=lambda s: s.running),
    Metric("vllm:num_requests_waiting", _G, "Requests waiting to be computed.", read=lambda s: s.waiting),
    Metric(
        "vllm:num_requests_waiting_by_reason", _G, "Requests waiting, by reason.", "reason",
        ("capacity", "deferred"), reads={"capacity": lambda s: s.waiting, "deferred": lambda s: 0},
    ),
    Metric("vllm:kv_cache_usage_perc", _G, "Share of the KV blocks in use, 0 to 1.", read=lambda s: s.kv_usage),
    Metric(
        "vllm:engine_sleep_state", _G, "1 for the state that the engine is in.", "sleep_state",
        ("awake", "weights_offloaded", "discard_all"),
        reads={"awake": lambda s: 1, "weights_offloaded": lambda s: 0, "discard_all": lambda s: 0},
    ),
    Metric("vllm:num_preemptions", _C, "Sequences preempted.", read=lambda s: s.preemptions_total),
    Metric("vllm:prefix_cache_queries", _C, "Prompt tokens looked up.", read=lambda s: s.prefix_query_tokens_total),
    Metric("vllm:prefix_cache_hits", _C, "Prompt tokens found cached.", read=lambda s: s.prefix_hit_tokens_total),
    Metric("headrace:kv_waste_ratio", _G, "Share of KV slots that stand empty.", read=lambda s: s.kv_waste),
    Metric(
        "headrace:kv_blocks", _G, "KV blocks by state.", "state", ("used", "cached", "free"),
        reads={
            "used": lambda s: s.kv_blocks_used,
            "cached": lambda s: s.kv_blocks_cached,
            "free": lambda s: s.kv_blocks - s.kv_blocks_used - s.kv_blocks_cached,
        },
    ),
    Metric("headrace:integrity_failures", _C, "Idle checks that found the block books wrong: a bug.",
           read=lambda s: s.integrity_failures_total),
    Metric("headrace:step_failures", _C, "Steps that the backend failed.", read=lambda s: s.step_failures_total),
    Metric("headrace:stalled", _C, "Sequences ended because no step brought them a token: a bug.",
           read=lambda s: s.stalled_total),
    Metric("headrace:unsatisfied", _C, "Requests whose grammar failed midway, or that left no token to choose.",
           read=lambda s: s.unsatisfied_total),
)  # fmt: skip
"""Read from the engine when asked."""

_COUNTS = (
    Metric("vllm:prompt_tokens", _C, "Prompt tokens processed."),
    Metric("vllm:generation_tokens", _C, "Tokens generated."),
    Metric("vllm:prompt_tokens_by_source", _C, "Prompt tokens by where their KV came from.", "source",
           ("local_compute", "local_cache_hit", "external_kv_transfer")),
    Metric("vllm:prompt_tokens_cached", _C, "Prompt tokens served from the prefix cache."),
    Metric("vllm:request_success", _C, "Sequences ended, by reason.", "finished_reason", FINISH_REASONS),
    Metric("vllm:admission_rejections", _C, "Requests refused because the queue was full.", "reason",
           ("max_num_queued_reqs", "max_num_queued_tokens")),
    Metric("vllm:spec_decode_num_drafts", _C, "Drafts checked."),
    Metric("vllm:spec_decode_num_draft_tokens", _C, "Drafted tokens checked."),
    Metric("vllm:spec_decode_num_accepted_tokens", _C, "Drafted tokens that the model chose too."),
    Metric("vllm:spec_decode_num_accepted_tokens_per_pos", _C, "Accepted tokens by place in the draft.", "position",
           DRAFT_POSITIONS),
    Metric("headrace:model_loads", _C, "Times that the model came into memory after the start."),
    Metric("headrace:model_unloads", _C, "Times that the model left memory."),
    Metric("headrace:model_load_failures", _C, "Times that the model could not be loaded."),
    Metric("headrace:model_loaded", _G, "1 if the model is in memory."),
    Metric("headrace:model_load_seconds", _G, "How long loading the model took the last time."),
    Metric("headrace:access_refusals", _C, "Exchanges refused: no valid key, a key not good for it, its quota used up.",
           "reason", ("key", "scope", "quota")),
    Metric("headrace:client_disconnects", _C, "Calls whose client went away before the end."),
    Metric("headrace:slow_readers", _C, "Streams closed because their reader stalled."),
)  # fmt: skip

_TIMES = (
    Metric("vllm:e2e_request_latency_seconds", _H, "Arrival to the end.", buckets=LATENCY),
    Metric("vllm:request_queue_time_seconds", _H, "Arrival to first being computed.", buckets=LATENCY),
    Metric("vllm:request_inference_time_seconds", _H, "First being computed to the end.", buckets=LATENCY),
    Metric("vllm:request_prefill_time_seconds", _H, "First being computed to first token.", buckets=LATENCY),
    Metric("vllm:request_decode_time_seconds", _H, "First token to the end.", buckets=LATENCY),
    Metric("vllm:time_to_first_token_seconds", _H, "Arrival to first token.", buckets=FIRST_TOKEN),
    Metric("vllm:inter_token_latency_seconds", _H, "Between tokens of a sequence.", buckets=INTER_TOKEN),
    Metric("vllm:request_time_per_output_token_seconds", _H, "Mean of a request.", buckets=INTER_TOKEN),
)
"""Of a request, in seconds."""

_STEPS = (
    Metric("vllm:iteration_tokens_total", _H, "Tokens computed in a step.", buckets=BATCH_TOKENS),
    Metric("headrace:step_sequences", _H, "Sequences in a step.", buckets=BATCH_TOKENS[:-4]),
    Metric("headrace:step_seconds", _H, "A whole step.", buckets=SHORT),
    Metric("headrace:step_overhead_seconds", _H, "A step without its backend's part.", buckets=SHORT),
    Metric("headrace:event_loop_lag_seconds", _H, "How late the HTTP loop's timer ran.", buckets=SHORT),
)


def catalogue(max_model_len: int) -> tuple[Metric, ...]:
    """The whole table. Token-count buckets reach up to ``max_model_len``."""
    tokens = one_two_five(max_model_len)
    sizes = (
        Metric("vllm:request_prompt_tokens", _H, "Prompt tokens of a request.", buckets=tokens),
        Metric("vllm:request_generation_tokens", _H, "Tokens generated for a sequence.", buckets=tokens),
        Metric("vllm:request_max_num_generation_tokens", _H, "Longest sequence of a request.", buckets=tokens),
        Metric("vllm:request_params_max_tokens", _H, "max_tokens of a request.", buckets=tokens),
        Metric("vllm:request_params_n", _H, "n of a request.", buckets=(1, 2, 5, 10, 20)),
        Metric("vllm:request_prefill_kv_computed_tokens", _H, "Prompt tokens not found cached.", buckets=tokens),
        Metric("vllm:request_num_preemptions", _H, "Preemptions of a request.", buckets=(0, 1, 2, 5, 10)),
    )
    return (*_LOAD, *_COUNTS, *_TIMES, *sizes, *_STEPS)


ALIASES: Mapping[str, str] = {
    "vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "vllm:gpu_prefix_cache_queries": "vllm:prefix_cache_queries",
    "vllm:gpu_prefix_cache_hits": "vllm:prefix_cache_hits",
    "vllm:time_per_output_token_seconds": "vllm:inter_token_latency_seconds",
}
"""Older names of vLLM's that deployed dashboards still ask for."""

RETIRED_GAUGES: Mapping[str, Callable[[EngineStats], float]] = {
    "vllm:cpu_cache_usage_perc": lambda s: 0,
    "vllm:num_requests_swapped": lambda s: 0,
    "vllm:gpu_prefix_cache_hit_rate": lambda s: (
        s.prefix_hit_tokens_total / s.prefix_query_tokens_total if s.prefix_query_tokens_total else 0
    ),
}
"""Gauges that vLLM no longer has; nothing is ever swapped out here, so two of them are truly 0."""
