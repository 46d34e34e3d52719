"""Chat messages to prompt ids, such that what people write cannot pass for what the template writes.

Special tokens are the grammar of a chat: ``<|im_start|>system`` begins a new speaker. A template writes them, and
encoding recognises them in its text; but a message may contain the same characters, and must then be encoded as
characters.

How: the messages are rendered once more with *hidden* text: one character of each special token (most often the first,
"<") is replaced, in all that the caller wrote, by a stand-in that occurs nowhere. The special tokens of that rendering
are the template's own, whatever the template does with the contents. If the plain rendering has the same ones, it is
encoded as it is: an ordinary prompt gets the ordinary ids, always. Otherwise the stand-ins are put back after the
template's special tokens have been set apart, and the text between those is encoded with special tokens as ordinary
text.

Limits: a role is the template's to use (Phi-3 builds tokens of it), so one with such a character is refused. Added
tokens that are not special (Qwen's ``<tool_call>``, ``<think>``) are recognised in contents, as everywhere.
A template that looks for such characters in a content (to drop ``<think>`` parts, say) may not find them in a
message list that tries to inject; never in another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from headrace.errors import InvalidRequest
from headrace.text.template import ChatTemplate, Message, normalised
from headrace.text.tokenizer import Tokenizer


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> list[int]:
    """The prompt's ids. BOS is there if the template writes it.

    Raises:
        InvalidRequest, Unsupported, ModelFileError: see `ChatTemplate.render` and `Tokenizer.encode`.
    """
    plain = normalised(messages)
    triggers = tokenizer.special_chars
    for index, message in enumerate(plain):
        if not triggers.isdisjoint(message["role"]):
            raise InvalidRequest(f"messages[{index}].role contains a character of control tokens", "messages")

    def rendered(change: Callable[[str], str]) -> str:
        return template.render(
            [{key: value if key == "role" else _changed(value, change) for key, value in m.items()} for m in plain],
            tools=_changed(list(tools), change) if tools else None,
            variables=_changed(dict(variables), change) if variables else None,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    written = [*_strings(plain), *_strings(list(tools or ())), *_strings(dict(variables or {}))]
    text = rendered(str)
    ids = tokenizer.encode(text, add_special=False)
    if all(triggers.isdisjoint(each) for each in written):
        return ids
    used = set(text).union(*written)
    stand_ins = (chr(code) for code in itertools.chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)))
    hide = dict(zip(sorted(triggers), (c for c in stand_ins if c not in used), strict=False))
    table = str.maketrans(hide)
    hidden = rendered(lambda each: each.translate(table))
    hidden_ids, offsets = tokenizer.encode_with_offsets(hidden)
    special = tokenizer.special_ids
    if [i for i in ids if i in special] == [i for i in hidden_ids if i in special]:
        return ids
    return _spelled_out(tokenizer, hidden, hidden_ids, offsets, {ord(v): k for k, v in hide.items()})


def _spelled_out(
    tokenizer: Tokenizer, hidden: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], shown: Mapping[int, str]
) -> list[int]:
    """The ids of the hidden text with its special tokens kept and its stand-ins turned back into plain characters."""
    result: list[int] = []
    end = 0
    marks = [(i, *span) for i, span in zip(ids, offsets, strict=True) if i in tokenizer.special_ids]
    for token, begin, after in [*marks, (None, len(hidden), len(hidden))]:
        if begin > end:
            result += tokenizer.encode_literal(hidden[end:begin].translate(shown), first=end == 0)
        if token is not None:
            result.append(token)
        end = after
    return result


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The same data with every string changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_changed(key, change): _changed(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(item, change) for item in value]
    return value


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
