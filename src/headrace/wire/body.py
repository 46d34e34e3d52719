"""Bytes → JSON object, strictly: what two parsers could read in two ways is refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from headrace.errors import InvalidRequest


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body contains {name}, which JSON does not have")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidRequest("the body has the same key twice in one object; send every key once")
    return result


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object that ``raw`` holds.

    Nesting is bounded by the interpreter's recursion limit (about 1,000), which the scanner respects.

    Raises:
        InvalidRequest: not UTF-8, not JSON, nested too deeply, not an object, a duplicate key, NaN or Infinity.
    """
    try:
        value = _decoder.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError:  # an integer of more than 4,300 digits
        raise InvalidRequest("the body contains a number with too many digits") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value
