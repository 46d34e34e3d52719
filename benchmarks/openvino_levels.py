"""OpenVINO GenAI's continuous batching in process, closed loop: run by compare.py inside OpenVINO's own environment.

Says {} when it is ready. Reads one JSON line a level from standard input ({"users", "requests", "shared", "input_len",
"output_len", "seed"}; all prompts begin with ``shared`` tokens), answers each with one JSON line: the same numbers,
under the same names, as ``headrace bench`` reports for a server.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai


def percentile(values: list[float], q: float) -> float:
    return round(1000 * float(np.percentile(values, q)), 3) if values else 0.0


def spread(values: list[float]) -> dict[str, float]:
    return {f"p{q}": percentile(values, q) for q in (50, 95, 99)}


class Live:
    """A request in flight and when its tokens came."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.start = time.perf_counter()
        self.times: list[float] = []
        self.tokens = 0

    def poll(self) -> bool:
        """Read what has come; True when the request has ended."""
        while self.handle.can_read():
            self.tokens += sum(len(output.generated_ids) for output in self.handle.read().values())
            self.times.append(time.perf_counter())
        return bool(self.handle.get_status() != genai.GenerationStatus.RUNNING and not self.handle.can_read())


def run_level(pipe: Any, level: dict[str, int]) -> dict[str, object]:
    rng = random.Random(level["seed"])
    settings = genai.GenerationConfig()
    settings.max_new_tokens, settings.ignore_eos, settings.do_sample = level["output_len"], True, False
    shared = [rng.randint(1000, 30000) for _ in range(level["shared"])]
    prompts = [shared + [rng.randint(1000, 30000) for _ in range(level["input_len"])] for _ in range(level["requests"])]
    todo = list(enumerate(prompts))
    live: list[Live] = []
    ended: list[Live] = []
    begin = time.perf_counter()
    while todo or live:
        while todo and len(live) < level["users"]:
            number, prompt = todo.pop(0)
            tensor = openvino.Tensor(np.array([prompt], dtype=np.int64))
            live.append(Live(pipe.add_request(number, tensor, settings)))
        pipe.step()
        for request in [one for one in live if one.poll()]:
            live.remove(request)
            ended.append(request)
    seconds = time.perf_counter() - begin
    gaps = [after - before for one in ended for before, after in zip(one.times, one.times[1:], strict=False)]
    tokens = sum(one.tokens for one in ended)
    return {
        "label": f"{level['users']} at a time",
        "output_tokens": tokens,
        "seconds": round(seconds, 3),
        "output_tokens_per_s": round(tokens / seconds, 2),
        "ttft_ms": spread([one.times[0] - one.start for one in ended]),
        "itl_ms": spread(gaps),
        "errors": {},
    }


def main() -> None:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 4, 256, 2048
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = "--prefix-caching" in sys.argv
    pipe = genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", {"INFERENCE_NUM_THREADS": 2})
    run_level(pipe, {"users": 1, "requests": 1, "shared": 0, "input_len": 16, "output_len": 4, "seed": 1})
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(run_level(pipe, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
