"""The hub's own client against a stub hub on the loopback: what is fetched, what never is, what errors say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import DownloadError, UnsupportedModel
from headrace.weights import open_checkpoint
from headrace.weights.hub import parse_hub_id, wanted_files
from tests.weights.files import write_dir
from tests.weights.loopback import Site, serving

PIECE = 1 << 20
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(Site):
    """The routes that fetching a model takes: model information, the list of files, files and their headers."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.files = dict(files)
        self.hold_at: int | None = None
        """Where the next body stands still until ``released``, in bytes; a multiple of `PIECE`."""
        self.released = threading.Event()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Silence."""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                hub.requests.append((f"{self.command} {path}", self.headers.get("Range"), None))
                if path.startswith("/api/models/org/name/tree/"):
                    tree = [
                        {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                        for n, b in hub.files.items()
                    ]
                    self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
                elif path.startswith("/api/models/org/name"):
                    siblings = [{"rfilename": name} for name in hub.files]
                    info = {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings}
                    self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
                elif path.startswith("/org/name/resolve/"):
                    self.file(path.split("/", 5)[5])
                else:
                    self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET

            def file(self, name: str) -> None:
                body = hub.files[name]
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
                asked = self.headers.get("Range")
                begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
                if begin:
                    headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
                self.answer(206 if begin else 200, body[begin:], headers)

            def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    if hub.cut and len(body) > hub.cut[0]:
                        body = body[: hub.cut.pop(0)]
                        self.close_connection = True
                    with suppress(ConnectionError):  # the client may have heard enough
                        for begin in range(0, len(body), PIECE):
                            if begin == hub.hold_at:
                                hub.hold_at = None
                                hub.released.wait(60)
                            self.wfile.write(body[begin : begin + PIECE])

        return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_dir(tmp_path / "origin")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {
        "README.md": b"words",
        "pytorch_model.bin": b"\x80\x04pickle",
        "modeling_evil.py": b"raise SystemExit",
        "original/consolidated.safetensors": b"copy",
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/rag.jinja": b"rag",
    }
    with serving(Hub(files)) as site:
        assert isinstance(site, Hub)
        yield site


FETCH = """
import json, sys
from pathlib import Path
from headrace.errors import HeadraceError
from headrace.weights import Store
seen = []
try:
    stored = Store(Path(sys.argv[1])).pull(sys.argv[2], lambda done, total: seen.append((done, total)))
    print(json.dumps({"name": stored.name, "path": str(stored.path), "seen": len(seen), "last": seen[-1:]}))
except HeadraceError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def pull(tmp_path: Path, endpoint: str, model: str) -> dict[str, Any]:
    """`Store.pull` in a process of its own: the client reads HF_ENDPOINT when it is imported."""
    home = str(tmp_path / "hf")
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), model]
    result = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_pull_fetches_data_and_never_code(tmp_path: Path, hub: Hub) -> None:
    found = pull(tmp_path, hub.url, "org/name")
    assert found.get("name") == "org/name", found
    folder = Path(found["path"])
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    }
    assert not any(".bin" in path or ".py" in path or "original" in path for path, _, _ in hub.requests)
    checkpoint = open_checkpoint(folder, name=found["name"])
    assert checkpoint.name == "org/name"
    assert checkpoint.text.chat_templates == {"default": "{{ messages }}", "rag": "rag"}
    assert found["seen"] > 0
    assert found["last"][0][0] > 0
    count = len(hub.requests)
    assert pull(tmp_path, hub.url, "org/name")["name"] == "org/name"
    assert len(hub.requests) == count


def test_revisions_are_kept_apart(tmp_path: Path, hub: Hub) -> None:
    found = pull(tmp_path, hub.url, "org/name@v2")
    assert found.get("name") == "org/name@v2", found
    assert any("v2" in path for path, _, _ in hub.requests if "/api/" in path)
    assert open_checkpoint(Path(found["path"])).spec.num_layers == 2


def test_what_the_errors_say(tmp_path: Path, hub: Hub) -> None:
    found = pull(tmp_path, hub.url, "org/absent")
    assert found["error"] == "DownloadError"
    assert "the hub has no such model" in found["message"]
    found = pull(tmp_path, "http://127.0.0.1:9", "org/name")
    assert found["error"] == "DownloadError"
    assert "Offline?" in found["message"]
    del hub.files["model.safetensors"]
    found = pull(tmp_path, hub.url, "org/name")
    assert found["error"] == "UnsupportedModel"
    assert "only pickled weights" in found["message"]
    assert not (tmp_path / "cache/hub/org/name").exists()


def test_ids() -> None:
    found = parse_hub_id("HuggingFaceTB/SmolLM2-135M@v1.0")
    assert found is not None
    assert (found.repo, found.revision, found.label) == (
        "HuggingFaceTB/SmolLM2-135M",
        "v1.0",
        "HuggingFaceTB/SmolLM2-135M@v1.0",
    )
    for text in (
        "name",
        "a/b/c",
        "a/..",
        "../b",
        "a/b@",
        "a/b@c/d",
        "a b/c",
        "a/b\n",
        "/b",
        "a/",
        "a/b.partial",
        "a/b@x..y",
    ):
        assert parse_hub_id(text) is None, text


def test_choice_of_files() -> None:
    index = "model.safetensors.index.json"
    shards = ["model-1.safetensors", "consolidated.safetensors", index, "config.json", "x.gguf", "evil.py", "a.bin"]
    assert wanted_files(shards, "m") == ["model-1.safetensors", "config.json", index]
    assert wanted_files(["a.gguf", "README.md", "sub/b.gguf"], "m") == ["a.gguf"]
    with pytest.raises(DownloadError, match=r"2 GGUF files \(a\.gguf, b\.gguf"):
        wanted_files(["a.gguf", "b.gguf"], "m")
    with pytest.raises(UnsupportedModel, match="pickled"):
        wanted_files(["pytorch_model.bin"], "m")
    with pytest.raises(UnsupportedModel, match="no weights"):
        wanted_files(["README.md"], "m")
