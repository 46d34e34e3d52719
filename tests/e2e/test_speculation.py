"""A server that speculates gives the answers of one that does not."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from headrace.weights.catalogue import DEFAULT_MODEL
from tests.e2e.server import ServerProcess, serve

TEXT = (
    "The mill stood where the river bent to the east. Every morning the miller opened the sluice, and the water ran "
    "down the headrace, over the wheel and away under the bridge. His daughter counted the sacks, his son drove the "
    "cart, and the old dog slept on the warm stones beside the door until the evening came."
)
COPY = f"{TEXT}\n\nThe same text once more:\n\n{TEXT[:60]}"
PLAIN = {"prompt": COPY, "max_tokens": 80, "temperature": 0}

BODIES: dict[str, dict[str, Any]] = {
    "greedy": PLAIN,
    "sampled": {**PLAIN, "temperature": 0.8, "top_p": 0.95, "seed": 11},
    "several": {**PLAIN, "temperature": 0.6, "seed": 3, "n": 3},
    "logprobs": {**PLAIN, "logprobs": 2, "return_token_ids": True},
    "stop": {**PLAIN, "stop": ["the water ran", "sacks"], "logprobs": 1},
    "stop kept": {**PLAIN, "stop": ["heel and aw"], "include_stop_str_in_output": True, "min_tokens": 3},
    "penalties": {**PLAIN, "repetition_penalty": 1.05, "frequency_penalty": 0.1, "temperature": 0.5, "seed": 1},
    "bans": {**PLAIN, "bad_words": ["wheel", " the sluice"], "min_tokens": 20, "logit_bias": {"100": 1}},
    "one token": {**PLAIN, "max_tokens": 1},
    "unrelated": {**PLAIN, "prompt": "A list of ten animals:", "ignore_eos": True},
}


@pytest.fixture(scope="module")
def speculating() -> Iterator[ServerProcess]:
    with serve("--speculative-method", "ngram", "--num-speculative-tokens", "8") as server:
        yield server


@pytest.fixture(scope="module")
def with_draft_model() -> Iterator[ServerProcess]:
    """The model drafts for itself: it is slow, and right."""
    with serve("--speculative-model", DEFAULT_MODEL, "--num-speculative-tokens", "4") as server:
        yield server


def answer(server: ServerProcess, body: dict[str, Any]) -> dict[str, Any]:
    found = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert found.status_code == 200, found.text
    content: dict[str, Any] = found.json()
    return {"choices": content["choices"], "usage": content["usage"]}


@pytest.mark.parametrize("name", BODIES)
def test_answers_are_the_same(name: str, idle_server: ServerProcess, speculating: ServerProcess) -> None:
    body = {**BODIES[name], "cache_salt": name.replace(" ", "-")}  # nothing cached on one side only
    assert answer(speculating, body) == answer(idle_server, body)


@pytest.mark.parametrize("name", ["several", "stop", "penalties"])
def test_a_draft_model_changes_nothing(name: str, idle_server: ServerProcess, with_draft_model: ServerProcess) -> None:
    body = {**BODIES[name], "cache_salt": f"{name}-again"}
    assert answer(with_draft_model, body) == answer(idle_server, body)
    drafted, accepted = (
        with_draft_model.metric(f"vllm:spec_decode_num_{kind}_tokens_total") for kind in ("draft", "accepted")
    )
    assert accepted > 0.9 * drafted > 0


def test_acceptance_is_counted(speculating: ServerProcess) -> None:
    def counts() -> list[float]:
        kinds = ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos")
        return [speculating.metric(f"vllm:spec_decode_num_{kind}_total") for kind in kinds]

    before = counts()
    generated = answer(speculating, PLAIN)["usage"]["completion_tokens"]
    drafts, drafted, accepted, by_position = (b - a for a, b in zip(before, counts(), strict=True))
    assert 0 < drafts < drafted
    assert 0 < accepted == by_position <= drafted
    assert accepted <= generated - drafts
    assert accepted > generated / 3, "most of the answer is a copy"
