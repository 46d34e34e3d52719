"""vLLM's extra routes against a real socket."""

import httpx
import pytest

from headrace import __version__
from tests.api.conftest import Start
from tests.api.fakes import FakeEngine


@pytest.fixture
def client(start: Start) -> httpx.Client:
    return httpx.Client(base_url=start(FakeEngine(pace=0.0005)).url, timeout=60)


def test_tokens_of_a_text_and_back(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"model": "tiny", "prompt": "hé", "return_token_strs": True}).json()
    assert answer == {
        "count": 3,
        "max_model_len": 512,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "\ufffd", "\ufffd"],
    }
    assert client.post("/tokenize", json={"prompt": "hé"}).json()["token_strs"] is None
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "hé"}


def test_tokens_of_a_chat(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}
    answer = client.post("/tokenize", json=body).json()
    assert "".join(answer["token_strs"]) == "user:hi\n"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "prompt must be a string"),
        ("/tokenize", {"prompt": 5}, "prompt must be a string"),
        ("/tokenize", {"prompt": "a", "max_tokens": 5}, "unknown field 'max_tokens'"),
        ("/tokenize", {"messages": []}, "messages must be a list"),
        ("/detokenize", {}, "tokens is missing"),
        ("/detokenize", {"tokens": [257]}, "token ids from 0 to 256"),
        ("/detokenize", {"tokens": "abc"}, "tokens must be a list"),
    ],
)
def test_wrong_bodies_are_refused_in_openais_shape(client: httpx.Client, path: str, body: object, words: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_unknown_models(client: httpx.Client) -> None:
    for path in ("/tokenize", "/detokenize", "/score", "/v1/embeddings"):
        assert client.post(path, json={"model": "no such model", "prompt": "a"}).status_code == 404


def test_scores_and_ranks_on_all_their_paths(client: httpx.Client) -> None:
    for path in ("/score", "/v1/score"):
        answer = client.post(path, json={"text_1": "abcd", "text_2": ["abcd", "zzzz"]}).json()
        assert answer["data"][0]["score"] == pytest.approx(1)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        answer = client.post(path, json={"query": "abcd", "documents": ["a~~~", "abcd"]}).json()
        assert [each["index"] for each in answer["results"]] == [1, 0]


def test_version_and_load(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": __version__}
    assert client.get("/load").json() == {"server_load": 0}
