"""The step loop, and what the rest of the server may ask of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from headrace.backends import Backend
from headrace.engine.recorder import NullRecorder, Recorder
from headrace.engine.report import Reporter
from headrace.errors import Draining, EngineDead, EngineError, InvalidRequest, QueueFull
from headrace.kvcache.integrity import problems
from headrace.scheduler.admission import Limits, check
from headrace.scheduler.scheduler import Scheduler
from headrace.stats import EngineStats, Health
from headrace.types import BLOCK_SIZE, FinishReason, Plan, Request, TokenEvent

Listener = Callable[[list[TokenEvent]], None]
"""Called once per step with all its events, on the engine's thread: it must hand them over and return."""

Command = Callable[[], list[TokenEvent]]
"""Something for the loop to do between two steps."""

Clock = Callable[[], float]

_log = logging.getLogger(__name__)
_ABORT_SECONDS = 5.0
"""How long `Engine.drain` waits for aborted work to be gone: a step or two."""


class EngineConfig(Struct, frozen=True):
    """Limits of the loop. Times are seconds."""

    max_queued: int = 1024
    """Requests that may wait for their first step; more are refused with `QueueFull`."""
    stall_after: float = 30.0
    """The loop counts as dead for health when it has not turned for so long with work to do."""
    max_failures: int = 3
    """Steps in a row that may fail before the engine gives up."""
    check_after: float = 0.2
    """Idle time before the block books are checked: not between two requests of one busy user."""


