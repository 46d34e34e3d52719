"""What fewer bits cost: perplexity and agreement of one model in several precisions, beside their speed.

    python -m benchmarks.quality MODEL [--variants float32,bfloat16,int8,int4] [--also NAME=FILE.gguf ...]

"x int16" and "x int8" multiply the weights by integers (`--activations`), the others by floats.

MODEL is a float model that headrace opens; of a quantised one, the weights as stored are compared with the same weights
expanded to float32, which shows what computing with them costs and not what storing them did.

Every variant reads the texts of ``benchmarks/texts`` (prose, chat, code, reasoning, four languages, records) through
the backend's contract, and is asked for the logprob of each next token and for the token that it would have chosen
itself; "agrees" is how often that is the choice of float32. The change of the mean negative log-likelihood has its
standard error over tokens, paired with float32's. Writes DATE-NAME-quality.json into benchmarks/results/.

The model's channels are shuffled first, which changes what it computes by rounding alone and puts other weights
together in every block: a float copy of weights that were once quantised would otherwise fit the blocks it came from,
and look as if it lost nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.machine import describe
from headrace.backends import Backend
from headrace.backends.cpu.backend import load
from headrace.backends.cpu.quantize import FLOATS, SCHEMES, quantized
from headrace.backends.reference.dequantize import dequantize
from headrace.text.tokenizer import load_tokenizer
from headrace.types import BLOCK_SIZE, Plan, PlanRow, RowSampling
from headrace.weights import Checkpoint, open_checkpoint
from headrace.weights.spec import DType, Tensor

TEXTS = Path(__file__).with_name("texts")
RESULTS = Path(__file__).with_name("results")
CHUNK = 256
"""Tokens computed in one step."""
DECODED = 64
"""Tokens generated to time decoding."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Variant:
    """One precision: what it computes in, how weights, keys and values are stored, and what multiplies weights."""

    dtype: str
    scheme: str | None = None
    kv_dtype: str = "auto"
    activations: str = "float"


VARIANTS: Mapping[str, Variant] = {
    "float32": Variant("float32"),
    "bfloat16": Variant("bfloat16"),
    **{name: Variant("bfloat16", name) for name in ("int8", "int4", "q4_0", "q4_1")},
    "bfloat16+kv8": Variant("bfloat16", kv_dtype="int8"),
    "int8+kv8": Variant("bfloat16", "int8", "int8"),
    **{
        f"{name} x {activations}": Variant("bfloat16", name, activations=activations)
        for name in ("int8", "int4")
        for activations in ("int16", "int8")
    },
}
"""The first is what the others are compared with; kv8: keys and values in 8 bits. K types come from files: --also."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one variant made of all texts, token by token; and how fast it went."""

    nll: Floats
    chosen: NDArray[np.int64]
    weight_bytes: int
    bits: float
    prompt_rate: float
    decode_rate: float


def read_texts(encode: Callable[[str], list[int]], folder: Path = TEXTS) -> dict[str, list[int]]:
    """Token ids of each text."""
    return {path.stem: encode(path.read_text("utf-8")) for path in sorted(folder.glob("*.txt"))}


