"""Where the memory goes: the KV pool gets what the weights and the rest leave. Pure arithmetic, and a table to show."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import MemoryPlanError
from headrace.kvcache.cache import blocks_for
from headrace.types import BLOCK_SIZE, MemoryItem, MemoryPlan

KV_ITEM = "KV cache"
AUTO_SHARE = 0.5
"""Of the memory that is left, what the KV pool may grow to when nobody said."""


def plan_memory(
    limit: int,
    allocated: Sequence[MemoryItem],
    kv_block_bytes: int,
    max_model_len: int,
    max_num_seqs: int,
    kv_bytes: int | None = None,
) -> MemoryPlan:
    """Divide ``limit`` bytes: what is ``allocated`` already, and as many KV blocks as are asked for and fit.

    ``kv_bytes`` is what is asked for. By default that is enough for ``max_num_seqs`` sequences of ``max_model_len``
    tokens, but no more than half of what there is if that holds one: the pool's memory is taken as it is used, and a
    prefix cache uses all of it in time, so the machine's other programs must be left room to grow.

    The plan always comes back, so that it can be shown; if its pool does not hold one sequence of ``max_model_len``
    tokens, it carries one suggested fix (see `require`).
    """
    left = limit - sum(item.bytes for item in allocated)
    one = blocks_for(max_model_len)
    if kv_bytes is None:
        asked = min(one * max_num_seqs, max(one, int(AUTO_SHARE * left) // kv_block_bytes))
    else:
        asked = kv_bytes // kv_block_bytes
    blocks = max(min(asked, left // kv_block_bytes), 0)
    suggestion = None
    if blocks < one:
        suggestion = _suggest(limit, left, kv_block_bytes, one, asked, blocks)
    return MemoryPlan(
        limit=limit,
        items=(*allocated, MemoryItem(KV_ITEM, blocks * kv_block_bytes)),
        kv_blocks=blocks,
        kv_block_bytes=kv_block_bytes,
        suggestion=suggestion,
    )


def _suggest(limit: int, left: int, block_bytes: int, one: int, asked: int, blocks: int) -> str:
    """The smallest change that makes one sequence fit."""
    if asked < one and left >= one * block_bytes:
        return f"give the KV cache at least {one * block_bytes} bytes ({format_bytes(one * block_bytes)})"
    if blocks > 0:
        return f"set --max-model-len to {blocks * BLOCK_SIZE} or less: that is what the KV cache has room for"
    missing = one * block_bytes - left
    return f"free {format_bytes(missing)} of memory, or choose a smaller model: {format_bytes(limit)} are not enough"


def require(plan: MemoryPlan) -> MemoryPlan:
    """The plan itself, if it can be served with.

    Raises:
        MemoryPlanError: its KV pool does not hold one sequence; the message has the table and the fix.
    """
    if plan.suggestion is not None:
        raise MemoryPlanError(f"one sequence does not fit in memory\n{format_plan(plan)}")
    return plan


def format_bytes(count: int) -> str:
    """A size for people: ``1.50 GiB``, ``22.5 MiB``, ``512 B``."""
    size, sign = float(abs(count)), "-" if count < 0 else ""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{sign}{size:.0f} {unit}" if unit == "B" else f"{sign}{size:.1f} {unit}"
        size /= 1024
    return f"{sign}{size:.2f} GiB"


def format_plan(plan: MemoryPlan) -> str:
    """The plan as a small table, one line for each item, and the suggestion if there is one."""
    lines = [(item.name, item.bytes, "") for item in plan.items if item.name != KV_ITEM]
    tokens = plan.kv_blocks * BLOCK_SIZE
    note = f"{plan.kv_blocks} blocks of {BLOCK_SIZE} tokens: {tokens} tokens"
    lines += [(KV_ITEM, item.bytes, note) for item in plan.items if item.name == KV_ITEM]
    lines += [("left", plan.left, ""), ("limit", plan.limit, "")]
    width = max(len(name) for name, _, _ in lines)
    table = "\n".join(f"{name:<{width}}  {format_bytes(size):>10}  {note}".rstrip() for name, size, note in lines)
    return table if plan.suggestion is None else f"{table}\nfix: {plan.suggestion}"
