from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.backend.open.set()
    made.engine.stop()
    assert not made.ear.late, "events after the last"
