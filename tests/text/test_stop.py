"""Stop strings against a search of the whole text, however it is cut."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.text.stop import StopMatcher, Stops

EVERY_TIME = settings(derandomize=True, deadline=None, max_examples=500)
TEXT = st.text("abc", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def cut(text: str, sizes: list[int]) -> list[str]:
    """The text in pieces of the given sizes, the rest at the end."""
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


def search(text: str, stops: list[str], include: bool, armed_from: int = 0) -> tuple[str, str | None]:
    """The rule, by brute force: first complete, then longest; only ends beyond ``armed_from`` count."""
    for end in range(armed_from + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@EVERY_TIME
@given(text=TEXT, stops=STOPS, sizes=st.lists(st.integers(0, 5), max_size=12), include=st.booleans())
def test_every_cut_gives_what_searching_the_whole_text_gives(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    matcher = StopMatcher(Stops.of(stops, include=include))
    out, found = "", None
    for piece in cut(text, sizes):
        delta, found = matcher.push(piece)
        out += delta
        if found is not None:
            break
    else:
        out += matcher.finish()
    assert (out, found) == search(text, stops, include)


@EVERY_TIME
@given(text=TEXT, stops=STOPS, sizes=st.lists(st.integers(0, 5), max_size=12), pieces_unarmed=st.integers(0, 8))
def test_matches_that_end_in_unarmed_pieces_are_text(
    text: str, stops: list[str], sizes: list[int], pieces_unarmed: int
) -> None:
    pieces = cut(text, sizes)
    matcher = StopMatcher(Stops.of(stops))
    out, found = "", None
    for index, piece in enumerate(pieces):
        delta, found = matcher.push(piece, armed=index >= pieces_unarmed)
        out += delta
        if found is not None:
            break
    else:
        out += matcher.finish()
    assert (out, found) == search(text, stops, False, sum(map(len, pieces[:pieces_unarmed])))


@EVERY_TIME
@given(text=TEXT, stops=STOPS)
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(Stops.of(stops))
    given_out = ""
    for end, char in enumerate(text, 1):
        delta, found = matcher.push(char)
        given_out += delta
        if found is not None:
            return
        held = text[len(given_out) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_text_without_a_beginning_of_a_stop_string_passes_at_once() -> None:
    assert StopMatcher(Stops.of(["\n\nUser:"])).push(" the wheel") == (" the wheel", None)


def test_empty_stop_strings_match_nothing() -> None:
    assert StopMatcher(Stops.of([""])).push("mill") == ("mill", None)


def test_many_stop_strings_and_text_made_for_them_take_linear_time() -> None:
    begin = time.thread_time()
    matcher = StopMatcher(
        Stops.of(["a" * length + "b" for length in range(1, 1000)] + [f"stop {i}" for i in range(9000)])
    )
    out = sum(len(matcher.push("aaaa")[0]) for _ in range(25_000))
    assert out >= 99_000
    assert time.thread_time() - begin < 5, "0.8 s on an idle machine"
