"""Bytes → JSON object, strictly: what two parsers could read in two ways is refused."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from headrace.errors import InvalidRequest

MAX_DEPTH = 128
"""Objects and lists within each other. Whatever walks a body recurses, and the interpreter ends that at about 1,000."""


def is_nested_deeper(value: object, depth: int) -> bool:
    """Whether data has more than ``depth`` objects and lists within each other."""
    level = [value]
    for _ in range(depth):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body contains {name}, which JSON does not have")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidRequest("the body contains a number that is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidRequest("the body has the same key twice in one object; send every key once")
    return result


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object that ``raw`` holds.

    Raises:
        InvalidRequest: not UTF-8, not JSON, nested too deeply, not an object, a duplicate key, NaN or Infinity.
    """
    too_deep = InvalidRequest(f"the body is nested more than {MAX_DEPTH} deep")
    try:
        value = _decoder.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise too_deep from None
    except ValueError:  # an integer of more than 4,300 digits
        raise InvalidRequest("the body contains a number with too many digits") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and is_nested_deeper(value, MAX_DEPTH):
        raise too_deep
    return value
