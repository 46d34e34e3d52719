"""The real `openai` client against the real server: every flow that its users rely on."""

from typing import Any

import openai
import pytest

from tests.e2e.server import ServerProcess

MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture
def client(idle_server: ServerProcess) -> Any:
    """Untyped on purpose: bad calls are part of what is tested."""
    return openai.OpenAI(base_url=f"{idle_server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def model(client: Any) -> str:
    return str(client.models.list().data[0].id)


def test_models(client: Any, model: str) -> None:
    shown = client.models.retrieve(model)
    assert (shown.id, shown.max_model_len) == (model, 8192)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such-model")


def test_chat_says_something_true(client: Any, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=16, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_and_plain_answers_agree(client: Any, model: str) -> None:
    question = {"model": model, "messages": MESSAGES, "max_tokens": 40, "temperature": 0.8, "seed": 7}
    plain = client.chat.completions.create(**question)
    chunks = list(client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == plain.choices[0].finish_reason


def test_completions_take_text_ids_and_lists(client: Any, model: str) -> None:
    one = client.completions.create(model=model, prompt="The sky is", max_tokens=4, temperature=0)
    many = client.completions.create(
        model=model, prompt=["The sky is", "Two and two"], max_tokens=4, temperature=0, n=2
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == one.choices[0].text
    ids = client.completions.create(model=model, prompt=[504, 6376, 314], max_tokens=4, temperature=0)
    assert ids.usage.prompt_tokens == 3


def test_logprobs(client: Any, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    for entry in answer.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
    echoed = client.completions.create(model=model, prompt="One two three", max_tokens=1, echo=True, logprobs=1)
    logprobs = echoed.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert echoed.choices[0].text.startswith("One two three")


def test_seeded_choices_differ_from_each_other_and_repeat(client: Any, model: str) -> None:
    def ask() -> list[str]:
        answer = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=24, n=4, seed=11, temperature=1.0
        )
        return [choice.text for choice in answer.choices]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


def test_stop_strings_end_the_text_before_them(client: Any, model: str) -> None:
    whole = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0).choices[0].text
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0, stop=[middle])
    assert cut.choices[0].text == whole[: whole.index(middle)]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 3e38}, "temperature"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        ({"extra_body": {"top_k": "many"}}, "top_k"),
        ({"prompt": "word " * 100_000}, "100"),
        ({"prompt": [10**9]}, "prompt"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ],
)
def test_bad_requests_are_refused_by_name(client: Any, model: str, body: dict[str, object], names: str) -> None:
    with pytest.raises(openai.BadRequestError, match=names):
        client.completions.create(**({"model": model, "prompt": "Hi", "max_tokens": 2} | body))


def test_repeated_prompts_come_from_the_prefix_cache(client: Any, model: str) -> None:
    prompt = "A prompt that nobody has sent before, long enough to fill several blocks of the cache. " * 4
    request = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
    cold = client.completions.create(**request)
    warm = client.completions.create(**request)
    salted = client.completions.create(**request, extra_body={"cache_salt": "other-tenant"})
    assert warm.choices[0].text == cold.choices[0].text == salted.choices[0].text
    assert warm.usage.prompt_tokens_details.cached_tokens >= 32
    assert salted.usage.prompt_tokens_details.cached_tokens == 0
