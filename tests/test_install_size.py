"""The base install stays small: headrace and everything it brings, unpacked, byte code left out."""

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIMIT = 80_000_000
FORBIDDEN = {"torch", "transformers", "numpy", "triton", "scipy", "pandas", "fastapi", "pydantic"}


def base_closure(name: str) -> dict[str, metadata.Distribution]:
    """The distribution and all that it requires with no extra asked for, by canonical name."""
    found: dict[str, metadata.Distribution] = {}
    todo = [name]
    while todo:
        current = canonicalize_name(todo.pop())
        if current in found:
            continue
        distribution = metadata.distribution(current)
        found[current] = distribution
        for line in distribution.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found


def unpacked_bytes(distribution: metadata.Distribution) -> int:
    paths = [Path(str(file.locate())) for file in distribution.files or []]
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())


def test_base_install_is_small() -> None:
    closure = base_closure("headrace")
    sizes = {name: unpacked_bytes(distribution) for name, distribution in closure.items()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    assert sum(sizes.values()) <= LIMIT, f"{sum(sizes.values()) / 1e6:.1f} MB unpacked; largest: {largest}"
    assert not FORBIDDEN & closure.keys()
