"""``headrace watermark``: is a text marked?"""

# ruff: noqa: RUF009  (knob declares a setting; it makes no default that instances share)

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from headrace.cli import flags
from headrace.cli.store import find_model
from headrace.config import CacheSettings, Config, WatermarkSettings, knob, path
from headrace.errors import ConfigError
from headrace.watermark import Verdict, Watermark, judge

ABOUT = """\
Count the tokens of a text that the watermark prefers. The text is a file or standard input; model, key and gamma must
be those of the server that is asked about. An unmarked text has a z-score around 0; above 4 (p below 1 in 30,000) it
was very probably marked. Editing and translation weaken the mark; below 50 tokens little can be said."""

EXAMPLES = """\
  headrace watermark answer.txt
  headrace watermark answer.txt --tokenizer ./my-model --watermark-key 12345
"""
SURE = 4.0
"""The z-score from which a text is called marked (the paper's)."""


@dataclass(frozen=True, slots=True)
class DetectSettings:
    """Which text, and whose tokens."""

    TITLE: ClassVar[str] = "text"

    file: Path | None = knob(
        None, "A text in UTF-8; - or nothing is standard input.", path, positional=True, env=False, metavar="FILE"
    )
    tokenizer: str | None = knob(
        None, "The model that wrote it. auto is the default model.", env=False, metavar="MODEL"
    )


SECTIONS = (DetectSettings, WatermarkSettings, CacheSettings)


def run(argv: Sequence[str]) -> int:
    """Print the counts and a verdict; 0 in any case, for scripts read the numbers.

    Raises:
        ConfigError: the text cannot be read.
        ModelError: the model cannot be found or read.
    """
    config = flags.read(flags.parser("headrace watermark", ABOUT, SECTIONS, EXAMPLES), argv, SECTIONS)
    settings = config.section(DetectSettings)
    text = _read(settings.file)
    from headrace.text.tokenizer import load_tokenizer
    from headrace.weights import open_checkpoint

    checkpoint = open_checkpoint(find_model(config, settings.tokenizer))
    tokens = load_tokenizer(checkpoint.text).encode_literal(text, first=False)
    print(described(judge(mark_of(config), tokens), len(tokens)))
    return 0


def mark_of(config: Config) -> Watermark:
    """The watermark of the settings."""
    settings = config.section(WatermarkSettings)
    return Watermark(settings.watermark_key, settings.watermark_gamma, settings.watermark_delta)


def described(verdict: Verdict, tokens: int) -> str:
    """The verdict as lines of text."""
    if verdict.z >= SURE:
        words = "marked"
    elif verdict.scored < 50:
        words = "too short to say"
    else:
        words = "no mark found" if verdict.z < SURE / 2 else "doubtful"
    return "\n".join(
        (
            f"tokens   {tokens}, of them {verdict.scored} different pairs",
            f"green    {verdict.green} ({verdict.green / max(verdict.scored, 1):.1%})",
            f"z-score  {verdict.z:.2f}",
            f"p-value  {verdict.p:.3g}",
            f"verdict  {words}",
        )
    )


def _read(file: Path | None) -> str:
    try:
        if file is None or str(file) == "-":
            return sys.stdin.buffer.read().decode()
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the text: {error}") from None
