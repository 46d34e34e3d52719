"""The real clients, unchanged, against the real server: nothing of theirs is changed but the base URL."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.api.conftest import Start, start  # noqa: F401  # a fixture
from tests.api.fakes import FakeEngine
from tests.clients.environments import Client, command
from tests.e2e.server import ServerProcess, serve

KEY = "a-key-of-the-tests"
AGREEING = ("anthropic>=1,<3", "ollama>=0.6,<1", "huggingface-hub>=1,<3", "langchain-openai>=1,<2")
NODE = ("openai@^6", "ai@^6", "@ai-sdk/openai-compatible@^2", "zod@^4")
CLIENTS = (
    Client("anthropic_flow", AGREEING),
    Client("ollama_flow", AGREEING),
    Client("huggingface_flow", AGREEING),
    Client("langchain_flow", AGREEING),
    Client("text_generation_flow", ("text-generation==0.7.0",)),
    Client("litellm_flow", ("litellm==1.99.4",)),
    Client("openai_flow", NODE, npm=True),
    Client("vercel_flow", NODE, npm=True),
)


@pytest.fixture(scope="module")
def locked() -> Iterator[ServerProcess]:
    """A server with a key: each client sends it in its own way."""
    with serve(environment={"HEADRACE_API_KEY": KEY}) as process:
        yield process


@pytest.mark.timeout(900)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_gets_through_its_flow(client: Client, locked: ServerProcess) -> None:
    done = subprocess.run([*command(client), locked.url, KEY], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-6000:]}"
    assert done.stdout.endswith("done\n"), done.stdout[-3000:]
    assert KEY not in locked.output()


@pytest.mark.timeout(900)
def test_the_openapi_document_tells_the_truth(start: Start) -> None:  # noqa: F811
    """On an engine that answers at once: what is tested is everything before and after it."""
    client = Client("schemathesis_flow", ("schemathesis>=4,<5",))
    url = start(FakeEngine(pace=0.0005)).url
    done = subprocess.run([*command(client), url], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-3000:]}"
