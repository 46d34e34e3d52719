"""The recorder's numbers and the engine's statistics → Prometheus' text format, written by prometheus-client."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from headrace.metrics.catalogue import ALIASES, RETIRED_GAUGES, Kind, Metric
from headrace.metrics.recorder import Histogram, Recorder
from headrace.stats import EngineStats
from headrace.types import BLOCK_SIZE

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import HistogramMetricFamily
    from prometheus_client.metrics_core import Metric as Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE = "0"
"""The value of the label ``engine``: vLLM numbers its data-parallel engines, and here there is one."""


class Exposition:
    """Writes one server's metrics. prometheus-client is imported at the first scrape, not at the start."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._models: Sequence[tuple[Recorder, EngineStats]] = ()
        self._registry: CollectorRegistry | None = None

    def render(self, models: Sequence[tuple[Recorder, EngineStats]]) -> bytes:
        """The whole exposition: what was counted for each model, and its engine in numbers. May be called on any
        thread."""
        from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
        from prometheus_client.exposition import generate_latest

        with self._lock:
            if self._registry is None:
                self._registry = CollectorRegistry(auto_describe=False)
                self._registry.register(self)
                ProcessCollector(registry=self._registry)
                GCCollector(registry=self._registry)
            self._models = models
            return generate_latest(self._registry)

    def collect(self) -> Iterator[Family]:
        """Every metric family; called by prometheus-client."""
        by_name = {metric.name: metric for metric in self._recorder.metrics}
        for metric in self._recorder.metrics:
            yield self._family(metric, metric.name)
        for alias, name in ALIASES.items():
            yield self._family(by_name[name], alias)
        yield from self._retired()
        yield from self._cache_config()
        yield from self._startup()
        yield from self._http()

    def _family(self, metric: Metric, name: str) -> Family:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ["model_name", "engine", *([metric.label] if metric.label else [])]
        if metric.kind is Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(name, metric.help, labels=labels)
            for recorder, _ in self._models:
                _add(histogram, [recorder.model_name, ENGINE], recorder.histograms[metric.name])
            return histogram
        family = (CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily)(
            name, metric.help, labels=labels
        )
        for recorder, stats in self._models:
            for value in metric.values or ("",):
                own = [value] if metric.label else []
                family.add_metric([recorder.model_name, ENGINE, *own], _value(metric, value, recorder, stats))
        return family

    def _retired(self) -> Iterator[Family]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        for name, read in RETIRED_GAUGES.items():
            family = GaugeMetricFamily(name, "Kept for older dashboards.", labels=["model_name", "engine"])
            for recorder, stats in self._models:
                family.add_metric([recorder.model_name, ENGINE], read(stats))
            yield family

    def _cache_config(self) -> Iterator[Family]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        family = GaugeMetricFamily(
            "vllm:cache_config_info",
            "How the KV cache is set up.",
            labels=["model_name", "block_size", "num_gpu_blocks", "engine"],
        )
        for recorder, stats in self._models:
            family.add_metric([recorder.model_name, str(BLOCK_SIZE), str(stats.kv_blocks), ENGINE], 1)
        yield family

    def _startup(self) -> Iterator[Family]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        family = GaugeMetricFamily("headrace:startup_phase_seconds", "How long each phase took.", labels=["phase"])
        for phase, seconds in dict(self._recorder.startup_phases).items():
            family.add_metric([phase], seconds)
        yield family

    def _http(self) -> Iterator[Family]:
        from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily("http_requests", "HTTP exchanges.", labels=["method", "status", "handler"])
        for key, count in list(self._recorder.http_requests.items()):
            requests.add_metric(list(key), count)
        yield requests
        durations = HistogramMetricFamily(
            "http_request_duration_seconds", "Request to end of response.", labels=["method", "handler"]
        )
        for labels, histogram in list(self._recorder.http_durations.items()):
            _add(durations, list(labels), histogram)
        yield durations
        fine = HistogramMetricFamily("http_request_duration_highr_seconds", "The same, finer, over all handlers.")
        _add(fine, [], self._recorder.http_duration_fine)
        yield fine


def _value(metric: Metric, value: str, recorder: Recorder, stats: EngineStats) -> float:
    read = metric.reads.get(value, metric.read)
    if read is not None:
        return read(stats)
    return (recorder.gauges if metric.kind is Kind.GAUGE else recorder.counters)[metric.name, value]


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    counts, running = list(histogram.counts), 0
    buckets: list[tuple[str, float]] = []
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, counts, strict=True):
        running += count
        buckets.append((bound, running))
    family.add_metric(labels, buckets, histogram.total)
