"""The text part of a checkpoint: tokenizer, chat templates, special tokens, EOS ids, sampling defaults."""

from __future__ import annotations

import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import ModelFileError
from headrace.weights.files import Fields, read_json, read_text
from headrace.weights.spec import TextSource

MAX_TEMPLATE_BYTES = 1 << 20
MAX_TOKEN_ID = 1 << 24

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_GGUF_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""Tokens that end a turn, looked for by text in GGUF files that name no end-of-turn id (llama.cpp does the same):
without it the chat models among them never stop."""
_CONTROL = 3
"""GGUF's token type of control tokens."""


def text_from_dir(folder: Path, config: Mapping[str, Any]) -> TextSource:
    """The text part of a model directory in transformers' layout.

    Raises:
        ModelFileError: tokenizer.json is missing, or one of the files is malformed.
    """
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelFileError(
            f"{tokenizer}: missing; a directory needs it (transformers' save_pretrained of a fast tokenizer writes it)"
        )
    settings = _json_if_there(folder / "tokenizer_config.json")
    generation = _json_if_there(folder / "generation_config.json")
    inner = config.get("text_config")
    configs = [generation, config, *([inner] if isinstance(inner, Mapping) else [])]
    where = str(folder)
    bos = next((c["bos_token_id"] for c in configs if _is_id(c.get("bos_token_id"))), None)
    return TextSource(
        tokenizer_json=str(tokenizer),
        chat_templates=_templates(folder, settings),
        special_tokens=_special_tokens(settings, _json_if_there(folder / "special_tokens_map.json")),
        bos_token_id=bos,
        eos_token_ids=frozenset().union(*(_ids(c.get("eos_token_id"), where, "eos_token_id") for c in configs)),
        sampling_defaults=_sampling(Fields(str(folder / "generation_config.json"), generation)),
    )


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Name → Jinja source. Files of their own (transformers 4.43 and later) win over tokenizer_config.json's."""
    templates: dict[str, str] = {}
    where = f"{folder / 'tokenizer_config.json'}: chat_template"
    given = settings.get("chat_template")
    if given is None:
        given = _json_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        for item in given:
            if not isinstance(item, Mapping):
                raise ModelFileError(f"{where}: must be a string or a list of {{name, template}}")
            fields = Fields(where, item)
            templates[fields.string("name")] = fields.string("template")
    elif given is not None:
        raise ModelFileError(f"{where}: must be a string or a list of {{name, template}}")
    for name, source in templates.items():
        if len(source) > MAX_TEMPLATE_BYTES:
            raise ModelFileError(f"{where}: {name[:100]!r} is longer than {MAX_TEMPLATE_BYTES} characters")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = read_text(folder / "chat_template.jinja", MAX_TEMPLATE_BYTES)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = read_text(path, MAX_TEMPLATE_BYTES)
    return templates


def _special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by their text; each is a string or an object with its ``content``. The first source wins."""
    tokens: dict[str, str] = {}
    for source in sources:
        for name in _SPECIAL:
            value = source.get(name)
            text = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(text, str):
                tokens.setdefault(name, text)
    return tokens


def _ids(value: object, where: str, name: str) -> frozenset[int]:
    """A token id or a list of them."""
    if value is None:
        return frozenset()
    items = value if isinstance(value, list) else [value]
    if not all(map(_is_id, items)):
        raise ModelFileError(f"{where}: {name} must be a token id or a list of token ids")
    return frozenset(items)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKEN_ID


def _sampling(fields: Fields) -> dict[str, float]:
    """The sampling that the model's makers recommend, unless they ask for greedy decoding."""
    if not fields.flag("do_sample", default=True):
        return {}
    defaults: dict[str, float] = {}
    for name in _SAMPLING:
        if fields.get(name) is not None:
            # Values of 0 mean "off" for these three and are legal; the number check excludes its lower bound.
            low = -1e-9 if name in ("temperature", "top_k", "min_p") else 0.0
            defaults[name] = fields.number(name, low=low, high=1.0 if name in ("top_p", "min_p") else 1e6)
    return defaults


def text_from_gguf(metadata: Mapping[str, Any], where: str) -> TextSource:
    """The text part of a GGUF file.

    Raises:
        ModelFileError: there is no vocabulary, or an id lies outside it.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise ModelFileError(f"{where}: tokenizer.ggml.tokens must be an array of strings")
    fields = Fields(where, metadata)

    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        return None if fields.get(key) is None else fields.integer(key, len(tokens) - 1, low=0)

    special = {ours: tokens[i] for ours, theirs in _GGUF_SPECIAL.items() if (i := token_id(theirs)) is not None}
    ends = {i for name in ("eos", "eot", "eom") if (i := token_id(name)) is not None}
    if token_id("eot") is None:
        ends |= _end_of_turn_ids(tokens, metadata.get("tokenizer.ggml.token_type"))
    add_bos = "tokenizer.ggml.add_bos_token"
    return TextSource(
        gguf={key: value for key, value in metadata.items() if key.startswith("tokenizer.")},
        chat_templates=_gguf_templates(fields, metadata),
        special_tokens=special,
        add_bos=None if fields.get(add_bos) is None else fields.flag(add_bos),
        bos_token_id=token_id("bos"),
        eos_token_ids=frozenset(ends),
    )


def _end_of_turn_ids(tokens: list[str], types: Any) -> set[int]:
    if not isinstance(types, array.array) or len(types) != len(tokens):
        return set()
    return {i for i, kind in enumerate(types) if kind == _CONTROL and tokens[i] in _END_OF_TURN}


def _gguf_templates(fields: Fields, metadata: Mapping[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    for key in metadata:
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
            source = fields.string(key)
            if len(source) > MAX_TEMPLATE_BYTES:
                raise fields.error(key, f"is longer than {MAX_TEMPLATE_BYTES} characters")
            templates[key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"] = source
    return templates
