"""Keys and values in 8 bits: how near they come, and the promises of batch, chunks and blocks with them."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from headrace.backends.cpu.backend import load
from headrace.backends.reference.backend import load as load_reference
from headrace.errors import ConfigError
from headrace.types import Plan, PlanRow
from headrace.weights.spec import Checkpoint, Tensor
from tests.backends.cpu.conftest import Loader
from tests.backends.cpu.models import (
    BASE,
    all_logprobs,
    blocks_for,
    checkpoint,
    logprobs_of,
    prompt,
    tensor,
    whole,
    with_heads,
)
from tests.backends.cpu.test_invariance import SPECS, together
from tests.backends.cpu.test_kv import poisoned

SHAPES = {
    "plain": BASE,
    "softcaps": replace(BASE, attention_softcap=5.0),
    "window": replace(BASE, layer_window=(20, 70), qk_norm=True),
    "80 wide": with_heads(6, 2, 80),
    "20 wide": with_heads(4, 2, 20),
    "96 wide": with_heads(2, 2, 96),
    "128 wide": with_heads(4, 2, 128),
    "512 wide": with_heads(2, 1, 512),
}


def scaled(cp: Checkpoint, factors: dict[str, float]) -> Checkpoint:
    """The same model with every layer's tensors of these names multiplied."""

    def times(name: str, t: Tensor) -> Tensor:
        return tensor(np.frombuffer(t.data, np.float32).reshape(t.shape) * np.float32(factors[name.rpartition(".")[2]]))

    changed = {n: times(n, t) for n, t in cp.tensors.items() if n.rpartition(".")[2] in factors}
    return replace(cp, tensors={**cp.tensors, **changed})


@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_the_reference_that_rounds_alike(name: str, make: Loader, dtype: str) -> None:
    spec, tokens = SHAPES[name], prompt(SHAPES[name], 75)
    reference = load_reference(
        checkpoint(spec), dtype="float32", max_model_len=128, max_batch_tokens=128, kv_dtype="int8"
    )
    reference.allocate_kv(8)
    want = whole(reference, spec, tokens)
    error = np.abs(whole(make(spec, 8, kv_dtype="int8"), spec, tokens) - want)
    if dtype == "float32":
        assert np.sqrt((error**2).mean()) < 2e-3  # a value on the edge between two codes may fall either way
    else:
        assert np.sqrt((error**2).mean()) < 0.08
    exact = whole(make(spec, 8), spec, tokens)
    assert 0 < np.abs(want - exact).max() < 0.5


@pytest.mark.parametrize("power", [40, -40])
def test_only_ratios_of_magnitudes_matter(power: int, make: Loader) -> None:
    """Queries and keys, values and outputs, times 2^power and its inverse: grids move along, and no bit changes."""
    up, down = 2.0**power, 2.0**-power
    plain = make(BASE, 8, kv_dtype="int8")
    moved = make(scaled(checkpoint(BASE), {"q": up, "k": down, "v": down, "o": up}), 8, kv_dtype="int8")
    tokens = prompt(BASE, 75)
    assert np.array_equal(whole(moved, BASE, tokens, [74]), whole(plain, BASE, tokens))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_zeros(name: str, make: Loader, dtype: str) -> None:
    """Queries or keys of nothing see all tokens alike; values of nothing add nothing."""
    cp, tokens = scaled(checkpoint(BASE), {name: 0.0}), prompt(BASE, 75)
    reference = load_reference(cp, dtype="float32", max_model_len=128, max_batch_tokens=128, kv_dtype="int8")
    reference.allocate_kv(8)
    got = whole(make(cp, 8, kv_dtype="int8"), BASE, tokens)
    error = np.abs(got - whole(reference, BASE, tokens))
    assert np.sqrt((error**2).mean()) < (2e-3 if dtype == "float32" else 0.08)


@pytest.mark.parametrize("name", SPECS)
def test_batch_chunks_and_blocks_do_not_matter(name: str, make: Loader) -> None:
    spec = SPECS[name]
    backend = make(spec, kv_dtype="int8")
    lengths, cuts = [1, 17, 64, 99, 100], [[], [3], [16, 63], [40, 41, 42], [65]]
    for i, got in enumerate(together(backend, spec, lengths, cuts, 7)):
        assert np.array_equal(got, whole(backend, spec, prompt(spec, lengths[i], i), first=40))


def test_long_contexts(make: Loader) -> None:
    backend = make(BASE, 160, kv_dtype="int8")
    tokens = prompt(BASE, 1100)
    alone = whole(backend, BASE, tokens)
    assert np.array_equal(whole(backend, BASE, tokens, [255, 511, 512, 513, 1025, 1099]), alone)
    last = [PlanRow(0, tokens[1099:], 1099, blocks_for(1100), all_logprobs(BASE))]
    short = [PlanRow(1 + i, (i,), 0, (80 + i,), all_logprobs(BASE)) for i in range(40)]
    assert np.array_equal(logprobs_of(backend, [*short, *last])[-1], alone)


def test_a_copied_block_is_the_block(make: Loader) -> None:
    backend = make(BASE, 16, kv_dtype="int8")
    tokens = prompt(BASE, 30)
    want = whole(backend, BASE, tokens)
    backend.run(Plan((PlanRow(0, (1,), 0, (9,)),), copies=((1, 3), (0, 4))))
    rows = [PlanRow(0, tokens[29:], 29, (4, 3), all_logprobs(BASE))]
    assert np.array_equal(logprobs_of(backend, rows)[0], want)


def test_a_faulty_row_harms_no_later_user_of_its_block(make: Loader) -> None:
    cp = checkpoint(BASE)
    huge = {"embedding": poisoned(cp.tensors["embedding"], 5, 3e38)}
    backend = make(replace(cp, tensors={**cp.tensors, **huge}), 8, kv_dtype="int8")
    good = tuple(6 if t == 5 else t for t in prompt(BASE, 10))
    want = backend.run(Plan((PlanRow(0, good, 0, (0,), all_logprobs(BASE)),))).rows[0]
    bad = backend.run(Plan((PlanRow(1, (1, 5) * 8, 0, (1,), all_logprobs(BASE)),))).rows[0]
    assert bad.error
    assert backend.run(Plan((PlanRow(0, good, 0, (1,), all_logprobs(BASE)),))).rows[0] == want


def test_a_block_takes_half_the_memory(make: Loader, dtype: str) -> None:
    spec = with_heads(4, 2, 64)
    plain, eight = make(spec, 1).kv_block_bytes, make(spec, 1, kv_dtype="int8").kv_block_bytes
    elements = 2 * spec.num_layers * spec.num_kv_heads * 16
    assert eight == elements * (64 + 4)
    assert plain == elements * 64 * (4 if dtype == "float32" else 2)


def test_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="int4"):
        load(checkpoint(BASE), dtype="float32", max_model_len=16, max_batch_tokens=16, kv_dtype="int4")
    with pytest.raises(ConfigError, match="int4"):
        load_reference(checkpoint(BASE), dtype="float32", max_model_len=16, max_batch_tokens=16, kv_dtype="int4")
