"""A `Constraint` → the text that llguidance compiles; refuses what would take too long or too much to compile.

llguidance bounds its own work, but in units that a hostile grammar can make expensive (a concatenation of ten thousand
optional parts takes half a gigabyte; rules nested through thirty thousand references overflow its stack and with it
the process). The limits below keep every compilation under about a second; docs/decisions/0015 has the measurements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from headrace.constraint import LITERAL, Constraint
from headrace.errors import InvalidRequest

MAX_SCHEMA = 256 << 10
"""Characters of a JSON schema. References may nest as deep as its text allows, and each level takes stack."""
MAX_GRAMMAR = 32 << 10
"""Characters of a Lark or GBNF grammar; the Earley items of its first token may grow with the square of it."""
MAX_REGEX = 4 << 10
"""Characters of one regular expression; memory grows with the square of what is written out."""
MAX_REGEXES = 16 << 10
"""Characters of all regular expressions of one schema."""
MAX_CHOICES = 512 << 10
"""Characters of all alternatives of a choice."""

TEXT = r"/(.|\n)*/"
"""Any text, in Lark."""

Special = Mapping[str, int]
"""The special tokens of a vocabulary by name."""


def source_of(constraint: Constraint, special: Special) -> str:
    """The grammar in llguidance's own form: Lark, or a JSON list of grammars.

    Raises:
        InvalidRequest: it is too large, or not of the form that its kind promises. What is wrong inside of a schema, a
            regex or a grammar is found by the compiler. Neither knows the field: whoever asked adds it.
    """
    try:
        return _WRITERS[constraint.kind](constraint, special)
    except RecursionError:
        raise InvalidRequest("it is nested too deeply") from None


def literal(text: str, special: Special) -> str:
    """``text`` as Lark: strings, and references to the special tokens whose names occur in it. Empty for no text."""
    if not text:
        return ""
    names = sorted((name for name in special if name and name in text), key=len, reverse=True)
    if not names:
        return json.dumps(text, ensure_ascii=False)
    pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    shown = [f"<[{special[p]}]>" if p in special else json.dumps(p, ensure_ascii=False) for p in pieces if p]
    return " ".join(shown)


def _bounded(constraint: Constraint, limit: int, what: str) -> str:
    value = constraint.value
    if len(value) > limit:
        raise InvalidRequest(f"the {what} has {len(value)} characters; the limit is {limit}")
    return value


def _schema(constraint: Constraint, special: Special) -> str:
    text = _bounded(constraint, MAX_SCHEMA, "schema")
    check_schema(json.loads(text))
    return f'{{"grammars": [{{"json_schema": {text}}}]}}'


def check_schema(schema: object) -> None:
    """Refuse a schema whose regular expressions are too long.

    Raises:
        InvalidRequest: they are.
    """
    total = 0
    for pattern in _patterns(schema):
        total += len(pattern)
        if len(pattern) > MAX_REGEX:
            raise InvalidRequest(f"the schema has a pattern of {len(pattern)} characters; the limit is {MAX_REGEX}")
    if total > MAX_REGEXES:
        raise InvalidRequest(f"the patterns of the schema have {total} characters; the limit is {MAX_REGEXES}")


def _patterns(schema: object) -> Iterator[str]:
    """Every text that may be read as a regular expression."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("pattern", *_OPTIONS) and isinstance(value, str):
                yield value
            elif key == "patternProperties" and isinstance(value, dict):
                yield from value
            yield from _patterns(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _patterns(value)


_OPTIONS = ("whitespace_pattern", "item_separator", "key_separator")


def _regex(constraint: Constraint, special: Special) -> str:
    """The whole text matches: anchors around all of it say nothing new."""
    return "start: " + _slashed(_bounded(constraint, MAX_REGEX, "regex").removeprefix("^"))


def _slashed(regex: str) -> str:
    """A regex between slashes; ``\\d`` and ``\\w`` are ASCII, as JSON Schema has them."""
    if regex.endswith("$") and (len(regex) - len(regex[:-1].rstrip("\\"))) % 2 == 1:
        regex = regex[:-1]
    from llguidance import regex_to_lark

    # An empty one would begin a comment.
    return "/" + (regex_to_lark(regex, "dw") or "()") + "/"


def _choice(constraint: Constraint, special: Special) -> str:
    """One terminal of all alternatives: a lexeme, where rules would take an Earley item each."""
    texts = json.loads(_bounded(constraint, MAX_CHOICES, "choice"))
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _lark(constraint: Constraint, special: Special) -> str:
    text = _bounded(constraint, MAX_GRAMMAR, "grammar")
    # Text that begins with a brace would be read as a list of grammars, past the limits of this file.
    return "%llguidance {}\n" + text


def _ebnf(constraint: Constraint, special: Special) -> str:
    text = _bounded(constraint, MAX_GRAMMAR, "grammar")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return "%llguidance {}\n" + str(gbnf_to_lark(text))
    except RecursionError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InvalidRequest(f"the grammar is not GBNF: {reason}") from None


def _structural_tag(constraint: Constraint, special: Special) -> str:
    """vLLM's first form: ``{"structures": [{"begin", "schema", "end"}], "triggers": […]}``. Text goes where it likes
    until a trigger is written; then one of the structures that begin with it must follow."""
    try:
        tag = json.loads(_bounded(constraint, MAX_SCHEMA, "structural tag"))
    except ValueError:
        raise InvalidRequest("the structural tag is not valid JSON") from None
    structures, triggers = (tag.get("structures"), tag.get("triggers")) if isinstance(tag, dict) else (None, None)
    if not isinstance(structures, list) or not isinstance(triggers, list) or not structures or not triggers:
        raise InvalidRequest("a structural tag must have the lists structures and triggers")
    rules, names = [], []
    for index, item in enumerate(structures):
        if not isinstance(item, dict) or not all(isinstance(item.get(key, ""), str) for key in ("begin", "end")):
            raise InvalidRequest(f"structures[{index}] must have begin, schema and end")
        begin, schema = item.get("begin", ""), item.get("schema", {})
        trigger = next((t for t in triggers if isinstance(t, str) and t and begin.startswith(t)), None)
        if trigger is None:
            raise InvalidRequest(f"structures[{index}].begin does not begin with one of the triggers")
        body = _body({"begin": begin[len(trigger) :], "schema": schema, "end": item.get("end", "")}, special)
        rules += _triggered(f"tag{index}", trigger, body, special)
        names.append(f"tag{index}")
    return _join(f"start: ({' | '.join(names)})* tail", "tail: TEXT", f"TEXT: {TEXT}", *rules)


def _calls(constraint: Constraint, special: Special) -> str:
    """What `headrace.constraint.forced_calls` describes."""
    value = json.loads(_bounded(constraint, MAX_SCHEMA, "description of the tools"))
    shapes, trigger = value["shapes"], value["trigger"]
    rules: list[str] = []
    if trigger is None:
        rules += [f"call{i}: {_body(shape, special)}" for i, shape in enumerate(shapes)]
    else:
        for i, shape in enumerate(shapes):
            rest = {**shape, "begin": shape["begin"].removeprefix(trigger)}
            rules += _triggered(f"call{i}", trigger, _body(rest, special), special)
    rules.append("call: " + " | ".join(f"call{i}" for i in range(len(shapes))))
    least, most = value["least"], value["most"]
    if trigger is None:
        run = _run(literal(value["separator"], special), least, most)
        calls = " ".join(
            part for part in (literal(value["prefix"], special), run, literal(value["suffix"], special)) if part
        )
        rules.append(f"calls: {calls}" if least else f"calls: ({calls})?")
    else:
        count = f"{{{least},{'' if most is None else most}}}"
        rules += [f"calls: call{count} tail", "tail: TEXT"]
    start = "start: calls"
    if value["after"]:
        start = "start: lead GAP? calls"
        rules += _until("lead", value["after"], special)
    return _join(start, *rules, f"TEXT: {TEXT}", r"GAP: /[ \n]{1,4}/")


def _run(separator: str, least: int, most: int | None) -> str:
    """From ``least`` (one at the least: an empty run is written around it) to ``most`` calls."""
    if most == 1:
        return "call"
    more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    return f"call ({separator} call){more}".replace("( ", "(")


def _body(shape: Mapping[str, Any], special: Special) -> str:
    """A call from its begin to its end, as the right-hand side of a rule."""
    if shape.get("lark") is not None:
        arguments = _LITERAL.sub(lambda found: f"({literal(json.loads(found[1]), special)})", shape["lark"])
    else:
        schema = {"type": "object"} if shape["schema"] is None else shape["schema"]
        check_schema(schema)
        if isinstance(schema, dict) and "x-guidance" not in schema:
            schema = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
        arguments = "%json " + json.dumps(schema, ensure_ascii=False)
    return " ".join(
        part for part in (literal(shape["begin"], special), arguments, literal(shape["end"], special)) if part
    )


_LITERAL = re.compile(LITERAL + r'("(?:[^"\\]|\\.)*")')

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the parts of JSON: enough to indent, too little to get lost in."""


def _until(name: str, mark: str, special: Special) -> list[str]:
    """A rule for free text up to and including the first ``mark``."""
    if mark in special:
        return [f"{name}: TEXT {literal(mark, special)}"]
    return [f"{name}[lazy]: TEXT {literal(mark, {})}"]


def _triggered(name: str, trigger: str, rest: str, special: Special) -> list[str]:
    """A rule for free text, then ``trigger``, then ``rest``, which must follow it."""
    return [*_until(f"{name}head", trigger, special), f"{name}: {name}head {rest}"]


def _join(*lines: str) -> str:
    return "%llguidance {}\n" + "\n".join(lines) + "\n"


_WRITERS: Mapping[str, Callable[[Constraint, Special], str]] = {
    "json_schema": _schema,
    "json_object": _schema,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
    "ebnf": _ebnf,
    "structural_tag": _structural_tag,
    "calls": _calls,
}
