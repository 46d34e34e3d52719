"""TGI's routes against a real socket: huggingface_hub's client, and what that client does not look at."""

import json
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import GenerationError, OverloadedError, ValidationError

from headrace.api import ServerSettings
from headrace.errors import QueueFull
from tests.api.conftest import Start
from tests.api.fakes import TEXT, FakeEngine


def hub(url: str) -> Any:
    """Untyped on purpose: bad calls are part of what is tested."""
    return InferenceClient(url, timeout=60)


def test_text_generation(start: Start) -> None:
    client = hub(start(FakeEngine(pace=0.0005)).url)
    assert client.text_generation("Say: ", max_new_tokens=100, return_full_text=False) == TEXT
    assert client.text_generation("Say: ", max_new_tokens=100) == "Say: " + TEXT
    answer = client.text_generation(
        "hi", details=True, decoder_input_details=True, top_n_tokens=2, max_new_tokens=5, return_full_text=False
    )
    assert answer.generated_text == TEXT[:5]
    assert (answer.details.finish_reason, answer.details.generated_tokens) == ("length", 5)
    assert [token.text for token in answer.details.prefill] == ["h", "i"]
    assert [token.text for token in answer.details.tokens] == list(TEXT[:5])
    assert [len(top) for top in answer.details.top_tokens] == [2] * 5


def test_text_generation_streams(start: Start) -> None:
    client = hub(start(FakeEngine(pace=0.0005)).url)
    assert "".join(client.text_generation("hi", stream=True, max_new_tokens=100)) == TEXT + "<end>"
    events = list(client.text_generation("hi", stream=True, details=True, return_full_text=False))
    assert "".join(event.token.text for event in events if not event.token.special) == TEXT
    assert events[-1].generated_text == TEXT
    assert events[-1].details.finish_reason == "eos_token"
    assert events[-1].details.generated_tokens == len(events) == len(TEXT.encode()) + 1
    assert events[-1].details.input_length == 2


def test_stop_sequences_stay_and_best_of_is_one_answer(start: Start) -> None:
    client = hub(start(FakeEngine(pace=0.0005)).url)
    answer = client.text_generation(
        "hi", details=True, stop=["wheel"], do_sample=True, best_of=3, return_full_text=False
    )
    assert answer.generated_text.endswith("wheel")
    assert answer.details.finish_reason == "stop_sequence"
    assert len(answer.details.best_of_sequences) == 2


def test_errors_are_typed(start: Start) -> None:
    engine = FakeEngine(pace=0.0005)
    client = hub(start(engine).url)
    with pytest.raises(ValidationError, match="temperature"):
        client.text_generation("hi", temperature=-1.0)
    with pytest.raises(ValidationError, match="512"):
        client.text_generation("hi" * 1000)
    engine.refuse = QueueFull("full", retry_after=7)
    with pytest.raises(OverloadedError, match="full"):
        client.text_generation("hi")
    engine.refuse, engine.error = None, "a NaN logit"
    with pytest.raises(GenerationError, match="a NaN logit"):
        client.text_generation("hi")


def test_truncate_keeps_the_end_when_asked(start: Start) -> None:
    engine = FakeEngine(pace=0.0005)
    client = hub(start(engine).url)
    client.text_generation("x" * 5000 + "end", truncate=4, max_new_tokens=1)
    assert bytes(engine.submitted[0].prompt) == b"xend"


def test_routes_and_headers(start: Start) -> None:
    server = start(FakeEngine(pace=0.0005))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 3}})
        assert answer.json() == {"generated_text": "Hel"}
        assert (answer.headers["x-prompt-tokens"], answer.headers["x-generated-tokens"]) == ("2", "3")
        assert int(answer.headers["x-total-time"]) >= int(answer.headers["x-inference-time"])
        stream = client.post("/generate_stream", json={"inputs": "hi", "parameters": {"max_new_tokens": 3}})
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        assert len([line for line in stream.text.split("\n\n") if line]) == 3
        info = client.get("/info").json()
        assert (info["model_id"], info["max_total_tokens"]) == ("tiny", 512)
        tokens = client.post("/tokenize", json={"inputs": "hé"}).json()
        assert [token["id"] for token in tokens] == list("hé".encode())
        assert tokens[0] == {"id": 104, "text": "h", "start": 0, "stop": 1}
        chat = client.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "é!"}]}).json()
        assert chat["templated_text"] == "user:é!\n"
        assert "".join(token["text"] for token in chat["tokenize_response"]) == "user:é!\n"
        assert chat["tokenize_response"][-1] == {"id": 10, "text": "\n", "start": 7, "stop": 8}
        assert client.get("/").status_code == client.head("/").status_code == 200


def test_guards_speak_tgi(start: Start) -> None:
    server = start(FakeEngine(), ServerSettings(api_keys=("key",)))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/").text == "Ollama is running"
        for answer, status in [
            (client.post("/", json={"inputs": "x"}), 401),
            (client.post("/generate", json={"inputs": "x"}), 401),
            (client.put("/generate", json={}, headers={"authorization": "Bearer key"}), 405),
            (client.post("/generate", content=b"[", headers={"authorization": "Bearer key"}), 415),
            (client.post("/generate", json=[1], headers={"authorization": "Bearer key"}), 422),
            (client.post("/tokenize", json={"inputs": 5}, headers={"x-api-key": "key"}), 422),
        ]:
            body = answer.json()
            assert (answer.status_code, set(body)) == (status, {"error", "error_type"}), body


def test_an_error_in_the_middle_of_a_stream(start: Start) -> None:
    engine = FakeEngine(pace=0.002)
    server = start(engine)
    events = []
    with httpx.stream("POST", f"{server.url}/generate_stream", json={"inputs": "x"}, timeout=60) as stream:
        for line in stream.iter_lines():
            if line:
                events.append(json.loads(line[5:]))
                engine.error = "a NaN logit"
    assert stream.status_code == 200
    assert events[-1] == {"error": "a NaN logit", "error_type": "generation"}
