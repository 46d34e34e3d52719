"""Marked texts are found, unmarked ones are not, and the numbers are those of the statistics."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from headrace.cli import watermark as command
from headrace.watermark import Watermark, green_hash, green_list, judge

MARK = Watermark(key=42)
VOCAB = 50_000


def write(mark: Watermark | None, length: int, seed: int) -> list[int]:
    """A writer that takes the first green of two random tokens, if there is one."""
    rng, tokens = random.Random(seed), [7]
    while len(tokens) < length:
        listed = green_list(mark or MARK, tokens[-1])
        options = [rng.randrange(VOCAB) for _ in range(2)]
        green = [token for token in options if green_hash(listed.seed, token) < listed.below]
        tokens.append((green if mark and green else options)[0])
    return tokens


def test_a_marked_text_is_found_with_the_key_alone() -> None:
    text = write(MARK, 200, 1)
    assert judge(MARK, text).z > 5
    assert judge(MARK, text).p < 1e-6
    assert abs(judge(Watermark(key=43), text).z) < 4


def test_unmarked_texts_are_not() -> None:
    scores = [judge(MARK, write(None, 200, seed)).z for seed in range(200)]
    assert max(scores) < 4
    assert abs(sum(scores) / 200) < 0.3
    assert 0.8 < (sum(z * z for z in scores) / 200) ** 0.5 < 1.2


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5, 0.9])
def test_gamma_is_the_green_share(gamma: float) -> None:
    listed = green_list(Watermark(9, gamma), 5)
    share = sum(green_hash(listed.seed, token) < listed.below for token in range(20_000)) / 20_000
    assert abs(share - gamma) < 0.02


def test_p_is_the_tail_of_the_binomial_distribution() -> None:
    verdict = judge(MARK, write(None, 30, 4))
    more = sum(_choose(verdict.scored, k) for k in range(verdict.green, verdict.scored + 1)) / 2**verdict.scored
    assert verdict.p == pytest.approx(more)


def _choose(n: int, k: int) -> int:
    from math import comb

    return comb(n, k)


def test_what_is_repeated_counts_once() -> None:
    assert judge(MARK, [1, 2] * 1000).scored == 2
    assert judge(MARK, []) == judge(MARK, [5])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text"
    file.write_text("An ordinary sentence about rivers, mills and the channels that lead from one to the other. " * 2)
    assert command.run([str(file)]) == 0
    shown = capsys.readouterr().out
    assert "z-score" in shown
    assert "too short to say" in shown
