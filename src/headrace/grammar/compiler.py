"""Constraints → compiled grammars, on threads of their own, with a cache, a queue and limits that all have an end."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from headrace.constraint import Constraint
from headrace.errors import HeadraceError, InvalidRequest, QueueFull
from headrace.grammar.masks import CompiledGrammar, plain
from headrace.grammar.sources import source_of
from headrace.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLParserLimits

CACHED = 64
"""Compiled grammars that are kept; with the limits below, at most about 20 MB each, typically one."""
QUEUED = 256
"""Constraints that may wait to be compiled."""
THREADS = 2
STACK_BYTES = 256 << 20
"""Of a compiling thread, and only what is touched takes memory: four times what the largest schema can need."""
NICE = 10
"""Compiling gives way to the step loop where there are too few processors for both."""

Key = tuple[str, str]

log = logging.getLogger("headrace.grammar")


def parser_limits() -> LLParserLimits:
    """llguidance's own limits, tighter than its defaults: the worst step takes some 15 ms instead of half a second."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        step_lexer_fuel=50_000,
        step_max_items=3_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


class Compiler:
    """Compiles for one vocabulary. `compile` may be called on any thread and returns at once."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """``vocabulary`` is called once, on a compiling thread, when the first constraint comes."""
        self._open_vocabulary = vocabulary
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()  # guards what follows
        self._results: OrderedDict[Key, Future[CompiledGrammar]] = OrderedDict()
        self._queue: deque[tuple[Constraint, Future[CompiledGrammar]]] = deque()
        self._threads = 0
        self._opening = threading.Lock()

    def compile(self, constraint: Constraint) -> Future[CompiledGrammar]:
        """The grammar, perhaps later; the same constraint is compiled once, whoever asks, and failures are kept too.

        The future raises InvalidRequest with the keyword or the place that is at fault, without the request's field.

        Raises:
            QueueFull: too many wait to be compiled.
        """
        key = (constraint.kind, constraint.value)
        with self._lock:
            found = self._results.get(key)
            if found is not None:
                self._results.move_to_end(key)
                return found
            if len(self._queue) >= QUEUED:
                raise QueueFull(f"{QUEUED} grammars are waiting to be compiled; try again in a second")
            if self._threads < THREADS:
                _start(self._work)  # first: where no thread can be had, nothing has been promised yet
                self._threads += 1
            future: Future[CompiledGrammar] = Future()
            self._results[key] = future
            while len(self._results) > CACHED + len(self._queue) + THREADS:
                self._results.popitem(last=False)
            self._queue.append((constraint, future))
        return future

    def _work(self) -> None:
        """A thread: until there is nothing left to compile."""
        _give_way()
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                constraint, future = self._queue.popleft()
            try:
                future.set_result(self._compile(constraint))
            except BaseException as error:  # a panic in Rust is no Exception
                if not isinstance(error, HeadraceError):
                    log.exception("a grammar of kind %s could not be compiled", constraint.kind)
                    error = InvalidRequest(plain(str(error)))
                future.set_exception(error)

    def _compile(self, constraint: Constraint) -> CompiledGrammar:
        from llguidance import LLMatcher

        with self._opening:
            if self._vocabulary is None:
                self._vocabulary = self._open_vocabulary()
        vocabulary = self._vocabulary
        source = source_of(constraint, vocabulary.special)
        core = LLMatcher(vocabulary.tokenizer, source, log_level=0, limits=parser_limits())
        mask = b"" if core.is_error() else core.compute_bitmask()
        if core.is_error():
            raise InvalidRequest(explained(core.get_error()))
        return CompiledGrammar(core, mask)


def explained(message: str) -> str:
    """llguidance's message for whoever wrote the schema or grammar."""
    keys = re.search(r"Unimplemented keys: \[(.*?)\]", message)
    if keys is not None:
        return f"the schema has keywords that are not supported: {keys[1].replace(chr(34), '')}"
    if "oneOf constraints are not supported" in message:
        return "oneOf is supported only where no value can match two of its schemas; use anyOf"
    return plain(message)


def _start(work: Callable[[], None]) -> None:
    before = threading.stack_size(STACK_BYTES)
    try:
        threading.Thread(target=work, name="headrace-grammar", daemon=True).start()
    finally:
        threading.stack_size(before)


def _give_way() -> None:
    """Linux gives every thread a niceness of its own; elsewhere it would be the process's, so it is left alone."""
    if hasattr(os, "sched_getaffinity"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
