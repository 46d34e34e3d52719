"""The judge: the real `openai` client against a real socket."""

import threading

import openai
import pytest

from headrace.api import ServerSettings
from headrace.errors import EngineDead, QueueFull
from headrace.types import Cause
from tests.api.conftest import Start
from tests.api.fakes import EOS, TEXT, FakeEngine, wait_until


def client_of(url: str, **options: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=60, **options)  # type: ignore[arg-type]


def test_chat(start: Start) -> None:
    server = start(FakeEngine(pace=0.0005))
    answer = client_of(server.url).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=100
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (TEXT, "assistant", "stop")
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("user:hi\n")
    assert answer.usage.completion_tokens == len(TEXT.encode()) + 1
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_chat_stream(start: Start) -> None:
    server = start(FakeEngine(pace=0.0005))
    stream = client_of(server.url).chat.completions.create(
        model="org/tiny",
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(TEXT.encode()) + 1
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].choices[0].delta.content is None
    assert {(c.id, c.created, c.model) for c in chunks} == {(chunks[0].id, chunks[0].created, "org/tiny")}


def test_the_stream_helper_accumulates(start: Start) -> None:
    server = start(FakeEngine(pace=0.0005))
    with client_of(server.url).chat.completions.stream(
        model="tiny", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].logprobs is not None
    assert final.choices[0].logprobs.content is not None
    assert len(final.choices[0].logprobs.content) == len(TEXT.encode()) + 1
    assert len(final.choices[0].logprobs.content[0].top_logprobs) == 2


def test_completions_with_list_prompts_and_n(start: Start) -> None:
    engine = FakeEngine(pace=0.0005, script=lambda request, k: [*f"{chr(request.prompt[0])}{k}".encode(), EOS])
    server = start(engine)
    answer = client_of(server.url).completions.create(model="tiny", prompt=["a", "b"], n=3, max_tokens=5)
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(["a0", "a1", "a2", "b0", "b1", "b2"]))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 18)


def test_completion_stream_with_token_ids_and_logprobs(start: Start) -> None:
    server = start(FakeEngine(pace=0.0005))
    client = client_of(server.url)
    chunks = list(client.completions.create(model="tiny", prompt=[104, 105], max_tokens=5, stream=True, logprobs=1))
    assert "".join(c.choices[0].text for c in chunks) == TEXT[:5]
    assert chunks[-1].choices[0].finish_reason == "length"
    tokens = [t for c in chunks for t in (c.choices[0].logprobs.tokens if c.choices[0].logprobs else []) or []]
    assert tokens == list("Hello")


def test_echo_with_logprobs(start: Start) -> None:
    server = start(FakeEngine(pace=0.0005))
    client = client_of(server.url)
    answer = client.completions.create(model="tiny", prompt="hé!", max_tokens=2, echo=True, logprobs=0)
    choice = answer.choices[0]
    assert choice.text == "hé!He"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [0, 1, 1, 2, 3, 4]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5, -0.5]
    silent = client.completions.create(model="tiny", prompt="hi", max_tokens=0, echo=True, logprobs=1)
    assert silent.choices[0].text == "hi"
    assert silent.choices[0].finish_reason == "length"
    assert silent.usage is not None
    assert silent.usage.completion_tokens == 0


def test_stop_string_ends_the_engine_work(start: Start) -> None:
    engine = FakeEngine(pace=0.002)
    server = start(engine)
    answer = client_of(server.url).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], stop=["wheel", "! T"], n=2
    )
    assert [c.message.content for c in answer.choices] == ["Hello, wörld"] * 2
    assert [c.finish_reason for c in answer.choices] == ["stop"] * 2
    assert answer.choices[0].model_dump()["stop_reason"] == "! T"
    wait_until(lambda: not engine.running)
    assert {index for _, index in engine.aborted} >= {0, 1}


def test_models(start: Start) -> None:
    client = client_of(start(FakeEngine()).url)
    assert [model.id for model in client.models.list()] == ["tiny", "org/tiny"]
    assert client.models.retrieve("org/tiny").id == "org/tiny"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("other")


def test_errors_are_the_right_classes(start: Start) -> None:
    engine = FakeEngine(pace=0.0005)
    server = start(engine, ServerSettings(api_keys=("key",)))
    client = client_of(server.url)
    with pytest.raises(openai.BadRequestError, match="temperature must be a number from 0 to 2") as caught:
        client.completions.create(model="tiny", prompt="x", temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    engine.refuse = QueueFull("full", retry_after=7)
    with pytest.raises(openai.RateLimitError) as limited:
        client.completions.create(model="tiny", prompt="x")
    assert limited.value.response.headers["retry-after"] == "7"
    engine.refuse = EngineDead("dead")
    with pytest.raises(openai.InternalServerError) as dead:
        client.completions.create(model="tiny", prompt="x")
    assert dead.value.status_code == 503
    assert dead.value.response.headers["x-should-retry"] == "false"
    engine.refuse, engine.error = None, "a NaN logit"
    with pytest.raises(openai.InternalServerError, match="a NaN logit"):
        client.completions.create(model="tiny", prompt="x")
    engine.error, engine.cause = "deadline", Cause.DEADLINE
    with pytest.raises(openai.InternalServerError) as late:
        client.completions.create(model="tiny", prompt="x")
    assert late.value.status_code == 504


def test_an_error_in_the_middle_of_a_stream(start: Start) -> None:
    engine = FakeEngine()
    server = start(engine)

    def first_step() -> None:
        wait_until(lambda: bool(engine.running))
        engine.step()

    stepper = threading.Thread(target=first_step)
    stepper.start()
    stream = client_of(server.url).completions.create(model="tiny", prompt="x", stream=True)
    stepper.join()
    assert next(stream).choices[0].text == "H"
    engine.error = "a NaN logit"
    engine.step()
    with pytest.raises(openai.APIError, match="a NaN logit"):
        next(stream)
