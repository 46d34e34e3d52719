import json
import random
import statistics
from itertools import islice
from pathlib import Path

import pytest

from headrace.bench.workload import Calibration, Length, Workload, arrivals, parse_length, read_trace
from headrace.errors import ConfigError

IDS = Workload("m", chat=False, ids=True, input=Length(10, 20), output=Length(3, 5))


def bodies(workload: Workload, stream: str, count: int = 20) -> list[dict[str, object]]:
    return [json.loads(body) for body in islice(workload.bodies(stream), count)]


def test_same_seed_same_requests_other_streams_others() -> None:
    assert bodies(IDS, "a") == bodies(IDS, "a")
    prompts = [str(body["prompt"]) for name in ("a", "b", "warm-up") for body in bodies(IDS, name)]
    assert len(set(prompts)) == len(prompts)


def test_ids_have_the_length_and_range_asked_for() -> None:
    for body in bodies(IDS, "a", 100):
        prompt = body["prompt"]
        assert isinstance(prompt, list)
        assert 10 <= len(prompt) <= 20
        assert all(1000 <= token <= 30000 for token in prompt)
        assert body["max_tokens"] in (3, 4, 5)
        assert (body["temperature"], body["ignore_eos"], body["stream"]) == (0, True, True)
        assert body["stream_options"] == {"include_usage": True}


def test_a_shared_prefix_is_shared_over_levels_and_nothing_else_is() -> None:
    workload = Workload("m", chat=False, ids=True, input=Length(8, 8), output=Length(1, 1), shared_prefix=32)
    prompts = [body["prompt"] for name in ("1", "2") for body in bodies(workload, name)]
    assert all(isinstance(prompt, list) and len(prompt) == 40 for prompt in prompts)
    assert len({str(prompt[:32]) for prompt in prompts if isinstance(prompt, list)}) == 1
    assert len({str(prompt[32:]) for prompt in prompts if isinstance(prompt, list)}) == len(prompts)


def test_texts_follow_the_calibration() -> None:
    tuned = Calibration(fixed=10, per_word=2)  # a template of 10 tokens, 2 tokens a word
    workload = Workload(
        "m", chat=True, ids=False, input=Length(50, 50), output=Length(1, 1), shared_prefix=30, calibration=tuned
    )
    for body in bodies(workload, "a"):
        messages = body["messages"]
        assert isinstance(messages, list)
        assert len(messages[0]["content"].split()) == 15 + 20


def test_lengths_parse_and_print_alike() -> None:
    for words in ("128", "64-512", "lognormal:400:600:4000"):
        assert str(parse_length(words)) == words
    for words in ("0", "-1", "5-4", "", "1.5", "lognormal:0:1", "lognormal:5", "9" * 9, "0-4"):
        with pytest.raises(ValueError, match="is not a length"):
            parse_length(words)


def test_lognormal_has_the_mean_and_deviation_asked_for() -> None:
    rng = random.Random(0)
    drawn = [parse_length("lognormal:400:300").draw(rng) for _ in range(20000)]
    assert statistics.mean(drawn) == pytest.approx(400, rel=0.03)
    assert statistics.stdev(drawn) == pytest.approx(300, rel=0.08)
    assert all(1 <= parse_length("lognormal:400:600:500").draw(rng) <= 500 for _ in range(1000))


def test_arrivals_are_poisson() -> None:
    times = list(islice(arrivals(10.0, "seed"), 20000))
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.05)
    assert times == list(islice(arrivals(10.0, "seed"), 20000))


def test_a_trace_gives_its_lengths_in_order_and_over_again(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nx,5,2\ny,6,3\n")
    trace = read_trace(file)
    assert trace == ((5, 2), (6, 3))
    workload = Workload("m", chat=False, ids=True, input=Length(1, 1), output=Length(1, 1), trace=trace)
    found = [(len(str(body["prompt"]).split(",")), body["max_tokens"]) for body in bodies(workload, "a", 4)]
    assert found == [(5, 2), (6, 3)] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [("a,b\n1,2\n", "needs a column"), ("input,output\n", "no rows"), ("input,output\n1,2\n0,3\n", "line 3")],
)
def test_a_bad_trace_is_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_trace(file)
    with pytest.raises(ConfigError, match="cannot read"):
        read_trace(tmp_path / "missing.csv")
