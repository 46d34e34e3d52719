"""From what was seen of each request to the numbers of one level: pure arithmetic.

Definitions, the same as vLLM's ``bench serve``: TTFT is from sending to the first chunk that carries text; ITL is the
gap between two such chunks, as the socket gave them; TPOT is (last chunk - first chunk) / (output tokens - 1) of one
request; E2E is from sending to the end of the stream. Tokens are what the server's ``usage`` says.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct, field


class Sample(Struct):
    """One request as the client saw it; times are seconds of one monotonic clock.

    ``start`` is when it was sent, or was due to be sent under a fixed arrival rate. ``gaps`` are the times between
    consecutive chunks. ``error`` is the kind of failure ("http 429", "timeout", …) and ``detail`` its first words.
    """

    start: float
    first: float = 0.0
    last: float = 0.0
    end: float = 0.0
    chunks: int = 0
    gaps: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    error: str | None = None
    detail: str = ""


class Spread(Struct, frozen=True):
    """Mean and percentiles of a quantity, in milliseconds; NaN-free: all zero when nothing was seen."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


class LevelResult(Struct, frozen=True):
    """One level of load. Rates are over ``seconds``, from the first request sent to the last one ended."""

    label: str
    requests: int
    succeeded: int
    errors: Mapping[str, int]
    first_error: str
    seconds: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    without_usage: int
    """Successful requests whose answer told no usage: their tokens are counted as chunks, which may be fewer."""
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread
    client_cpu_s: float
    client_cpu_share: float
    """CPU seconds per second that the measuring itself took: 1.0 is one core."""
    late_ms_p99: float
    """How late the client itself sent requests that were due (fixed arrival rate)."""
    server_rss_mb: float
    """Peak resident memory of the server's process tree; 0 when no --pid was given."""

    def as_dict(self) -> dict[str, object]:
        """The JSON form."""
        found: dict[str, object] = msgspec.to_builtins(self)
        return found


def percentile(ordered: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0 to 100) of sorted values, linear between neighbours (NumPy's default); 0 for none."""
    if not ordered:
        return 0.0
    place = (len(ordered) - 1) * q / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(seconds: Iterable[float]) -> Spread:
    """Mean and percentiles, turned into milliseconds."""
    values = sorted(seconds)
    if not values:
        return Spread()
    mean = sum(values) / len(values)
    return Spread(*(round(1000 * x, 3) for x in (mean, *(percentile(values, q) for q in (50, 95, 99)))))


def summarise(
    label: str, samples: Sequence[Sample], *, cpu: float, late: Sequence[float] = (), rss_bytes: int = 0
) -> LevelResult:
    """One level's result. ``cpu`` is the client's CPU seconds; ``late`` the seconds by which it sent requests late."""
    good = [s for s in samples if s.error is None]
    seconds = max((s.end for s in samples), default=0.0) - min((s.start for s in samples), default=0.0)
    output = sum(_output_tokens(s) for s in good)
    prompt = sum(s.prompt_tokens or 0 for s in good)
    failed = [s for s in samples if s.error is not None]

    def rate(count: float) -> float:
        return round(count / seconds, 2) if seconds > 0 else 0.0

    return LevelResult(
        label=label,
        requests=len(samples),
        succeeded=len(good),
        errors=dict(Counter(s.error or "" for s in failed)),
        first_error=failed[0].detail if failed else "",
        seconds=round(seconds, 3),
        requests_per_s=rate(len(good)),
        output_tokens_per_s=rate(output),
        total_tokens_per_s=rate(output + prompt),
        prompt_tokens=prompt,
        cached_tokens=sum(s.cached_tokens for s in good),
        output_tokens=output,
        without_usage=sum(s.output_tokens is None for s in good),
        ttft_ms=spread(s.first - s.start for s in good if s.chunks),
        itl_ms=spread(gap for s in good for gap in s.gaps),
        tpot_ms=spread((s.last - s.first) / (_output_tokens(s) - 1) for s in good if _output_tokens(s) > 1),
        e2e_ms=spread(s.end - s.start for s in good),
        client_cpu_s=round(cpu, 3),
        client_cpu_share=round(cpu / seconds, 4) if seconds > 0 else 0.0,
        late_ms_p99=round(1000 * percentile(sorted(late), 99), 3),
        server_rss_mb=round(rss_bytes / 1e6, 1),
    )


def _output_tokens(sample: Sample) -> int:
    return sample.chunks if sample.output_tokens is None else sample.output_tokens
