"""The prompts of a body, in OpenAI's four forms."""

from __future__ import annotations

from headrace.wire.calls import Prompt
from headrace.wire.fields import Fields, check_text, check_token_ids, shown
from headrace.wire.limits import Limits


def parse_prompts(fields: Fields, name: str, limits: Limits) -> tuple[Prompt, ...]:
    """``str | [str] | [int] | [[int]]``, and nothing mixed.

    Raises:
        InvalidRequest: it is none of them, empty, too long, or holds an id outside the vocabulary.
    """
    value = fields.raw(name)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong(name, f"must be text, token ids, or a list of either, not {_empty_or(value)}")
    if isinstance(value[0], int):
        value = [value]
    if len(value) > limits.max_prompts:
        raise fields.wrong(name, f"is a list of {len(value)} prompts; the limit is {limits.max_prompts}")
    if isinstance(value[0], str):
        return tuple(check_text(item, name) for item in value)
    return tuple(_ids(fields, name, item, limits) for item in value)


def _ids(fields: Fields, name: str, item: object, limits: Limits) -> tuple[int, ...]:
    if not isinstance(item, list) or not item:
        raise fields.wrong(name, f"must be text, token ids, or a list of either, not {_empty_or(item)}")
    if len(item) > limits.max_model_len:
        raise fields.wrong(name, f"has {len(item)} tokens; the context holds {limits.max_model_len}")
    return check_token_ids(item, name, limits.vocab_size)


def _empty_or(value: object) -> str:
    return "an empty list" if value == [] else "missing" if value is None else shown(value)