def shuffled(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """The same function with channels in another order, as float32: the residual stream's, each feed-forward's, and
    those of each head's values. RoPE ties the order inside q and k, which stay."""
    spec, rng = checkpoint.spec, np.random.default_rng(seed)
    hidden = rng.permutation(spec.hidden_size)
    tensors: dict[str, Tensor] = {}
    inner = values = outputs = np.empty(0, np.int64)
    for name in sorted(checkpoint.tensors):
        role = name.rpartition(".")[2]
        if role == "attention_norm":  # the first name of a layer, in this order
            inner = rng.permutation(spec.ffn_size)
            head = rng.permutation(spec.head_dim)
            values = _in_heads(head, spec.num_kv_heads)
            outputs = _in_heads(head, spec.num_heads)
        x = dequantize(checkpoint.tensors[name])
        if role in ("gate", "up"):
            x = x[inner]
        elif role in ("v", "v_bias"):
            x = x[values]
        elif role in ("o", "down", "o_bias"):
            x = x[hidden]
        if role in ("q_norm", "k_norm", "o_bias") or role.endswith("_bias"):
            pass
        elif role == "down":
            x = x[:, inner]
        elif role == "o":
            x = x[:, outputs]
        else:
            x = x[..., hidden]
        tensors[name] = Tensor(DType.F32, x.shape, memoryview(x.tobytes()))
    return replace(checkpoint, tensors=tensors)


def _in_heads(order: NDArray[np.int64], heads: int) -> NDArray[np.int64]:
    result: NDArray[np.int64] = (np.arange(heads)[:, None] * len(order) + order).reshape(-1)
    return result


def in_precision(checkpoint: Checkpoint, variant: Variant) -> Checkpoint:
    """The checkpoint with its weights as the variant stores them."""
    if variant.scheme is None:
        return checkpoint
    scheme = SCHEMES[variant.scheme]
    tensors = {name: quantized(name, tensor, scheme) for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def read(
    checkpoint: Checkpoint,
    dtype: str,
    texts: Mapping[str, list[int]],
    kv_dtype: str = "auto",
    activations: str = "float",
) -> Reading:
    """Load the model, read every text, generate a little."""
    longest = max(map(len, texts.values())) + DECODED
    backend = load(
        checkpoint,
        dtype=dtype,
        max_model_len=longest,
        max_batch_tokens=CHUNK,
        kv_dtype=kv_dtype,
        activations=activations,
    )
    try:
        blocks = list(range(-(-longest // BLOCK_SIZE)))
        backend.allocate_kv(len(blocks))
        begin = time.perf_counter()
        results = [pair for ids in texts.values() for pair in _next_tokens(backend, ids, blocks)]
        prompt_rate = len(results) / (time.perf_counter() - begin)
        decode_rate = _decode_rate(backend, next(iter(texts.values())), blocks)
        stored = next(item.bytes for item in backend.memory() if item.name == "weights")
    finally:
        backend.close()
    matrices = [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2]
    bits = 8 * sum(t.nbytes for t in matrices) / sum(math.prod(t.shape) for t in matrices)
    if all(tensor.dtype is DType.F32 for tensor in matrices):
        bits = 32 if dtype == "float32" else 16
    nll = np.array([-logprob for logprob, _ in results], np.float32)
    return Reading(nll, np.array([token for _, token in results]), stored, bits, prompt_rate, decode_rate)


def _next_tokens(backend: Backend, ids: Sequence[int], blocks: Sequence[int]) -> list[tuple[float, int]]:
    """After each token but the last: the logprob of the one that follows, and the likeliest one."""
    found = []
    for start in range(0, len(ids) - 1, CHUNK):
        end = min(start + CHUNK, len(ids) - 1)
        row = PlanRow(1, ids[start:end], start, blocks, targets=ids[start + 1 : end + 1], target_logprobs=1)
        result = backend.run(Plan((row,))).rows[0]
        if result.error is not None:
            raise SystemExit(f"the model failed: {result.error}")
        found += [(target.logprob, target.top[0][0]) for target in result.target_logprobs]
    return found


def _decode_rate(backend: Backend, prompt: Sequence[int], blocks: Sequence[int]) -> float:
    """Tokens a second of one user, greedy."""
    greedy = RowSampling(temperature=0.0)
    token = prompt[CHUNK - 1]
    backend.run(Plan((PlanRow(1, prompt[: CHUNK - 1], 0, blocks),)))
    begin = time.perf_counter()
    for i in range(DECODED):
        chosen = backend.run(Plan((PlanRow(1, [token], CHUNK - 1 + i, blocks, greedy),))).rows[0].token
        token = token if chosen is None else chosen
    return DECODED / (time.perf_counter() - begin)


def compared(name: str, ours: Reading, base: Reading) -> dict[str, Any]:
    """One line of the table."""
    change = (ours.nll - base.nll).astype(np.float64)
    return {
        "variant": name,
        "bits_per_weight": round(ours.bits, 2),
        "weight_mb": round(ours.weight_bytes / 1e6, 1),
        "perplexity": round(math.exp(float(ours.nll.mean(dtype=np.float64))), 4),
        "nll_change": round(float(change.mean()), 5),
        "nll_change_error": round(statistics.stdev(change) / math.sqrt(len(change)), 5),
        "top1_agreement": round(float((ours.chosen == base.chosen).mean()), 4),
        "prompt_tokens_per_second": round(ours.prompt_rate, 1),
        "decode_tokens_per_second": round(ours.decode_rate, 1),
    }


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines as Markdown."""
    head = ("variant", "bits", "weights MB", "perplexity", "NLL change", "agrees", "read tok/s", "decode tok/s")
    rows = [
        (
            line["variant"],
            f"{line['bits_per_weight']:.2f}",
            f"{line['weight_mb']:.0f}",
            f"{line['perplexity']:.3f}",
            f"{line['nll_change']:+.4f} ± {line['nll_change_error']:.4f}",
            f"{line['top1_agreement']:.1%}",
            f"{line['prompt_tokens_per_second']:.0f}",
            f"{line['decode_tokens_per_second']:.0f}",
        )
        for line in lines
    ]
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]
    lined = [" | ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(f"| {line} |" for line in (lined[0], " | ".join("-" * w for w in widths), *lined[1:]))


def measure(model: Path, variants: Sequence[str], also: Mapping[str, Path]) -> list[dict[str, Any]]:
    """All lines; the first is float32's, which is measured in any case."""
    checkpoint = open_checkpoint(model)
    texts = read_texts(load_tokenizer(checkpoint.text).encode)
    if any(tensor.dtype not in FLOATS for tensor in checkpoint.tensors.values()):
        if also:
            raise SystemExit(f"{model} is quantised: --also compares other files with a float model")
        return _as_stored(checkpoint, texts)
    source = shuffled(checkpoint)
    base = read(source, "float32", texts)
    lines = [compared("float32", base, base)]
    for name in variants:
        if name == "float32":
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        variant = VARIANTS[name]
        stored = in_precision(source, variant)
        reading = read(stored, variant.dtype, texts, variant.kv_dtype, variant.activations)
        lines.append(compared(name, reading, base))
    for name, path in also.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        lines.append(compared(name, read(open_checkpoint(path), "bfloat16", texts), base))
    return lines


def _as_stored(checkpoint: Checkpoint, texts: Mapping[str, list[int]]) -> list[dict[str, Any]]:
    floats = {name: dequantize(tensor) for name, tensor in checkpoint.tensors.items()}
    expanded = {name: Tensor(DType.F32, x.shape, memoryview(x.tobytes())) for name, x in floats.items()}
    base = read(replace(checkpoint, tensors=expanded), "float32", texts)
    kinds = "+".join(sorted({str(t.dtype) for t in checkpoint.tensors.values() if len(t.shape) == 2}))
    return [
        compared("expanded, float32", base, base),
        compared(kinds, read(checkpoint, "bfloat16", texts), base),
        *(
            compared(f"{kinds} x {name}", read(checkpoint, "bfloat16", texts, activations=name), base)
            for name in ("int16", "int8")
        ),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which, by commas (%(default)s)")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FILE", help="a model file of its own")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    variants = given.variants.split(",")
    if unknown := [name for name in variants if name not in VARIANTS]:
        parser.error(f"no variant {unknown[0]!r}; known are {', '.join(VARIANTS)}")
    also = {name: Path(path) for name, _, path in (item.partition("=") for item in given.also)}
    machine = describe()
    lines = measure(given.model, variants, also)
    print(table(lines))
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y-%m-%d')}-{given.model.stem}-quality.json"
    (given.out / name).write_text(json.dumps({"machine": machine, "model": given.model.name, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
