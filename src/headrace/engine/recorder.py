"""What the engine reports, as numbers. ``metrics`` implements it; the engine knows no metric's name."""

from __future__ import annotations

from typing import Protocol

from headrace.stats import RequestStats, StepStats


class Recorder(Protocol):
    """Receives the engine's numbers. Called on the engine's thread between steps: must be quick and must not raise."""

    def on_step(self, stats: StepStats) -> None:
        """One step was run."""
        ...

    def on_request_finished(self, stats: RequestStats) -> None:
        """The last sequence of a request ended, for whatever reason: finished, aborted, failed, out of time."""
        ...


class NullRecorder:
    """Keeps nothing."""

    def on_step(self, stats: StepStats) -> None:
        """Nothing."""

    def on_request_finished(self, stats: RequestStats) -> None:
        """Nothing."""
