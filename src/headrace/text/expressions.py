"""Regular expressions from model files: refused when matching them could take exponential time.

Oniguruma backtracks and cannot be interrupted; it gives up, loudly, after ten million steps from one position. An
unbounded repeat of something that itself repeats without bound or branches (``(a+)+``, ``(a|a)*``) is what makes
backtracking explode; no tokenizer that headrace serves needs one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from headrace.errors import UnsupportedModel

MAX_EXPRESSION_CHARS = 20_000

_COUNTED = re.compile(r"\{\d*(?:(,)|,\d+)?\}")


def refuse_costly_expressions(state: str) -> None:
    """Check every expression in the JSON of a tokenizer's part.

    Raises:
        UnsupportedModel: one is too long, or nests unbounded repeats.
    """
    if '"Regex"' not in state:
        return
    for expression in _expressions(json.loads(state)):
        if len(expression) > MAX_EXPRESSION_CHARS:
            raise UnsupportedModel(f"a tokenizer expression has {len(expression)} characters; the limit is 20,000")
        if may_explode(expression):
            raise UnsupportedModel(f"the tokenizer expression {expression[:200]!r} could take exponential time")


def _expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("Regex"), str):
            yield node["Regex"]
        for value in node.values():
            yield from _expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from _expressions(value)


def may_explode(expression: str) -> bool:
    """Whether an unbounded repeat applies to a group that itself repeats without bound, or branches."""
    plain, branches, repeats = 0, 1, 2
    groups = [plain]  # What each open group holds.
    closed = plain  # What the group held that has just been closed: its own quantifier may follow.
    i = 0
    while i < len(expression):
        char = expression[i]
        counted = _COUNTED.match(expression, i)
        if char in "*+" or (counted and counted[1] == ","):
            if closed:
                return True
            groups[-1] = repeats
        elif counted and closed == repeats:
            return True
        closed = plain
        if char == "\\":
            i += 1
        elif char == "[":
            i = _end_of_class(expression, i)
        elif char == "(":
            groups.append(plain)
        elif char == "|" and len(groups) > 1:
            groups[-1] = max(groups[-1], branches)
        elif char == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] = max(groups[-1], closed)
        elif counted:
            i = counted.end() - 1
        i += 1
    return False


def _end_of_class(expression: str, start: int) -> int:
    """Index of the bracket that closes the character class opened at ``start``; classes nest in Oniguruma."""
    depth, i = 0, start
    while i < len(expression):
        if expression[i] == "\\":
            i += 1
        elif expression[i] == "[":
            depth += 1
        elif expression[i] == "]" and not (i == start + 1 or expression[i - 2 : i] == "[^"):
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return len(expression)
