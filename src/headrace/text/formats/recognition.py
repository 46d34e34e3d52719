"""Which format a model writes, found out from its own chat template.

The template is asked: it renders a conversation with a call, and what it makes of the call is what the model was
trained to write. Where it cannot (some render no calls), its source is searched for the same marks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from headrace.errors import HeadraceError
from headrace.text.formats.families import BARE_JSON, FAMILIES, REASONING, SMOLLM2, Family, first_match
from headrace.text.formats.reader import Reasoning
from headrace.text.template import ChatTemplate, Message

SWITCHES = ("enable_thinking", "thinking")
"""What templates call the variable that turns reasoning on and off."""
_EFFORT = "reasoning_effort"
_ASK = "probe what"
_KEY, _VALUE, _RESULT = "probe_key", "probe_value", "probe_result"
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probes.",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "A value."}},
            "required": [_KEY],
        },
    },
}


class Format(Struct, frozen=True):
    """How one model takes tools and writes calls and reasoning."""

    family: Family
    native: bool
    """The template takes tools; else a system prompt describes them."""
    arguments_as_text: bool = False
    """The template wants the arguments of earlier calls as JSON text, not as an object."""
    short_ids: bool = False
    """The template takes only ids of nine letters and digits (Mistral's)."""
    results: bool = True
    """The template takes messages of the role tool."""
    system: bool = True
    """The template takes a system message."""
    reasoning: Reasoning | None = None
    switch: str | None = None
    """The template's variable that turns reasoning on and off."""
    effort: str | None = None
    """The template's variable for how much of it."""
    thinks: bool = False
    """The model reasons unless it is told not to."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that may have special tokens in them which a reader must see."""
        reasoning = (*self.reasoning.opens, *self.reasoning.closes) if self.reasoning else ()
        return (*self.family.calls.opens, *self.family.marks, *reasoning)


def recognise(template: ChatTemplate) -> Format:
    """The format of a model with this template. Renders it a few times: milliseconds.

    Raises:
        ModelFileError: see `ChatTemplate.prepare`.
    """
    source = "\n".join(template.sources.values())
    reasoning = next((each for each in REASONING if each.closes[0] in source or each.opens[0] in source), None)
    switch = next((name for name in SWITCHES if template.asks_for(name)), None)
    common: dict[str, Any] = {
        "reasoning": reasoning,
        "switch": switch,
        "effort": _EFFORT if template.asks_for(_EFFORT) else None,
        "thinks": reasoning is not None and _thinks(template, switch, reasoning),
        "system": _has(_rendered(template, [_message("system", _RESULT), _message("user", _ASK)]), _RESULT),
    }
    if not template.asks_for("tools"):
        return Format(SMOLLM2 if SMOLLM2.evidence.search(source) else BARE_JSON, native=False, **common)
    rendered, as_text, short = _probed(template)
    family = first_match(FAMILIES, rendered, source) or BARE_JSON
    return Format(
        family, native=True, arguments_as_text=as_text, short_ids=short, results=_has(rendered, _RESULT), **common
    )


def _probed(template: ChatTemplate) -> tuple[str, bool, bool]:
    """What the template makes of a call, and how arguments and ids must be for it; empty if it renders none."""
    for as_text, short in ((False, False), (True, False), (False, True), (True, True)):
        for messages in _conversations(as_text, short):
            rendered = _rendered(template, messages, tools=[_TOOL])
            quoted_twice = f'\\"{_KEY}\\"' in rendered
            if _VALUE in rendered and not quoted_twice:
                return rendered, as_text, short
    return "", False, False


def _conversations(as_text: bool, short: bool) -> Iterator[Sequence[Message]]:
    """With the call's result, or without it for templates that know no results."""
    call_id = "probe0000" if short else "call_probe_0000"
    arguments: Any = f'{{"{_KEY}": "{_VALUE}"}}' if as_text else {_KEY: _VALUE}
    call = {"id": call_id, "type": "function", "function": {"name": "probe", "arguments": arguments}}
    messages = [_message("user", _ASK), {"role": "assistant", "content": "", "tool_calls": [call]}]
    yield [*messages, {"role": "tool", "name": "probe", "tool_call_id": call_id, "content": _RESULT}]
    yield messages


def _thinks(template: ChatTemplate, switch: str | None, reasoning: Reasoning) -> bool:
    """With a switch, whether turning it off makes a difference; without one, models with DeepSeek's marks always do."""
    if switch is None:
        return reasoning is REASONING[0]
    messages = [_message("user", _ASK)]
    return _rendered(template, messages) != _rendered(template, messages, variables={switch: False})


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _has(text: str, part: str) -> bool:
    return part in text


def _rendered(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The template's text; empty where it refuses."""
    try:
        return template.render(messages, tools=tools, variables=variables)
    except HeadraceError:
        return ""
