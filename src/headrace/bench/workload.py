"""What is asked: lengths, prompts and arrival times, all drawn from one seed."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from msgspec import Struct

from headrace.errors import ConfigError

WORDS = re.findall(
    r"\w+",
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
    " back parent face level office door health person art war history party result change morning reason research"
    " girl guy moment air teacher force education",
)
"""Common English nouns: one token each, with the space before them, in the usual vocabularies."""

_INPUT = ("input", "input_len", "input_length", "input_tokens", "contexttokens", "prompt_tokens")
_OUTPUT = ("output", "output_len", "output_length", "output_tokens", "generatedtokens", "completion_tokens")


class Length(Struct, frozen=True):
    """A distribution of token counts: fixed (low = high), uniform, or log-normal by mean and deviation."""

    low: int
    high: int
    mean: float | None = None
    deviation: float = 0.0

    def __str__(self) -> str:
        if self.mean is not None:
            return f"lognormal:{self.mean:g}:{self.deviation:g}:{self.high}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def draw(self, rng: random.Random) -> int:
        """One token count."""
        if self.mean is None:
            return rng.randint(self.low, self.high)
        import math

        variance = math.log(1 + (self.deviation / self.mean) ** 2)  # of the logarithm
        value = rng.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(self.high, max(self.low, round(value)))


def parse_length(words: str) -> Length:
    """``128``, ``64-512`` (uniform), or ``lognormal:MEAN:DEVIATION[:MOST]``; at least one token always.

    Raises:
        ValueError: none of these.
    """
    if match := re.fullmatch(r"(\d{1,8})(?:-(\d{1,8}))?", words):
        low = int(match[1])
        high = int(match[2] or low)
        if 1 <= low <= high:
            return Length(low, high)
    if match := re.fullmatch(r"lognormal:(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)(?::(\d{1,8}))?", words):
        mean, deviation, most = float(match[1]), float(match[2]), int(match[3] or 10**8)
        if mean >= 1 and most >= 1:
            return Length(1, most, mean, deviation)
    raise ValueError("is not a length: write 128, 64-512 or lognormal:MEAN:DEVIATION[:MOST], in tokens, at least 1")


class Calibration(Struct, frozen=True):
    """How many tokens the server counts for a prompt of so many words (or ids): fixed + per_word * words."""

    fixed: float = 0.0
    per_word: float = 1.0

    def units(self, tokens: int) -> int:
        """Words (or ids) that make a prompt of about ``tokens`` tokens; at least one."""
        return max(1, round((tokens - self.fixed) / self.per_word))


class Workload(Struct, frozen=True):
    """What every request of a run has in common, and the distributions of what differs."""

    model: str
    chat: bool
    ids: bool
    """Prompts are token ids (exact counts, completions only) instead of words."""
    input: Length
    output: Length
    shared_prefix: int = 0
    """Tokens that all prompts begin with, before their own ``input`` tokens."""
    token_ids: tuple[int, int] = (1000, 30000)
    trace: tuple[tuple[int, int], ...] = ()
    """(input, output) token counts, taken in order and over again, instead of the two distributions."""
    seed: int = 0
    calibration: Calibration = Calibration()

    @property
    def path(self) -> str:
        """The route that requests go to."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def bodies(self, stream: str) -> Iterator[bytes]:
        """Request bodies without end, the same for the same seed and ``stream`` (a level's name), others for others.

        The shared prefix depends on the seed alone.
        """
        rng = random.Random(f"{self.seed}/{stream}")
        prefix = self._draw(random.Random(f"{self.seed}/prefix"), self.shared_prefix / self.calibration.per_word)
        for traced in cycle(self.trace or (None,)):
            asked, output = traced or (self.input.draw(rng), self.output.draw(rng))
            yield self.body(prefix + self._draw(rng, self.calibration.units(asked)), output)

    def body(self, prompt: Sequence[int | str], output: int) -> bytes:
        """One streaming request for exactly ``output`` tokens, greedy."""
        text = " ".join(map(str, prompt))
        what: dict[str, object] = {"prompt": prompt if self.ids else text}
        if self.chat:
            what = {"messages": [{"role": "user", "content": text}]}
        what |= {"model": self.model, "max_tokens": output, "temperature": 0, "ignore_eos": True}
        return json.dumps(what | {"stream": True, "stream_options": {"include_usage": True}}).encode()

    def _draw(self, rng: random.Random, units: float) -> list[int | str]:
        if self.ids:
            low, high = self.token_ids
            return [rng.randint(low, high) for _ in range(round(units))]
        return list(rng.choices(WORDS, k=round(units)))


def arrivals(rate: float, seed: str) -> Iterator[float]:
    """The times, in seconds from 0 and without end, of a Poisson process of ``rate`` arrivals a second."""
    rng = random.Random(seed)
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def read_trace(file: Path) -> tuple[tuple[int, int], ...]:
    """The (input, output) token counts of a CSV file with a header.

    Raises:
        ConfigError: the file cannot be read, lacks the columns, or has a bad row; the message names the line.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = csv.DictReader(lines)
            columns = {name.strip().lower(): name for name in rows.fieldnames or ()}
            found = [next((columns[n] for n in names if n in columns), None) for names in (_INPUT, _OUTPUT)]
            if found[0] is None or found[1] is None:
                raise ConfigError(f"trace: {file} needs a column {_INPUT[0]} and a column {_OUTPUT[0]} (token counts)")
            made = []
            for row in rows:
                pair = (str(row[found[0]]), str(row[found[1]]))
                if not all(re.fullmatch(r"\d{1,8}", value) and int(value) for value in pair):
                    raise ConfigError(f"trace: {file} line {rows.line_num}: {pair} are not two positive token counts")
                made.append((int(pair[0]), int(pair[1])))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"trace: cannot read {file}: {error}") from None
    if not made:
        raise ConfigError(f"trace: {file} has no rows")
    return tuple(made)
