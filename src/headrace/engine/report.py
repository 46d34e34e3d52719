"""From the scheduler's tallies to what the recorder, the gauges and ``Retry-After`` need."""

from __future__ import annotations

import logging
from collections import deque

from headrace.engine.recorder import Recorder
from headrace.scheduler.scheduler import Scheduler
from headrace.scheduler.tally import Tally
from headrace.stats import EngineStats, StepStats
from headrace.types import Plan

_log = logging.getLogger(__name__)


class Reporter:
    """Keeps the latest `EngineStats` and passes numbers on. Written to by the loop; reading ``stats`` is safe anywhere.

    A recorder that raises is logged, and costs nobody an answer.
    """

    def __init__(self, scheduler: Scheduler, recorder: Recorder) -> None:
        self._scheduler = scheduler
        self._recorder = recorder
        self._finished_at: deque[float] = deque(maxlen=64)
        self.integrity_failures = 0
        self.step_failures = 0
        self.stats = EngineStats()
        self.snapshot()

    def snapshot(self) -> None:
        """Renew ``stats``."""
        scheduler = self._scheduler
        kv = scheduler.cache.stats()
        self.stats = EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_blocks=kv.total,
            kv_blocks_used=kv.used,
            kv_blocks_cached=kv.cached,
            kv_blocks_touched=kv.touched,
            kv_slots_wasted=scheduler.slots_wasted,
            prefix_query_tokens_total=kv.query_tokens,
            prefix_hit_tokens_total=kv.hit_tokens,
            preemptions_total=scheduler.preemptions,
            integrity_failures_total=self.integrity_failures,
            step_failures_total=self.step_failures,
            stalled_total=scheduler.stalled,
            unsatisfied_total=scheduler.unsatisfied,
        )

    def seconds_for(self, requests: int, now: float) -> float:
        """How long that many requests will take at the pace of late, between 1 and 60 s."""
        times = list(self._finished_at)
        pace = len(times) / max(now - times[0], 1e-3) if times else 0.0
        return min(max(requests / pace, 1.0), 60.0) if pace else 1.0

    def turn(self, plan: Plan | None, begin: float, now: float, backend_time: float, failed: bool) -> None:
        """The loop has turned once, with a step if there was a ``plan``."""
        tally = self._scheduler.take_tally()
        self._finished_at.extend([now] * len(tally.finished))
        try:
            if plan is not None:
                self._recorder.on_step(_step_stats(tally, plan, begin, now, backend_time, failed))
            for finished in tally.finished:
                self._recorder.on_request_finished(finished)
        except Exception:
            _log.exception("the recorder failed")


def _step_stats(tally: Tally, plan: Plan, begin: float, now: float, backend_time: float, failed: bool) -> StepStats:
    return StepStats(
        duration=now - begin,
        backend_time=backend_time,
        sequences=len(plan.rows),
        prefill_tokens=tally.prefill_tokens,
        decode_tokens=tally.decode_tokens,
        generated_tokens=tally.generated_tokens,
        preemptions=tally.preemptions,
        failed=failed,
        inter_token=tuple((now - then, count) for then, count in tally.gaps.items()),
        queue_times=tuple(tally.queue_times),
        first_token_times=tuple(tally.first_token_times),
        drafts=tuple(tally.drafts),
    )
