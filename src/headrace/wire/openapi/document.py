"""Routes and schemas → one OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headrace.wire.openapi import anthropic_bodies, openai_bodies, other_bodies, responses_bodies
from headrace.wire.openapi.operations import OPERATIONS, Operation
from headrace.wire.openapi.parts import Schema, either, integer

_TGI_TOKENS = other_bodies.BODIES["TgiGenerate"]
SCHEMAS: Mapping[str, Schema] = {
    **openai_bodies.BODIES,
    **openai_bodies.ANSWERS,
    **other_bodies.BODIES,
    **other_bodies.ANSWERS,
    **anthropic_bodies.BODIES,
    **anthropic_bodies.ANSWERS,
    **responses_bodies.BODIES,
    **responses_bodies.ANSWERS,
    "Tokenize": either(openai_bodies.TOKENIZE, _TGI_TOKENS),
}
_ERRORS: Mapping[str, str] = {
    "400": "a field is wrong: the message names it, the limit and the fix",
    "401": "no valid key",
    "403": "the key, or the server's settings, do not allow it",
    "404": "no such model",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the body is not called JSON, or compressed",
    "422": "a field is wrong, as TGI says it",
    "424": "the engine failed, as TGI says it",
    "429": "too much is waiting, or a quota is used up: see Retry-After",
    "500": "the server's fault",
    "503": "draining, loading or dead: see Retry-After",
    "504": "the deadline passed",
}


def openapi_document(
    exchanges: Iterable[tuple[str, str]], models: Sequence[str], vocab_size: int, version: str
) -> dict[str, Any]:
    """The document for these (method, path) pairs, the names that models are served by, and the
    largest vocabulary among them.

    Raises:
        KeyError: one of them is not described.
    """
    paths: dict[str, dict[str, Any]] = {}
    for method, path in exchanges:
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, OPERATIONS[method, path])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "headrace",
            "version": version,
            "description": "One server, several dialects: OpenAI's, vLLM's, TGI's, Ollama's, Anthropic's.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "ModelName": {"type": "string", "enum": list(models)},
                "TokenId": integer(0, vocab_size - 1),
                **SCHEMAS,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(method: str, path: str, about: Operation) -> dict[str, Any]:
    name = "".join(part.capitalize() for part in path.replace("{id}", "one").replace(".", "/").split("/"))
    operation: dict[str, Any] = {"operationId": method.lower() + name, "summary": about.summary}
    if path.endswith("{id}"):
        operation["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    if about.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _named(about.body)}}}
    if not about.open:
        operation["security"] = [{"key": []}, {}]
    operation["responses"] = {"200": {"description": "done", "content": _answers(about)}} | {
        status: {"description": text, "content": {"application/json": {"schema": _named(about.error)}}}
        for status, text in _ERRORS.items()
    }
    return operation


def _answers(about: Operation) -> dict[str, Any]:
    whole: dict[str, Any] = {about.media: {"schema": _named(about.answer)} if about.answer else {}}
    if about.stream is None:
        return whole
    streamed: dict[str, Any] = {about.stream: {}}
    return whole | streamed if about.answer else streamed


def _named(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}
