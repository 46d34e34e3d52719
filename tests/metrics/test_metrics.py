"""The recorder counts exactly, and the exposition is what vLLM's dashboards ask for."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.metrics import Exposition, Recorder
from headrace.metrics.catalogue import ALIASES, Kind, catalogue
from headrace.metrics.recorder import Histogram
from headrace.stats import EngineStats, RequestStats, StepStats
from headrace.types import FinishReason

STATS = EngineStats(
    running=3, waiting=2, kv_blocks=100, kv_blocks_used=25, kv_blocks_cached=10, kv_slots_wasted=40,
    prefix_query_tokens_total=80, prefix_hit_tokens_total=20, preemptions_total=4, integrity_failures_total=0,
)  # fmt: skip
COMMON = {"model_name": "m", "engine": "0"}


def samples(recorder: Recorder, stats: EngineStats = STATS) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = Exposition(recorder).render([(recorder, stats)]).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset((COMMON | labels).items())]


def recorder_after_traffic() -> Recorder:
    recorder = Recorder("m", 8192)
    recorder.on_step(StepStats(0.010, 0.008, 3, 100, 2, 3, 0, False, ((0.02, 2), (0.5, 1)), (0.1,), (0.004, 0.2)))
    recorder.on_step(StepStats(0.020, 0.015, 3, 0, 3, 3, 1, drafts=((4, 2), (3, 0), (2, 2))))
    recorder.on_request_finished(
        RequestStats(
            finish=(FinishReason.STOP, FinishReason.LENGTH), prompt_tokens=100, cached_tokens=32,
            generation_tokens=(5, 11), max_tokens=11, preemptions=1, e2e_time=1.2, prefill_time=0.2,
            decode_time=1.0,
        )
    )  # fmt: skip
    recorder.on_request_finished(RequestStats((FinishReason.ABORT,), 50, 0, (0,), 10, 0, 0.5))
    return recorder


def test_counters_are_exact() -> None:
    found = samples(recorder_after_traffic())
    expected = {
        ("vllm:prompt_tokens_total", ""): 150,
        ("vllm:generation_tokens_total", ""): 6,
        ("vllm:prompt_tokens_cached_total", ""): 32,
        ("vllm:spec_decode_num_drafts_total", ""): 3,
        ("vllm:spec_decode_num_draft_tokens_total", ""): 9,
        ("vllm:spec_decode_num_accepted_tokens_total", ""): 4,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "position=1"): 2,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "position=2"): 0,
        ("vllm:num_preemptions_total", ""): 4,
        ("vllm:prefix_cache_queries_total", ""): 80,
        ("vllm:prefix_cache_hits_total", ""): 20,
        ("vllm:gpu_prefix_cache_hits_total", ""): 20,
        ("vllm:num_requests_running", ""): 3,
        ("vllm:num_requests_waiting", ""): 2,
        ("vllm:kv_cache_usage_perc", ""): 0.25,
        ("vllm:gpu_cache_usage_perc", ""): 0.25,
        ("vllm:gpu_prefix_cache_hit_rate", ""): 0.25,
        ("headrace:kv_waste_ratio", ""): 0.1,
        ("vllm:request_success_total", "finished_reason=stop"): 1,
        ("vllm:request_success_total", "finished_reason=length"): 1,
        ("vllm:request_success_total", "finished_reason=abort"): 1,
        ("vllm:request_success_total", "finished_reason=error"): 0,
        ("vllm:prompt_tokens_by_source_total", "source=local_compute"): 118,
        ("vllm:prompt_tokens_by_source_total", "source=local_cache_hit"): 32,
        ("vllm:admission_rejections_total", "reason=max_num_queued_reqs"): 0,
        ("headrace:kv_blocks", "state=free"): 65,
    }
    for (name, label), number in expected.items():
        assert value(found, name, **dict([label.split("=")] if label else [])) == number, name


def test_histograms_are_exact() -> None:
    found = samples(recorder_after_traffic())
    assert value(found, "vllm:inter_token_latency_seconds_count") == 3
    assert value(found, "vllm:inter_token_latency_seconds_sum") == pytest.approx(0.54)
    assert value(found, "vllm:inter_token_latency_seconds_bucket", le="0.025") == 2
    assert value(found, "vllm:time_per_output_token_seconds_bucket", le="0.025") == 2
    assert value(found, "vllm:time_to_first_token_seconds_bucket", le="0.005") == 1
    assert value(found, "vllm:time_to_first_token_seconds_count") == 2
    assert value(found, "vllm:e2e_request_latency_seconds_count") == 2
    assert value(found, "vllm:request_prefill_time_seconds_count") == 1
    assert value(found, "vllm:request_inference_time_seconds_sum") == pytest.approx(1.2)
    assert value(found, "vllm:request_time_per_output_token_seconds_sum") == pytest.approx(0.1)
    assert value(found, "vllm:request_generation_tokens_count") == 3
    assert value(found, "vllm:request_params_n_bucket", le="2.0") == 2
    assert value(found, "vllm:iteration_tokens_total_sum") == 105
    assert value(found, "headrace:step_overhead_seconds_sum") == pytest.approx(0.007)


def test_a_bucket_holds_its_own_bound() -> None:
    histogram = Histogram((1, 2))
    for number in (0, 1, 1.5, 2, 3):
        histogram.observe(number)
    assert histogram.counts == [2, 2, 1]


def test_every_series_exists_from_the_start() -> None:
    found = samples(Recorder("m", 8192))
    names = {name for name, _ in found}
    for metric in catalogue(8192):
        suffix = {Kind.COUNTER: "_total", Kind.GAUGE: "", Kind.HISTOGRAM: "_count"}[metric.kind]
        assert metric.name + suffix in names
        for label in metric.values:
            assert metric.label is not None
            assert (metric.name + suffix, frozenset((COMMON | {metric.label: label}).items())) in found
    assert {"vllm:num_requests_swapped", "vllm:cpu_cache_usage_perc", "vllm:cache_config_info"} <= names
    assert not [name for name in names if name.endswith("_created")]
    assert len({metric.name for metric in catalogue(8192)}) == len(catalogue(8192))
    assert set(ALIASES.values()) <= {metric.name for metric in catalogue(8192)}


def test_the_exposition_is_the_older_text_format() -> None:
    recorder = Recorder("m", 8192)
    text = Exposition(recorder).render([(recorder, STATS)]).decode()
    assert "# EOF" not in text
    assert "# TYPE vllm:prompt_tokens_total counter" in text
    for line in text.splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[a-zA-Z_:][\w:]*(\{.*\})? [-+0-9.eInfNa]+", line), line


def test_hostile_names_cannot_grow_the_number_of_series() -> None:
    """C51."""
    recorder = Recorder('m"\n\\', 8192)
    before = len(samples(recorder))
    recorder.on_http("GET", "/v1/models", 200, 0.1)
    for number in range(1000):
        recorder.on_http(f"METHOD{number}", "none", 404, 0.1)
        recorder.on_http("GET", "/v1/models", 200, 0.1)
    found = samples(recorder)
    assert len(found) < before + 20
    assert (
        found["http_requests_total", frozenset({("method", "OTHER"), ("status", "4xx"), ("handler", "none")})] == 1000
    )
    with pytest.raises(KeyError):
        recorder.count("vllm:request_success", 1, "no such reason")


def test_startup_phases() -> None:
    recorder = Recorder("m", 8192)
    recorder.on_startup_phase("weights", 0.25)
    assert samples(recorder)["headrace:startup_phase_seconds", frozenset({("phase", "weights")})] == 0.25
