import logging
from pathlib import Path

import pytest

from headrace.cli.logs import OneLine
from headrace.cli.machine import available_memory, processors
from headrace.cli.phases import Phases


def test_the_machine_alone(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  900 kB\nMemFree:  1 kB\nMemAvailable:  500 kB\n")
    assert available_memory(meminfo, tmp_path / "none") == 500 * 1024


def test_a_container_may_have_less(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemAvailable:  500 kB\n")
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("300000\n")
    (cgroup / "memory.current").write_text("120000\n")
    (cgroup / "memory.stat").write_text("anon 1\ninactive_file 20000\nactive_file 5\n")
    assert available_memory(meminfo, cgroup) == 200_000
    (cgroup / "memory.current").write_text("400000\n")
    assert available_memory(meminfo, cgroup) == 0
    (cgroup / "memory.max").write_text("max\n")
    assert available_memory(meminfo, cgroup) == 500 * 1024


def test_an_old_container_too(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup" / "memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    (folder / "memory.usage_in_bytes").write_text("700\n")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:  500 kB\n")
    assert available_memory(meminfo, tmp_path / "cgroup") == 301  # the first of the two counts: not less than is safe


@pytest.mark.parametrize(
    ("own", "folder", "limit", "used"),
    [
        ("0::/a.slice/b.service", "", "memory.max", "memory.current"),
        ("3:cpu:/x\n2:hugetlb,memory:/a.slice/b.service", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_the_smallest_limit_of_the_groups_around_counts(
    tmp_path: Path, own: str, folder: str, limit: str, used: str
) -> None:
    meminfo, mine = tmp_path / "meminfo", tmp_path / "own"
    meminfo.write_text("MemAvailable:  500 kB\n")
    mine.write_text(f"{own}\n")
    outer = tmp_path / "cgroup" / folder / "a.slice"
    inner = outer / "b.service"
    inner.mkdir(parents=True)
    for place, most, taken in ((outer, 9000, 1000), (inner, 7000, 500)):
        (place / limit).write_text(f"{most}\n")
        (place / used).write_text(f"{taken}\n")
    assert available_memory(meminfo, tmp_path / "cgroup", mine) == 6500
    (inner / limit).write_text("max\n")
    assert available_memory(meminfo, tmp_path / "cgroup", mine) == 8000
    mine.write_text("0::/../..\n\n4:memory:/elsewhere\n")
    assert available_memory(meminfo, tmp_path / "cgroup", mine) == 500 * 1024


def test_this_machine_has_memory_and_processors() -> None:
    assert available_memory() > 1 << 20
    assert 1 <= processors(64) <= 64


def test_a_container_may_have_less_time_than_processors(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/a\n0::/b/c\n")
    assert processors(64, tmp_path, own) == 64
    inner = tmp_path / "b" / "c"
    inner.mkdir(parents=True)
    for text, expected in (("max 100000", 64), ("150000 100000", 2), ("1000 100000", 1), ("nonsense", 64), ("5 0", 64)):
        (inner / "cpu.max").write_text(f"{text}\n")
        assert processors(64, tmp_path, own) == expected, text
    (inner.parent / "cpu.max").write_text("300000 100000\n")
    assert processors(64, tmp_path, own) == 3, "a group around it"
    old = tmp_path / "cpu" / "a"
    old.mkdir(parents=True)
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert processors(2, tmp_path, own) == 2
    (old / "cpu.cfs_quota_us").write_text("50000\n")
    assert processors(64, tmp_path, own) == 1


def test_a_log_line_stays_one_line() -> None:
    record = logging.LogRecord("headrace", logging.INFO, "", 0, "a %s", ("b\r\n\x1b[31mforged\u2028",), None)
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line == "INFO a b\\x0d\\x0a\\x1b[31mforged\\u2028"


def test_phases_are_timed() -> None:
    phases = Phases()
    with phases.phase("one"):
        pass
    assert 0 <= phases.seconds["one"] <= phases.total
    assert str(phases).startswith("one 0.0")
