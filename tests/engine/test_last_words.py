"""A step loop that dies of a bug still tells everyone who waits for it."""

from __future__ import annotations

import pytest

from headrace.types import FinishReason, TokenEvent
from tests.engine.rig import Rig, eventually, request


def test_every_request_ends_whatever_breaks_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    def broken(request_id: str, *rest: object) -> list[TokenEvent]:
        if request_id == "first":
            rig.engine.abort("second")  # is still in the inbox when the loop dies
        raise RuntimeError("the books are wrong")

    monkeypatch.setattr(rig.engine._scheduler, "abort", broken)
    rig.backend.open.clear()
    rig.engine.submit(request("r", output=200))
    assert rig.backend.entered.wait(20)
    rig.engine.abort("first")
    rig.backend.open.set()
    assert rig.ear.wait_for_end("r").finish is FinishReason.ERROR
    eventually(lambda: not rig.engine.health().live)
    assert "the books are wrong" in rig.engine.health().detail
