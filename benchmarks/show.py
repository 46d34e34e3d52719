"""Results for people: a table in Markdown and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def table(results: Rows) -> str:
    """One line a contestant and level."""
    lines = [
        "| server | users | tokens/s | range | TTFT p50 / p95 ms | inter-token p50 / p99 | start s | idle MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for row in rows:
            low, high = row.get("output_tokens_per_s_range", (row["output_tokens_per_s"],) * 2)
            lines.append(
                f"| {name} | {row['label']} | {row['output_tokens_per_s']:.0f} | {low:.0f} to {high:.0f} "
                f"| {pair(row.get('ttft_ms'), 'p50', 'p95', 0)} | {pair(row.get('itl_ms'), 'p50', 'p99', 1)} "
                f"| {row.get('first_token_s', '-')} | {row.get('idle_rss_mb', '-')} |"
                + (f" errors {row['errors']}" if row.get("errors") else "")
            )
    return "\n".join(lines)


def pair(spread: Mapping[str, float] | None, low: str, high: str, digits: int) -> str:
    """Two percentiles of a spread in milliseconds, or a dash where none was measured."""
    return "-" if spread is None else f"{spread[low]:.{digits}f} / {spread[high]:.{digits}f}"


def ratios(results: Rows, fastest: bool = False, ours: str = "headrace") -> str:
    """Our tokens per second over the best peer's with the same weights: a line a precision, a column a level.

    Of medians, or of everybody's fastest run, which says more on a machine that neighbours slow down at times.
    """
    rates: dict[str, dict[int, dict[str, float]]] = {}
    for name, rows in results.items():
        server, weights = name.rsplit(" ", 1)
        for row in rows:
            rate = max(row["output_tokens_per_s_range"]) if fastest else row["output_tokens_per_s"]
            rates.setdefault(weights, {}).setdefault(users_of(row), {})[server] = rate

    def cell(level: Mapping[str, float], name: str) -> str:
        peers = [(rate, server) for server, rate in level.items() if not server.startswith(ours)]
        if name not in level or not peers:
            return ""
        rate, server = max(peers)
        return f"{level[name] / rate:.2f} ({server})"

    users = sorted({level for levels in rates.values() for level in levels})
    title = f"ours / best peer, {'fastest runs' if fastest else 'medians'}"
    lines = [f"| {title} | " + " | ".join(f"{n} users" for n in users) + " |", "|---" * (len(users) + 1) + "|"]
    for weights, levels in rates.items():
        for name in sorted({server for level in levels.values() for server in level if server.startswith(ours)}):
            cells = " | ".join(cell(levels.get(n, {}), name) for n in users)
            lines.append(f"| {weights}{name.removeprefix(ours)} | {cells} |")
    return "\n".join(lines)


def users_of(row: Mapping[str, Any]) -> int:
    """The number of users of a level, from its label."""
    return int("".join(filter(str.isdigit, row["label"])))


def write_plot(file: Path, results: Rows, title: str) -> None:
    """Tokens per second and time to first token against users, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, rows in results.items():
        users = [users_of(row) for row in rows]
        axes[0].plot(users, [row["output_tokens_per_s"] for row in rows], marker="o", label=name)
        if all("ttft_ms" in row for row in rows):
            axes[1].plot(users, [row["ttft_ms"]["p50"] for row in rows], marker="o", label=name)
    for axis, label in zip(axes, ("output tokens per second", "time to first token, p50, ms"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("users")
        axis.set_title(label)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
