"""The engine's thread: everything others may do to it, at any moment. Events, not sleeps, order these tests."""

from __future__ import annotations

import threading
import time

import pytest
from msgspec.structs import replace

from headrace.errors import Draining, EngineDead, EngineError, InvalidRequest, QueueFull
from headrace.types import (
    Cause,
    FinishReason,
    Plan,
    Request,
    RowResult,
    StepResult,
    TokenEvent,
)
from tests.engine.rig import MODEL_LEN, PATIENCE, Rig, eventually, request
from tests.fakes import FakeBackend


def test_serves(rig: Rig) -> None:
    asked = request(n=2)
    rig.engine.submit(asked)
    for index in range(2):
        assert rig.ear.wait_for_end("r", index).finish is FinishReason.LENGTH
    rig.check_text(asked)
    assert rig.engine.health().live
    assert rig.engine.health().ready


def test_many_threads_submit_and_abort(rig: Rig) -> None:
    asked = [[request(f"{t}-{i}", 10 + i, 5 + i, n=1 + i % 2) for i in range(25)] for t in range(6)]

    def client(mine: list[Request]) -> None:
        for i, each in enumerate(mine):
            rig.engine.submit(each)
            if i % 3 == 0:
                rig.engine.abort(each.id)

    threads = [threading.Thread(target=client, args=(mine,)) for mine in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    everyone = [each for mine in asked for each in mine]
    rig.ear.wait(lambda: len(rig.ear.ends) == sum(each.n for each in everyone))
    for each in everyone:
        if rig.ear.ends[each.id, 0].finish is FinishReason.LENGTH:
            rig.check_text(each)
        else:
            assert rig.ear.ends[each.id, 0].finish is FinishReason.ABORT
    rig.wait_for_stats(lambda stats: stats.running == stats.waiting == stats.kv_blocks_used == 0)
    assert rig.engine.drain(PATIENCE)
    assert rig.engine.stats().integrity_failures_total == 0
    assert len(rig.recorder.requests) == len(everyone)


def test_an_abort_frees_the_blocks_before_the_next_step(rig: Rig) -> None:
    rig.backend.open.clear()
    rig.engine.submit(request("gone", 60, 300))
    assert rig.backend.entered.wait(PATIENCE)
    steps = rig.backend.steps
    rig.engine.abort("gone")
    rig.backend.open.set()
    assert rig.ear.wait_for_end("gone").finish is FinishReason.ABORT
    rig.wait_for_stats(lambda stats: stats.kv_blocks_used == 0)
    assert rig.backend.steps == steps + 1


def test_a_storm_of_aborts_is_cheap(rig: Rig) -> None:
    rig.engine.stop()
    storm = Rig(max_queued=10_000)
    storm.backend.open.clear()
    for i in range(3000):
        storm.engine.submit(request(f"s{i}", 5, 5))
    for i in range(3000):
        storm.engine.abort(f"s{i}")
    storm.backend.open.set()
    storm.ear.wait(lambda: len(storm.ear.ends) == 3000)
    storm.wait_for_stats(lambda stats: stats.waiting == stats.kv_blocks_used == 0)
    storm.engine.submit(request("next"))
    storm.ear.wait_for_end("next")
    storm.engine.stop()


def test_a_stop_string_ends_one_sequence_with_its_own_reason(rig: Rig) -> None:
    rig.engine.submit(request("r", 20, 300, n=2))
    rig.ear.wait(lambda: len(rig.ear.tokens["r", 1]) > 3)
    rig.engine.abort("r", 1, FinishReason.STOP)
    assert rig.ear.wait_for_end("r", 1).finish is FinishReason.STOP
    assert rig.ear.wait_for_end("r", 0).finish is FinishReason.LENGTH
    rig.ear.wait(lambda: bool(rig.recorder.requests))
    assert rig.recorder.requests[0].finish == (FinishReason.LENGTH, FinishReason.STOP)


def test_a_failing_row_ends_its_request_only(rig: Rig) -> None:
    rig.backend.open.clear()
    bad, good = request("bad"), request("good")
    rig.engine.submit(bad)
    rig.engine.submit(good)

    def fail_one(plan: Plan) -> StepResult | None:
        rows = list(FakeBackend.run(rig.backend, plan).rows)
        for i, row in enumerate(plan.rows):
            if tuple(row.tokens) == bad.prompt:
                rows[i] = RowResult(error="NaN in the logits")
        return StepResult(rows)

    rig.backend.trouble = fail_one
    rig.backend.open.set()
    end = rig.ear.wait_for_end("bad")
    assert (end.finish, end.error) == (FinishReason.ERROR, "NaN in the logits")
    rig.ear.wait_for_end("good")
    rig.check_text(good)


@pytest.mark.parametrize(
    "answer",
    [RowResult(), RowResult(2**40), RowResult(3, target_logprobs=(None,))],  # type: ignore[arg-type]  # a broken backend
    ids=["no token", "a huge token", "logprobs nobody asked for"],
)
def test_an_answer_that_does_not_fit_ends_its_request_only(rig: Rig, answer: RowResult) -> None:
    def mangle(plan: Plan) -> StepResult:
        rig.backend.trouble = lambda plan: None
        return StepResult([answer] * len(plan.rows))

    rig.backend.trouble = mangle
    rig.engine.submit(request("bad"))
    assert rig.ear.wait_for_end("bad").finish is FinishReason.ERROR
    rig.engine.submit(request("good"))
    assert rig.ear.wait_for_end("good").finish is FinishReason.LENGTH
    rig.wait_for_stats(lambda stats: stats.kv_blocks_used == 0)


def test_a_request_that_cannot_be_taken_in_ends_alone(rig: Rig) -> None:
    broken = replace(request("broken", n=2), cache_salt=3)
    rig.engine.submit(broken)
    for index in range(2):
        assert rig.ear.wait_for_end("broken", index).finish is FinishReason.ERROR
    rig.engine.submit(request("good"))
    assert rig.ear.wait_for_end("good").finish is FinishReason.LENGTH
    rig.wait_for_stats(lambda stats: stats.waiting == stats.kv_blocks_used == 0)


@pytest.mark.parametrize("error", [EngineError("out of memory"), ZeroDivisionError("secret")])
def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(rig: Rig, error: Exception) -> None:
    def fail(plan: Plan) -> StepResult:
        rig.backend.trouble = lambda plan: None
        raise error

    rig.backend.trouble = fail
    rig.engine.submit(request("unlucky"))
    end = rig.ear.wait_for_end("unlucky")
    assert end.finish is FinishReason.ERROR
    assert end.error is not None
    assert "secret" not in end.error
    lucky = request("lucky")
    rig.engine.submit(lucky)
    rig.ear.wait_for_end("lucky")
    rig.check_text(lucky)
    assert rig.engine.stats().step_failures_total == 1
    assert rig.engine.health().live
    assert [step.failed for step in rig.recorder.steps][:2] == [True, False]


def test_a_result_for_another_plan_fails_the_step(rig: Rig) -> None:
    rig.backend.trouble = lambda plan: StepResult([])
    rig.engine.submit(request("r"))
    assert "0 of 1 rows" in (rig.ear.wait_for_end("r").error or "")


def test_repeated_failure_is_death_and_health_says_so(rig: Rig) -> None:
    def fail(plan: Plan) -> StepResult:
        raise EngineError("the device is gone")

    rig.backend.trouble = fail
    for i in range(3):
        assert rig.engine.health().live
        rig.engine.submit(request(f"r{i}"))
        rig.ear.wait_for_end(f"r{i}")
    health = rig.engine.health()
    assert not health.live
    assert not health.ready
    assert "EngineError" in health.detail
    with pytest.raises(EngineDead):
        rig.engine.submit(request("late"))
    rig.engine.abort("late")
    assert rig.engine.drain(1.0)


def test_the_death_of_the_loop_ends_everything_and_health_says_so(rig: Rig) -> None:
    def die(plan: Plan) -> StepResult:
        raise SystemExit("not an Exception")

    rig.backend.open.clear()
    rig.engine.submit(request("running"))
    assert rig.backend.entered.wait(PATIENCE)
    rig.engine.submit(request("posted"))
    rig.backend.trouble = die
    rig.backend.open.set()
    for name in ("running", "posted"):
        end = rig.ear.wait_for_end(name)
        assert (end.finish, end.error) == (FinishReason.ERROR, "the engine has stopped")
    assert "SystemExit" in rig.engine.health().detail
    assert not rig.engine.health().live
    with pytest.raises(EngineDead):
        rig.engine.submit(request("late"))
    assert rig.cache.pool.used == 0


def test_an_id_that_is_taken_does_not_disturb_its_owner(rig: Rig) -> None:
    rig.backend.open.clear()
    first = request("same", 20, 10)
    rig.engine.submit(first)
    assert rig.backend.entered.wait(PATIENCE)
    rig.engine.submit(request("same", 30, 10))
    rig.backend.open.set()
    rig.ear.wait_for_end("same")
    rig.check_text(first)


def test_a_hung_backend_is_seen_and_recovers() -> None:
    rig = Rig(stall_after=0.05)
    rig.backend.open.clear()
    rig.engine.submit(request("r"))
    rig.engine.submit(request("waits"))
    assert rig.backend.entered.wait(PATIENCE)
    eventually(lambda: not rig.engine.health().live)
    assert rig.engine.health().heartbeat_age > 0.05
    with pytest.raises(EngineError, match="did not end"):
        rig.engine.stop(0.01)
    rig.backend.open.set()
    rig.ear.wait_for_end("waits")
    rig.engine.stop()


def test_a_stalled_engine_becomes_live_again() -> None:
    rig = Rig(stall_after=0.05)
    rig.backend.open.clear()
    rig.engine.submit(request("r"))
    eventually(lambda: not rig.engine.health().live)
    rig.backend.open.set()
    rig.ear.wait_for_end("r")
    eventually(lambda: rig.engine.health().live)
    time.sleep(0.1)
    assert rig.engine.health().live, "idling is not stalling"
    rig.engine.stop()


def test_the_queue_is_bounded() -> None:
    rig = Rig(max_queued=5, seats=2)
    rig.backend.open.clear()
    accepted, refused = 0, None
    while refused is None:
        try:
            rig.engine.submit(request(f"r{accepted}"))
            accepted += 1
        except QueueFull as error:
            refused = error
    assert 5 <= accepted <= 7, "two may have started"
    assert refused.status == 429
    assert 1.0 <= refused.retry_after <= 60.0
    rig.backend.open.set()
    rig.ear.wait(lambda: len(rig.ear.ends) == accepted)
    rig.engine.submit(request("again"))
    rig.ear.wait_for_end("again")
    rig.engine.stop()


def test_aborted_requests_leave_the_queue() -> None:
    rig = Rig(max_queued=3, seats=1)
    rig.backend.open.clear()
    rig.engine.submit(request("running", output=300))
    assert rig.backend.entered.wait(PATIENCE)
    for i in range(10):
        rig.backend.open.clear()
        rig.engine.submit(request(f"r{i}"))
        rig.engine.abort(f"r{i}")
        rig.backend.open.set()
        rig.ear.wait_for_end(f"r{i}")
    rig.engine.stop()


def test_draining_finishes_what_runs_and_takes_nothing_new(rig: Rig) -> None:
    asked = [request(f"r{i}") for i in range(20)]
    for each in asked:
        rig.engine.submit(each)
    assert rig.engine.drain(PATIENCE)
    for each in asked:
        assert rig.ear.ends[each.id, 0].finish is FinishReason.LENGTH
        rig.check_text(each)
    with pytest.raises(Draining):
        rig.engine.submit(request("late"))
    assert rig.engine.health().live
    assert not rig.engine.health().ready


def test_draining_aborts_what_outlasts_its_grace(rig: Rig) -> None:
    rig.backend.open.clear()
    rig.engine.submit(request("slow", 20, 300))
    assert rig.backend.entered.wait(PATIENCE)
    rig.go_on_when_closing()
    assert not rig.engine.drain(0.0)
    assert rig.ear.ends["slow", 0].finish is FinishReason.ABORT


def test_stopping_ends_everything_visibly(rig: Rig) -> None:
    rig.backend.open.clear()
    rig.engine.submit(request("running", 20, 300))
    assert rig.backend.entered.wait(PATIENCE)
    rig.engine.submit(request("posted", 20, 300))
    rig.go_on_when_closing()
    rig.engine.stop()
    rig.engine.stop()
    assert {end.finish for end in rig.ear.ends.values()} == {FinishReason.ABORT}
    assert len(rig.ear.ends) == 2
    assert not rig.engine.health().live
    assert rig.cache.pool.used == 0


def test_deadlines(rig: Rig) -> None:
    rig.engine.submit(replace(request("late", output=300), deadline=time.monotonic() - 1))
    end = rig.ear.wait_for_end("late")
    assert (end.finish, end.cause) == (FinishReason.ERROR, Cause.DEADLINE)


def test_wrong_books_are_noticed_when_idle(rig: Rig) -> None:
    rig.engine.submit(request("r"))
    rig.ear.wait_for_end("r")
    rig.cache.pool.references[0] += 1
    rig.engine.submit(request("s"))
    rig.ear.wait_for_end("s")
    rig.wait_for_stats(lambda stats: stats.integrity_failures_total > 0)
    rig.cache.pool.references[0] -= 1


def test_a_failing_listener_or_recorder_costs_nobody_else(rig: Rig) -> None:
    rig.engine.stop()
    other = Rig(start=False)
    heard = 0

    def listener(events: list[TokenEvent]) -> None:
        nonlocal heard
        heard += 1
        other.ear(events)
        raise ValueError("not my day")

    other.recorder.steps = None  # type: ignore[assignment]  # makes on_step raise
    other.engine.start(listener)
    other.engine.submit(request("r"))
    other.ear.wait_for_end("r")
    assert heard > 1
    other.engine.stop()


def test_before_it_starts() -> None:
    rig = Rig(start=False)
    assert rig.engine.health().live
    assert not rig.engine.health().ready
    asked = request()
    rig.engine.submit(asked)
    rig.engine.start(rig.ear)
    rig.ear.wait_for_end("r")
    with pytest.raises(EngineError, match="twice"):
        rig.engine.start(rig.ear)
    rig.engine.stop()


def test_what_cannot_be_served_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="400"):
        rig.engine.submit(request("r", prompt=MODEL_LEN))
    assert rig.engine.stats().waiting == 0


def test_numbers(rig: Rig) -> None:
    rig.engine.submit(request("r", prompt=20, output=10, n=2))
    rig.ear.wait_for_end("r", 0)
    rig.ear.wait_for_end("r", 1)
    assert rig.engine.drain(PATIENCE)
    (stats,) = rig.recorder.requests
    assert (stats.prompt_tokens, stats.generation_tokens, stats.n, stats.max_tokens) == (20, (10, 10), 2, 10)
    assert stats.cached_tokens == stats.preemptions == 0
    assert stats.prefill_time is not None
    assert stats.decode_time is not None
    assert 0 <= stats.prefill_time + stats.decode_time <= stats.e2e_time + 1e-9
    steps = rig.recorder.steps
    assert sum(step.generated_tokens for step in steps) == 20
    assert sum(step.prefill_tokens for step in steps) == 20 + 1, "the sibling computes the last prompt token again"
    assert sum(step.decode_tokens for step in steps) == 18
    assert sum(count for step in steps for _, count in step.inter_token) == 18
    assert sum(len(step.first_token_times) for step in steps) == sum(len(step.queue_times) for step in steps) == 1
    assert all(0 <= step.backend_time <= step.duration for step in steps)
