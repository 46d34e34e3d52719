import asyncio
import json
from pathlib import Path

import pytest

from headrace.bench import report
from headrace.bench.connection import Progress
from headrace.bench.stats import LevelResult, Sample, summarise
from headrace.errors import ConfigError

LEVELS: list[LevelResult] = [
    summarise(name, [Sample(0.0, 0.5, 1.0, 1.0, 2, output_tokens=2), Sample(0.0, end=1.0, error="timeout")], cpu=0.01)
    for name in ("1 at a time", "2 at a time")
]


def test_the_table_has_a_column_for_each_level() -> None:
    from rich.console import Console

    console = Console(width=120, record=True)
    console.print(report.table(LEVELS))
    text = console.export_text()
    for words in ("1 at a time", "2 at a time", "out tok/s", "1 timeout", "500.0 / 500.0 / 500.0"):
        assert words in text


def test_the_status_line_estimates_what_is_left() -> None:
    progress = Progress(total=10, running=2, done=5, failed=1, chunks=100)
    assert report.status(progress, "x", 10.0, None) == "x: 2 running, 5 of 10 done, 1 failed, 10 chunks/s, 10 s left"
    assert report.status(Progress(), "x", 0.0, 5.0) == "x: 0 running, 0 done, 0 chunks/s, 5 s left"


def test_the_live_line_stops_when_told() -> None:
    async def session() -> None:
        task = asyncio.create_task(report.live(Progress(total=1), "x", None))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(session())


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "such"
    with pytest.raises(ConfigError, match="json: cannot write"):
        report.write_json(missing, {}, LEVELS)
    pytest.importorskip("matplotlib")
    for file in (missing / "x.png", tmp_path / "x.nonsense"):
        with pytest.raises(ConfigError, match="plot: cannot write"):
            report.write_plot(file, LEVELS)
    report.write_json(tmp_path / "good.json", {"a": "b"}, LEVELS)
    assert json.loads((tmp_path / "good.json").read_text())["levels"][0]["succeeded"] == 1
