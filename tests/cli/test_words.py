"""The adapter between the text room and HTTP, on the default model."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from headrace.cli.words import ModelWords
from headrace.errors import InvalidRequest
from headrace.types import SamplingParams, TokenEvent
from headrace.weights import open_checkpoint
from headrace.wire.calls import Conversation

HELLO = Conversation(({"role": "user", "content": "Hello"},))


def test_words_go_there_and_back(model: Path) -> None:
    source = open_checkpoint(model).text
    words = ModelWords(source, 1000)
    ids = words.encode("Hello, wörld", True)
    assert words.decode(ids) == "Hello, wörld"
    assert b"".join(words.token_bytes(token) for token in ids).decode() == "Hello, wörld"
    output = words.open_output(SamplingParams(max_tokens=9), ())
    assert "".join(output.push(TokenEvent("r", 0, (token,))).text for token in ids) == "Hello, wörld"
    assert words.eos_token_ids == source.eos_token_ids
    chat = words.decode(words.encode_chat(HELLO))
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_a_template_says_so(model: Path) -> None:
    words = ModelWords(replace(open_checkpoint(model).text, chat_templates={}), 1000)
    assert not words.can_chat
    words.prepare()
    with pytest.raises(InvalidRequest, match="no chat template"):
        words.encode_chat(HELLO)
