"""The naive way: transformers' ``generate``, one request after another. Run by compare.py, with vLLM's environment.

Reads and writes the lines that openvino_levels.py does. There is one level, a single user: with more of them, each only
waits for the others. Tokens come all at once, so there is no time to the first one or between two.
"""

from __future__ import annotations

import json
import random
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()

    def generate(prompt: list[int], length: int) -> None:
        ids = torch.tensor([prompt])
        lengths = {"max_new_tokens": length, "min_new_tokens": length}
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)

    generate([1000] * 16, 4)
    print("{}", flush=True)
    for line in sys.stdin:
        level = json.loads(line)
        rng = random.Random(level["seed"])
        prompts = [
            [rng.randint(1000, 30000) for _ in range(level["shared"] + level["input_len"])]
            for _ in range(level["requests"])
        ]
        begin = time.perf_counter()
        for prompt in prompts:
            generate(prompt, level["output_len"])
        seconds = time.perf_counter() - begin
        tokens = len(prompts) * level["output_len"]
        result = {"label": f"{level['users']} at a time", "output_tokens": tokens, "seconds": round(seconds, 3)}
        result |= {"output_tokens_per_s": round(tokens / seconds, 2), "errors": {}}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
