"""Chat templates: from messages to the text that a model was trained on.

A template is Jinja out of a model's files and is treated as hostile (see `sandbox`). Templates never come from
requests; of its variables, a request may set only the ones that the template itself asks for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidRequest, ModelFileError, Unsupported
from headrace.text.source import TextSource

if TYPE_CHECKING:
    from headrace.text.sandbox import CompiledTemplate

Message = Mapping[str, Any]

_END = "\U0010fffd"
"""Marks the end of a message that is to be continued: private use, and refused in what people send there."""
_RESERVED = frozenset((
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize",
    "raise_exception", "strftime_now", "range", "namespace", "dict", "loop", "self", "caller", "varargs", "kwargs",
))  # fmt: skip


def load_template(source: TextSource) -> ChatTemplate | None:
    """The chat template that a checkpoint's files hold; None if the model has none. It is not compiled yet.

    Raises:
        ModelFileError: there are templates, and none is the default.
    """
    return ChatTemplate(source.chat_templates, source.special_tokens) if source.chat_templates else None


class ChatTemplate:
    """One model's chat templates, compiled when first used or at `prepare`. Rendering is safe from several threads."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        """Keep the Jinja sources by name; "default" is used unless tools are given and "tool_use" exists."""
        if "default" not in sources:
            raise ModelFileError(f"no chat template is called 'default'; there are: {', '.join(sorted(sources))}")
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens or {})

    def prepare(self) -> None:
        """Compile now. Takes about 0.1 s, the import of jinja2 included: worth a thread of its own at start-up.

        Raises:
            ModelFileError: a template is malformed, or uses what templates may not.
        """
        _ = self._compiled

    @property
    def sources(self) -> Mapping[str, str]:
        """The Jinja sources by name."""
        return self._sources

    def asks_for(self, variable: str) -> bool:
        """Whether any of the templates uses this variable.

        Raises:
            ModelFileError: see `prepare`.
        """
        return any(variable in template.asked for template, _ in self._compiled.values())

    @cached_property
    def _compiled(self) -> Mapping[str, tuple[CompiledTemplate, frozenset[str]]]:
        """Per name: the compiled template, and the variables that a request may set."""
        from headrace.text.sandbox import TemplateEnvironment

        environment, compiled = TemplateEnvironment(), {}
        for name, source in self._sources.items():
            try:
                template = environment.compiled(source)
            except Exception as error:
                raise ModelFileError(f"chat template {name!r}: {_describe(error)}") from error
            compiled[name] = (template, template.asked - _RESERVED - self._special_tokens.keys())
        return compiled

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. ``variables`` are extra ones, such as ``enable_thinking``.

        With ``continue_final_message`` the text ends where the last message's content does.

        Raises:
            InvalidRequest: the template refuses these messages, or takes too long over them; a variable that the
                template does not ask for; both kinds of ending at once.
            Unsupported: a content part that is not text.
            ModelFileError: see `prepare`.
        """
        template, settable = self._compiled["tool_use" if tools and "tool_use" in self._sources else "default"]
        _check_variables(variables or {}, settable)
        plain = normalised(messages)
        if continue_final_message:
            if add_generation_prompt:
                raise InvalidRequest(
                    "add_generation_prompt must be false when continue_final_message is true", "continue_final_message"
                )
            plain = _marked(plain)
        text = self._render(template, {
            **self._special_tokens, **(variables or {}), "messages": plain, "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        })  # fmt: skip
        return _cut(text) if continue_final_message else text

    def _render(self, template: CompiledTemplate, variables: Mapping[str, Any]) -> str:
        from jinja2.exceptions import SecurityError

        try:
            return template.render(variables)
        except SecurityError as error:
            raise InvalidRequest(f"the model's chat template was stopped: {error}", "messages") from error
        except Exception as error:
            message = f"the model's chat template does not accept these messages: {_describe(error)}"
            raise InvalidRequest(message, "messages") from error


def _describe(error: Exception) -> str:
    """The error in a line. Its class says something where the text does not (RecursionError, KeyError)."""
    line = getattr(error, "lineno", None)
    where = f" (line {line})" if isinstance(line, int) else ""
    kind = "" if type(error).__name__.startswith(("Template", "Undefined", "Security")) else f"{type(error).__name__}: "
    return f"{kind}{str(getattr(error, 'message', None) or error)[:1000]}{where}"


def normalised(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with every content a string: text parts joined by newlines (vLLM's rule), null as empty.

    Raises:
        InvalidRequest: there is no message, or one has no role.
        Unsupported: a content part is not text.
    """
    if not messages:
        raise InvalidRequest("messages must have at least one entry", "messages")
    plain = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"messages[{index}].role must be a non-empty string", f"messages[{index}].role")
        plain.append({**copy.deepcopy(dict(message)), "content": _content(message.get("content"), index)})
    return plain


def _content(content: Any, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    where = f"messages[{index}].content"
    if not isinstance(content, (list, tuple)):
        raise InvalidRequest(f"{where} must be a string or a list of parts", where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise Unsupported(f"{where}: parts of type {kind!r} are not supported; only 'text' is", where)
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{where}: a text part's text must be a string", where)
        texts.append(part["text"])
    return "\n".join(texts)


def _check_variables(variables: Mapping[str, Any], settable: frozenset[str]) -> None:
    for name, value in variables.items():
        if name not in settable:
            known = ", ".join(sorted(settable)) or "none"
            raise InvalidRequest(
                f"chat_template_kwargs: {name!r} is not a variable of this model's template; known: {known}",
                "chat_template_kwargs",
            )
        if not (value is None or isinstance(value, (bool, int, float, str))):
            raise InvalidRequest(
                f"chat_template_kwargs: {name!r} must be a string, a number, a boolean or null", "chat_template_kwargs"
            )


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = messages[-1]
    if _END in last["content"]:
        raise InvalidRequest("the final message contains U+10FFFD, which cannot be continued", "messages")
    return [*messages[:-1], {**last, "content": last["content"] + _END + " "}]


def _cut(text: str) -> str:
    head, mark, tail = text.rpartition(_END)
    if not mark:
        raise InvalidRequest(
            "the final message cannot be continued: the model's chat template leaves its content out",
            "continue_final_message",
        )
    # Without the mark's space, the template trims contents: then so is this one, as it is in the middle of a chat.
    return head if tail.startswith(" ") else head.rstrip()
