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
                f"| {row['ttft_ms']['p50']:.0f} / {row['ttft_ms']['p95']:.0f} "
                f"| {row['itl_ms']['p50']:.1f} / {row['itl_ms']['p99']:.1f} "
                f"| {row.get('first_token_s', '-')} | {row.get('idle_rss_mb', '-')} |"
                + (f" errors {row['errors']}" if row.get("errors") else "")
            )
    return "\n".join(lines)


def write_plot(file: Path, results: Rows, title: str) -> None:
    """Tokens per second and time to first token against users, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, rows in results.items():
        users = [int("".join(filter(str.isdigit, row["label"]))) for row in rows]
        axes[0].plot(users, [row["output_tokens_per_s"] for row in rows], marker="o", label=name)
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
