"""Counts what happens: plain numbers in plain dictionaries, cheap enough for the step loop.

The engine's thread writes its metrics, the HTTP loop's thread its own; neither writes the other's, and a reader copies
before it adds up, so no lock is needed under the GIL.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from headrace.metrics.catalogue import DRAFT_POSITIONS, Kind, catalogue
from headrace.stats import RequestStats, StepStats

HTTP_DURATION = (0.1, 0.5, 1.0)
HTTP_DURATION_FINE = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip
METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Histogram:
    """Counts of observations by bucket; the last bucket takes what is above every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """``weight`` observations of ``value``."""
        self.counts[bisect_left(self.bounds, value)] += weight
        self.total += value * weight


class Recorder:
    """Everything counted since the start. Implements the engine's recorder; ``api`` calls the rest.

    Keys of ``counters`` are (metric, label value), with "" where the metric has no label of its own.
    """

    def __init__(self, model_name: str, max_model_len: int) -> None:
        self.model_name = model_name
        self.metrics = catalogue(max_model_len)
        self.counters: dict[tuple[str, str], float] = {
            (metric.name, value): 0.0
            for metric in self.metrics
            if metric.kind is Kind.COUNTER and metric.read is None
            for value in metric.values or ("",)
        }
        self.histograms = {m.name: Histogram(m.buckets) for m in self.metrics if m.kind is Kind.HISTOGRAM}
        self.http_requests: dict[tuple[str, str, str], int] = {}
        """(method, status class, handler) → count. Handlers are route templates: a closed set."""
        self.http_durations: dict[tuple[str, str], Histogram] = {}
        self.http_duration_fine = Histogram(HTTP_DURATION_FINE)
        self.startup_phases: dict[str, float] = {}
        self.gauges = {
            (m.name, ""): 0.0 for m in self.metrics if m.kind is Kind.GAUGE and m.read is None and not m.reads
        }

    def count(self, name: str, value: float = 1, label: str = "") -> None:
        """Add to a counter of the catalogue.

        Raises:
            KeyError: the catalogue has no such counter or label value.
        """
        self.counters[name, label] += value

    def set(self, name: str, value: float) -> None:
        """Set a gauge of the catalogue that is not read from the engine."""
        self.gauges[name, ""] = value

    def on_model_loaded(self, seconds: float) -> None:
        """The model came into memory."""
        self.count("headrace:model_loads")
        self.set("headrace:model_loaded", 1)
        self.set("headrace:model_load_seconds", seconds)

    def on_model_unloaded(self) -> None:
        """The model went out of memory."""
        self.count("headrace:model_unloads")
        self.set("headrace:model_loaded", 0)

    def on_step(self, stats: StepStats) -> None:
        """One step was run."""
        histograms = self.histograms
        histograms["headrace:step_seconds"].observe(stats.duration)
        histograms["headrace:step_overhead_seconds"].observe(max(0.0, stats.duration - stats.backend_time))
        histograms["headrace:step_sequences"].observe(stats.sequences)
        histograms["vllm:iteration_tokens_total"].observe(stats.prefill_tokens + stats.decode_tokens)
        self.counters["vllm:generation_tokens", ""] += stats.generated_tokens
        for gap, weight in stats.inter_token:
            histograms["vllm:inter_token_latency_seconds"].observe(gap, weight)
        for seconds in stats.queue_times:
            histograms["vllm:request_queue_time_seconds"].observe(seconds)
        for seconds in stats.first_token_times:
            histograms["vllm:time_to_first_token_seconds"].observe(seconds)
        for drafted, accepted in stats.drafts:
            self.count("vllm:spec_decode_num_drafts")
            self.count("vllm:spec_decode_num_draft_tokens", drafted)
            self.count("vllm:spec_decode_num_accepted_tokens", accepted)
            for position in DRAFT_POSITIONS[:accepted]:
                self.count("vllm:spec_decode_num_accepted_tokens_per_pos", 1, position)

    def on_request_finished(self, stats: RequestStats) -> None:
        """The last sequence of a request ended, for whatever reason."""
        computed = stats.prompt_tokens - stats.cached_tokens
        self.count("vllm:prompt_tokens", stats.prompt_tokens)
        self.count("vllm:prompt_tokens_cached", stats.cached_tokens)
        self.count("vllm:prompt_tokens_by_source", computed, "local_compute")
        self.count("vllm:prompt_tokens_by_source", stats.cached_tokens, "local_cache_hit")
        for reason in stats.finish:
            self.count("vllm:request_success", 1, str(reason))
        generated = stats.generation_tokens or (0,)
        for tokens in generated:
            self.histograms["vllm:request_generation_tokens"].observe(tokens)
        for name, value in (
            ("vllm:e2e_request_latency_seconds", stats.e2e_time),
            ("vllm:request_prefill_time_seconds", stats.prefill_time),
            ("vllm:request_decode_time_seconds", stats.decode_time),
            ("vllm:request_inference_time_seconds", _sum(stats.prefill_time, stats.decode_time)),
            ("vllm:request_time_per_output_token_seconds", _per_token(stats.decode_time, max(generated))),
            ("vllm:request_prompt_tokens", stats.prompt_tokens),
            ("vllm:request_prefill_kv_computed_tokens", computed),
            ("vllm:request_max_num_generation_tokens", max(generated)),
            ("vllm:request_params_max_tokens", stats.max_tokens),
            ("vllm:request_params_n", stats.n),
            ("vllm:request_num_preemptions", stats.preemptions),
        ):
            if value is not None:
                self.histograms[name].observe(value)

    def on_http(self, method: str, handler: str, status: int, seconds: float) -> None:
        """One HTTP exchange ended. ``handler`` is the route's template, never the caller's path."""
        method = method if method in METHODS else "OTHER"
        key = (method, f"{status // 100}xx", handler)
        self.http_requests[key] = self.http_requests.get(key, 0) + 1
        self.http_durations.setdefault((method, handler), Histogram(HTTP_DURATION)).observe(seconds)
        self.http_duration_fine.observe(seconds)

    def on_loop_lag(self, seconds: float) -> None:
        """A timer of the HTTP loop ran this late."""
        self.histograms["headrace:event_loop_lag_seconds"].observe(seconds)

    def on_startup_phase(self, phase: str, seconds: float) -> None:
        """A phase of the start took this long. Phases are named by the program."""
        self.startup_phases[phase] = seconds


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None else first + (second or 0.0)


def _per_token(decode_time: float | None, tokens: int) -> float | None:
    return None if decode_time is None or tokens < 2 else decode_time / (tokens - 1)