class Engine:
    """Runs a scheduler's plans on a backend, on a thread of its own.

    Thread-safe: `submit`, `abort`, `health`, `stats`, `drain`, `stop`. Everything else belongs to the loop, which
    others reach only through the inbox. The backend stays the caller's to close, after `stop`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: Backend,
        recorder: Recorder | None = None,
        config: EngineConfig | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._report = Reporter(scheduler, recorder or NullRecorder())
        self._config = config or EngineConfig()
        self._clock = clock
        self._listener: Listener = lambda events: None
        slots = scheduler.cache.num_blocks * BLOCK_SIZE
        self._limits = Limits(backend.vocab_size, scheduler.config.max_model_len, slots)

        self._changed = threading.Condition()  # guards what follows, up to the blank line
        self._inbox: list[Command] = []
        self._thread: threading.Thread | None = None
        self._waiting = 0  # requests that were accepted and never ran
        self._draining = self._stopping = self._idle = False
        self._dead: str | None = None

        self._beat = clock()
        self._failures = 0  # in a row

    # ------------------------------------------------------------------------------------------- for everyone

    def start(self, listener: Listener) -> None:
        """Start the loop; ``listener`` hears of every event.

        Raises:
            EngineError: it was started before.
        """
        with self._changed:
            if self._thread is not None:
                raise EngineError("the engine is started twice")
            self._listener = listener
            self._beat = self._clock()
            self._thread = threading.Thread(target=self._loop, name="headrace-engine", daemon=True)
            self._thread.start()

    def submit(self, request: Request) -> None:
        """Accept a request; it joins the next step that has room. Ids must be unique: the server makes them.

        Raises:
            InvalidRequest: it could not be served even by an idle server.
            QueueFull: too many wait.
            Draining: the server is shutting down.
            EngineDead: the loop has stopped.
        """
        check(request, self._limits)
        with self._changed:
            self._refuse_if_closed()
            if self._waiting >= self._config.max_queued:
                raise QueueFull(
                    f"{self._waiting} requests are waiting, and the limit is {self._config.max_queued}",
                    self._report.seconds_for(self._waiting, self._clock()),
                )
            self._waiting += 1
            self._post(lambda: self._add(request))

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request, or its ``index``-th sequence, before the next step is planned.

        For a client that has gone; or, with a ``reason``, for a text that has reached a stop string. The last event of
        each sequence comes as always. Unknown ids are ignored: it may have ended by itself.
        """
        with self._changed:
            self._post(lambda: self._scheduler.abort(request_id, self._clock(), index, reason))

    def health(self) -> Health:
        """Whether the loop turns, and whether requests are taken. Never waits for the loop."""
        thread, idle = self._thread, self._idle
        age = 0.0 if idle or thread is None else max(self._clock() - self._beat, 0.0)
        if self._dead is not None:
            return Health(False, False, f"dead: {self._dead}", age)
        if thread is None:
            return Health(True, False, "not started")
        if age > self._config.stall_after:
            return Health(False, False, f"the step loop has not turned for {age:.0f} s", age)
        if self._draining:
            return Health(True, False, "draining", age)
        return Health(True, True, "", age)

    def stats(self) -> EngineStats:
        """The engine in numbers, as of its latest step."""
        return self._report.stats

    def drain(self, grace: float) -> bool:
        """Take nothing new and wait up to ``grace`` seconds for what is running; then abort the rest.

        Returns True if all of it finished by itself.
        """
        with self._changed:
            self._draining = True
            if self._thread is None or self._changed.wait_for(self._quiet, max(grace, 0.0)):
                return True
            self._post(lambda: self._scheduler.abort_all(self._clock()))
            self._changed.wait_for(self._quiet, _ABORT_SECONDS)
            return False

    def stop(self, timeout: float = 10.0) -> None:
        """End the loop after its current step; whatever is live is aborted, visibly. Idempotent.

        Raises:
            EngineError: the step did not end within ``timeout`` seconds.
        """
        with self._changed:
            self._stopping = self._draining = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            if thread.is_alive():
                raise EngineError(f"the step loop did not end within {timeout:.0f} s")
        self._listener = lambda events: None  # the listener knows the engine: nothing would ever free the two

    def _refuse_if_closed(self) -> None:
        if self._dead is not None:
            raise EngineDead(f"the engine has stopped: {self._dead}")
        if self._draining:
            raise Draining("the server is shutting down; send this to another one")

    def _add(self, request: Request) -> list[TokenEvent]:
        try:
            self._scheduler.add(request)
        except InvalidRequest:  # its id is taken: an event would be heard as the other one's
            _log.exception("a request was accepted twice; the second is dropped")
        except Exception:
            _log.exception("a request could not be taken in; it ends here")
            error = "internal error"
            return [TokenEvent(request.id, i, finish=FinishReason.ERROR, error=error) for i in range(request.n)]
        return []

    def _post(self, command: Command) -> None:
        if self._dead is not None:
            return  # nobody is there to read it, and everything has ended
        self._inbox.append(command)
        if self._idle:
            self._idle = False
            self._beat = self._clock()
            self._changed.notify_all()

    def _quiet(self) -> bool:
        return self._dead is not None or (self._idle and not self._inbox)

    # --------------------------------------------------------------------------------------------- the loop

    def _loop(self) -> None:
        cause = "stopped"
        try:
            while not self._stopping and self._dead is None:
                self._turn()
        except BaseException as error:  # whatever it is: the clients must hear of it, and health must say so
            cause = f"{type(error).__name__}: {error}"
            _log.exception("the step loop died")
        with self._changed:
            self._dead = self._dead or cause
            inbox, self._inbox = self._inbox, []
        events: list[TokenEvent] = []
        for command in (*inbox, self._end_all):
            try:
                events += command()
            except Exception:  # what broke the loop may break this too, and must not keep the others' ends from them
                _log.exception("something posted to a step loop that has ended went wrong")
        self._settle(events, None, self._clock(), 0.0)
        with self._changed:
            self._changed.notify_all()

    def _end_all(self) -> list[TokenEvent]:
        if self._stopping:
            return self._scheduler.abort_all(self._clock())
        return self._scheduler.fail(None, self._clock(), "the engine has stopped")

    def _turn(self) -> None:
        """Once around: what was posted, then a step, then everyone hears of it."""
        commands = self._take()
        begin = self._beat = self._clock()
        events = [event for command in commands for event in command()]
        plan, ran = self._step(begin, events)
        self._settle(events, plan, begin, ran)

    def _take(self) -> list[Command]:
        """What was posted; waits while there is nothing to do, and checks the books after a while of that."""
        if not self._inbox and not self._scheduler.has_work:
            self._wait(self._config.check_after)
            if self._idle and not self._stopping:
                self._check_books()
                self._wait(None)
        with self._changed:
            self._idle = False
            inbox, self._inbox = self._inbox, []
            return inbox

    def _wait(self, timeout: float | None) -> None:
        with self._changed:
            self._idle = not self._inbox
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._inbox) or self._stopping, timeout)

    def _step(self, now: float, events: list[TokenEvent]) -> tuple[Plan | None, float]:
        """The heartbeat: schedule, run, commit. Returns the plan, and the seconds that the backend took."""
        plan, ran = None, 0.0
        try:
            events += self._scheduler.expire(now)
            plan = self._scheduler.schedule(now)
            if plan is not None:
                start = self._clock()
                result = self._backend.run(plan)
                end = self._clock()
                ran = end - start
                events += self._scheduler.commit(plan, result, end)
                self._failures = 0
        except Exception as error:
            events += self._fail(plan, error)
        return plan, ran

    def _fail(self, plan: Plan | None, error: Exception) -> list[TokenEvent]:
        """A step failed as a whole: its requests end with an error, the others go on; too many in a row are the end."""
        self._failures += 1
        self._report.step_failures += 1
        _log.error("step failed (%d in a row)", self._failures, exc_info=error)
        message = f"the step failed: {error}" if isinstance(error, EngineError) else "internal error"
        events = self._scheduler.fail(plan, self._clock(), message)
        if self._failures >= self._config.max_failures:
            self._dead = f"{self._failures} steps in a row failed, the last with {type(error).__name__}"
        return events

    def _settle(self, events: list[TokenEvent], plan: Plan | None, begin: float, ran: float) -> None:
        """Numbers first, then the listener: whoever hears of an end finds it counted."""
        with self._changed:
            self._waiting = self._scheduler.num_unstarted + len(self._inbox)
        self._report.turn(plan, begin, self._clock(), ran, self._failures > 0)
        self._report.snapshot()
        if events:
            try:
                self._listener(events)
            except Exception:
                _log.exception("the listener failed on %d events", len(events))

    def _check_books(self) -> None:
        found = problems(self._scheduler.cache, interrupted=lambda: bool(self._inbox))
        if found:
            _log.error("the KV block books are wrong: %s", "; ".join(found[:10]))
            self._report.integrity_failures += 1
            self._report.snapshot()
