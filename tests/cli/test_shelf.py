"""Who may change what is on the disk, and what of it."""

from pathlib import Path

import pytest

from headrace.cli.cards import capabilities, read_card
from headrace.cli.flags import parser, read
from headrace.cli.shelf import may_manage
from headrace.config import SECTIONS
from headrace.text.template import ChatTemplate
from tests.text.formats import templates


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ([], True),
        (["--host", "localhost"], True),
        (["--host", "0.0.0.0"], False),
        (["--host", "0.0.0.0", "--api-key", "k"], True),
        (["--host", "0.0.0.0", "--manage-models", "on"], True),
        (["--manage-models", "off"], False),
    ],
)
def test_clients_may_manage_models_where_only_the_owner_can_ask(arguments: list[str], allowed: bool) -> None:
    config = read(parser("headrace serve", "", SECTIONS), arguments)
    assert may_manage(config) is allowed


def test_a_card_tells_what_the_files_say(model: Path) -> None:
    card = read_card(model)
    assert (card.format, card.family, card.quantization) == ("gguf", "llama", "Q4_1")
    assert card.bytes == model.stat().st_size
    assert card.parameters == card.info["general.parameter_count"] > 130_000_000
    assert card.info["llama.context_length"] == 8192
    assert "messages" in card.template
    assert len(card.digest) == 64
    assert read_card(model).digest == card.digest
    assert card.capabilities == ("completion",), "its template knows no tools"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (templates.QWEN3, ("completion", "tools", "thinking")),
        (templates.LLAMA31, ("completion", "tools")),
        ("{{ messages[0].content }}{# we sell tools #}", ("completion",)),
        ("{% for tool in messages[0].tools %}{{ tool }}{% endfor %}", ("completion",)),
    ],
)
def test_capabilities_are_those_of_the_format_that_was_found(template: str, expected: tuple[str, ...]) -> None:
    assert capabilities(ChatTemplate({"default": template})) == expected


def test_a_model_without_a_template_completes() -> None:
    assert capabilities(None) == ("completion",)
