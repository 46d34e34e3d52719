"""Ollama's routes against a real socket: the real client, and curl as Ollama's own pages call it."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import ollama
import pytest
from msgspec.structs import replace

from headrace.api import Model, ServerSettings, constant, host
from headrace.api.cards import Card
from headrace.errors import InvalidRequest, ModelFileError, ModelNotFound
from headrace.metrics import Recorder
from tests.api.conftest import Start
from tests.api.fakes import EOS, TEXT, FakeEngine, served, wait_until

CARD = Card("gguf", "llama", 134_515_008, "Q4_1", 98_362_432, "ab" * 32, 1.7e9, "{{ x }}", ("completion",), {"a.b": 1})


def another(name: str) -> Model:
    """A model that says TEXT as well."""
    recorder = Recorder(name, 512)
    model = constant(host(FakeEngine(pace=0.0005), served(names=(name,)), recorder, ServerSettings()))
    return replace(model, loaded=None, pinned=False)


class FakeShelf:
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.done: list[tuple[str, ...]] = []

    def pull(self, name: str, progress: Callable[[int, int], None]) -> Model | None:
        if name == "none":
            raise InvalidRequest("pull model manifest: file does not exist")
        progress(5, 10)
        progress(10, 10)
        self.done.append(("pull", name))
        return another(name) if self.done.count(("pull", name)) == 1 else None

    def remove(self, name: str) -> None:
        if name == "none":
            raise ModelNotFound("no such model", "model", name)
        self.done.append(("remove", name))

    def copy(self, source: str, name: str) -> Model:
        self.done.append(("copy", source, name))
        return another(name)


def client_of(url: str) -> Any:
    """Untyped on purpose: bad calls are part of what is tested."""
    return ollama.Client(url, timeout=60)


def test_generate(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    answer = client.generate("tiny", "hi")
    assert (answer.response, answer.model, answer.done, answer.done_reason) == (TEXT, "tiny", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (len("user:hi\n"), len(TEXT.encode()) + 1)
    assert answer.total_duration >= answer.eval_duration > 0
    assert list(answer.context) == [*b"user:hi\n", *TEXT.encode(), EOS]
    chunks = list(client.generate("TINY:latest", "hi", stream=True, options={"num_predict": 5}))
    assert "".join(chunk.response for chunk in chunks) == TEXT[:5]
    assert (chunks[-1].done_reason, chunks[-1].model) == ("length", "TINY:latest")


def test_context_goes_before_the_next_question(start: Start) -> None:
    engine = FakeEngine(pace=0.0005)
    client = client_of(start(engine).url)
    first = client.generate("tiny", "a", options={"num_predict": 2})
    client.generate("tiny", "b", context=first.context)
    assert bytes(engine.submitted[1].prompt) == b"user:a\n" + TEXT[:2].encode() + b"user:b\n"
    client.generate("tiny", "plain", raw=True)
    assert bytes(engine.submitted[2].prompt) == b"plain"


def test_chat_and_its_stream(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat("tiny", messages, logprobs=True, top_logprobs=2)
    assert (answer.message.role, answer.message.content) == ("assistant", TEXT)
    assert len(answer.logprobs) == answer.eval_count
    assert len(answer.logprobs[0].top_logprobs) == 2
    chunks = list(client.chat("tiny", messages, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == TEXT
    assert chunks[-1].done


def test_num_ctx_is_a_limit_and_nothing_is_cut(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    answer = client.generate("tiny", "hi", options={"num_ctx": 12, "num_predict": 100})
    assert (answer.eval_count, answer.done_reason) == (12 - len("user:hi\n"), "length")
    with pytest.raises(ollama.ResponseError, match="context holds 12") as caught:
        client.generate("tiny", "much too long for that", options={"num_ctx": 12})
    assert caught.value.status_code == 400


def test_load_and_unload(start: Start) -> None:
    server = start(FakeEngine(pace=0.0005))
    server.app.models.slots[0].seat.resident.pinned = False
    client = client_of(server.url)
    assert client.generate("tiny").done_reason == "load"
    assert client.chat("tiny").done_reason == "load"
    assert [model.model for model in client.ps().models] == ["tiny"]
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    wait_until(lambda: not client.ps().models)
    assert client.generate("tiny", "hi", keep_alive="5m").response == TEXT
    with pytest.raises(ollama.ResponseError, match="mirostat"):
        client.generate("tiny", "hi", keep_alive=0, options={"mirostat": 2})
    assert [model.model for model in client.ps().models] == ["tiny"], "a call that is refused unloads nothing"
    client.chat("tiny", [{"role": "user", "content": "hi"}], keep_alive=0)
    wait_until(lambda: not client.ps().models)


def test_no_call_sends_a_pinned_model_away(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    assert client.generate("tiny", keep_alive=0).done_reason == "load"
    assert client.chat("tiny", keep_alive=0).done_reason == "load"
    assert client.generate("tiny", "hi", keep_alive=0).response == TEXT
    assert [model.model for model in client.ps().models] == ["tiny"]


def test_errors(start: Start) -> None:
    engine = FakeEngine(pace=0.002)
    client = client_of(start(engine).url)
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        client.generate("nope", "hi")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="mirostat is not supported"):
        client.generate("tiny", "hi", options={"mirostat": 2})
    stream = client.generate("tiny", "hi", stream=True)
    next(stream)
    engine.error = "a NaN logit"
    with pytest.raises(ollama.ResponseError, match="a NaN logit"):
        list(stream)


def test_what_is_known_of_models(start: Start) -> None:
    client = client_of(start(FakeEngine(), card=lambda: CARD).url)
    (model,) = client.list().models
    assert (model.model, model.size, model.digest) == ("tiny", 98_362_432, "ab" * 32)
    assert (model.details.parameter_size, model.details.quantization_level) == ("134.52M", "Q4_1")
    shown = client.show("org/TINY")
    assert (shown.modelinfo, shown.template, shown.capabilities) == ({"a.b": 1}, "{{ x }}", ["completion"])
    (running,) = client.ps().models
    assert (running.context_length, running.details.family) == (512, "llama")
    assert running.expires_at.year > 2100


def test_a_model_whose_files_cannot_be_read_hides_no_other(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> Card:
        raise ModelFileError("model.gguf: truncated at the version")

    server = start(FakeEngine(), card=gone)
    server.app.models.add(another("whole"))
    client = client_of(server.url)
    assert [model.model for model in client.list().models] == ["whole"]
    assert [model.model for model in client.ps().models] == ["tiny"], "it is in memory all the same"
    assert caplog.text.count("tiny: its files cannot be read: model.gguf: truncated at the version") == 2
    with pytest.raises(ollama.ResponseError, match="truncated"):
        client.show("tiny")


def test_ps_tells_what_a_model_takes_now(start: Start) -> None:
    """Of its KV cache, the blocks that were ever used: the others are reserved and take nothing."""
    engine = FakeEngine()
    server = start(engine, card=lambda: CARD)
    seat = server.app.models.slots[0].seat
    assert seat.loaded is not None
    seat.loaded = replace(seat.loaded, bytes=50_000 + 100 * 1000, kv_block_bytes=1000)  # of 100 blocks
    (fresh,) = client_of(server.url).ps().models
    engine.touched = 7
    (used,) = client_of(server.url).ps().models
    assert (fresh.size, used.size, used.size_vram) == (50_000, 57_000, 0)


def test_the_shelf(start: Start) -> None:
    shelf = FakeShelf()
    client = client_of(start(FakeEngine(), shelf=shelf).url)
    assert client.pull("some").status == "success"
    lines = [(line.status, line.completed) for line in client.pull("some", stream=True)]
    assert lines[0] == ("pulling manifest", None)
    assert lines[1] == ("pulling some", 10)
    assert [status for status, _ in lines[2:]] == ["verifying sha256 digest", "writing manifest", "success"]
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        list(client.pull("none", stream=True))
    client.copy("tiny", "mine")
    assert [model.model for model in client.list().models] == ["tiny", "some", "mine"]
    assert client.generate("Some:latest", "hi").response == TEXT
    client.delete("mine")
    with pytest.raises(ollama.ResponseError, match="model 'mine' not found"):
        client.generate("mine", "hi")
    with pytest.raises(ollama.ResponseError, match="model 'none' not found"):
        client.delete("none")
    assert shelf.done == [("pull", "some"), ("pull", "some"), ("copy", "tiny", "mine"), ("remove", "mine")]


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/api/pull", {"model": "some", "quantize": "q4_0"}, "quantize"),
        ("POST", "/api/pull", {"model": "some", "insecure": True}, "insecure"),
        ("POST", "/api/pull", {"model": "some", "username": "me", "password": ""}, "username"),
        ("POST", "/api/copy", {"source": "tiny", "destination": "mine", "force": True}, "force"),
        ("POST", "/api/copy", {"source": "tiny", "name": "mine"}, "name"),
        ("POST", "/api/copy", {"source": "tiny"}, "destination"),
        ("DELETE", "/api/delete", {"model": "mine", "force": True}, "force"),
    ],
)
def test_what_the_disk_is_not_asked_for(start: Start, method: str, path: str, body: dict[str, Any], field: str) -> None:
    shelf = FakeShelf()
    answer = httpx.request(method, start(FakeEngine(), shelf=shelf).url + path, json=body)
    assert (answer.status_code, field in answer.json()["error"], shelf.done) == (400, True, [])


def test_what_ollamas_own_client_always_sends_is_taken(start: Start) -> None:
    body = {"name": "some", "insecure": False, "username": "", "password": "", "stream": False}
    answer = httpx.post(start(FakeEngine(), shelf=FakeShelf()).url + "/api/pull", json=body)
    assert answer.json() == {"status": "success"}


def test_without_a_shelf_nothing_on_the_disk_changes(start: Start) -> None:
    client = client_of(start(FakeEngine()).url)
    attempts: list[Callable[[], Any]] = [
        lambda: client.pull("x"),
        lambda: client.delete("x"),
        lambda: client.copy("x", "y"),
    ]
    for attempt in attempts:
        with pytest.raises(ollama.ResponseError, match="--manage-models") as caught:
            attempt()
        assert caught.value.status_code == 403


def test_curl_may_call_it_a_form_and_a_web_page_may_not(start: Start) -> None:
    url = start(FakeEngine(pace=0.0005)).url
    body = json.dumps({"model": "tiny", "prompt": "hi", "stream": False}).encode()
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert httpx.post(f"{url}/api/generate", content=body, headers=form, timeout=60).json()["response"] == TEXT
    refused = httpx.post(
        f"{url}/api/generate", content=body, headers={**form, "origin": "https://evil.example"}, timeout=60
    )
    assert (refused.status_code, set(refused.json())) == (415, {"error"})


def test_a_stream_has_no_empty_lines(start: Start) -> None:
    url = start(FakeEngine(pace=0.0005)).url
    answer = httpx.post(f"{url}/api/generate", json={"model": "tiny", "prompt": "hi"}, timeout=60)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert all(json.loads(line)["model"] == "tiny" for line in answer.text.split("\n")[:-1])


def test_small_routes(start: Start) -> None:
    server = start(FakeEngine(), ServerSettings(api_keys=("key",)))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/").text == "Ollama is running"
        assert client.get("/api/version").json() == {"error": client.get("/api/tags").json()["error"]}
        client.headers["authorization"] = "Bearer key"
        assert client.get("/api/version").json()["version"].startswith("0.")
        assert client.head("/api/tags").status_code == 200
        unknown = client.get("/api/nothing")
        assert (unknown.status_code, unknown.json()) == (404, {"error": "there is nothing at this path"})


def test_embeddings(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    answer = client.embed("tiny", ["abcd", "abcd", "~~~~"])
    first, again, other = answer.embeddings
    assert first == again != other
    assert sum(number * number for number in first) == pytest.approx(1, rel=1e-5)
    assert answer.prompt_eval_count == 12
    assert answer.total_duration > 0
    assert client.embed("tiny", "abcd").embeddings == [first]
    assert len(client.embed("tiny", "abcd", dimensions=2).embeddings[0]) == 2
    assert client.embeddings("tiny", "abcd").embedding == first
    assert client.embed("tiny", "").embeddings == []


def test_a_long_text_is_cut_only_when_asked(start: Start) -> None:
    client = client_of(start(FakeEngine(pace=0.0005)).url)
    with pytest.raises(ollama.ResponseError, match="the input has 513 tokens, but the context holds 512"):
        client.embed("tiny", "a" * 512 + "b")
    assert client.embed("tiny", "a" * 512 + "b", truncate=True).embeddings == client.embed("tiny", "a" * 9).embeddings
