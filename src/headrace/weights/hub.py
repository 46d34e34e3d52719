"""Models of the Hugging Face hub, through `huggingface_hub`: only data files, never code, never pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

from headrace.errors import DownloadError, ModelError, UnsupportedModel
from headrace.weights.landing import Progress

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"({_PART})/({_PART})(?:@({_PART}))?")

PARTIAL = ".partial"
"""Suffix of the folder of a model that is still being fetched; no model may have such a name."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HubModel(Struct, frozen=True):
    """``org/name``, and a branch, tag or commit."""

    org: str
    name: str
    revision: str | None

    @property
    def repo(self) -> str:
        """What the hub calls it."""
        return f"{self.org}/{self.name}"

    @property
    def label(self) -> str:
        """What the user typed: ``org/name[@revision]``."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_hub_id(text: str) -> HubModel | None:
    """The hub model that ``org/name[@revision]`` names; None for any other text. Names cannot leave a folder."""
    match = _ID.fullmatch(text)
    if match is None or ".." in text or text.endswith(PARTIAL):
        return None
    return HubModel(match[1], match[2], match[3])


def wanted_files(files: Iterable[str], label: str) -> list[str]:
    """Of a repository's files, the ones that serving the model takes.

    safetensors where there are any, else its one GGUF file; JSON, chat templates. Nothing in subfolders but extra
    chat templates (other formats of the same weights live there).

    Raises:
        UnsupportedModel: only pickled weights, or none.
        DownloadError: several GGUF files, of which the user has to choose.
    """
    names = sorted(files)
    top = [n for n in names if "/" not in n]
    weights = [n for n in top if n.endswith(".safetensors")]
    if "model.safetensors.index.json" in top:
        weights = [n for n in weights if not n.startswith("consolidated")]  # Mistral's second copy
    ggufs = [n for n in top if n.endswith(".gguf")]
    if not weights and len(ggufs) > 1:
        raise DownloadError(
            f"{label} has {len(ggufs)} GGUF files ({', '.join(ggufs[:6])}…): download one and pass its path"
        )
    if not weights and not ggufs:
        why = "only pickled weights, which can run code" if any(n.endswith(_PICKLES) for n in top) else "no weights"
        raise UnsupportedModel(f"{label} has {why}; safetensors or GGUF files are served")
    texts = [n for n in top if n.endswith((".json", ".jinja"))]
    extra = [n for n in names if re.fullmatch(r"additional_chat_templates/[^/]+\.jinja", n)]
    return [*(weights or ggufs), *texts, *extra]


def fetch(model: HubModel, folder: Path, progress: Progress | None = None) -> None:
    """Fetch the model's files into ``folder``; those that are complete there already are not fetched again, and a
    connection that breaks is gone on with where it broke. A file that a call leaves incomplete is fetched anew by the
    next (the hub's client deletes it). HF_ENDPOINT, HF_TOKEN and proxies are honoured by `huggingface_hub` itself.

    Raises:
        DownloadError: not found, gated, offline, disk full.
        UnsupportedModel: as `wanted_files`.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = huggingface_hub.HfApi().model_info(model.repo, revision=model.revision)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        options: dict[str, Any] = {} if progress is None else {"tqdm_class": _reporting(progress)}
        huggingface_hub.snapshot_download(
            model.repo,
            revision=info.sha,  # the commit that was listed, should the branch move meanwhile
            local_dir=folder,
            allow_patterns=[_literal(name) for name in wanted_files(files, model.label)],
            **options,
        )
    except ModelError:
        raise
    except GatedRepoError as error:
        raise DownloadError(
            f"{model.label} asks you to accept its terms on the hub, and for HF_TOKEN to be set"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DownloadError(f"{model.label}: the hub has no such model or revision (or it is private)") from error
    except Exception as error:  # the hub's client raises its HTTP library's errors, OSErrors and ValueErrors
        raise DownloadError(
            f"{model.label} could not be fetched from the hub: {str(error)[:300]}. Offline? Copy the model's directory "
            "here and pass its path"
        ) from error


def _literal(name: str) -> str:
    """The name as an fnmatch pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _reporting(progress: Progress) -> type[Any]:
    """A progress bar class that draws nothing and reports bytes."""
    from huggingface_hub.utils import tqdm

    class Reporting(tqdm):  # type: ignore[misc]  # the hub's class is untyped
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_bytes:
                self.n += n or 0
                progress(int(self.n), int(self.total or 0))
            return None

    return Reporting
