"""Ollama's ``options``: every one is honoured, or refused by name unless its value asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from headrace.errors import Unsupported
from headrace.types import SamplingParams
from headrace.wire.fields import Fields
from headrace.wire.limits import Limits
from headrace.wire.sampling import GREEDY_BELOW, INT32, SEED_MAX

DEFAULTS: Mapping[str, float] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0}
"""Ollama's own, where the model has none."""
REPEAT_LAST_N = 64

_PLACEMENT: Mapping[str, type] = {
    "num_keep": int, "num_batch": int, "num_gpu": int, "main_gpu": int, "num_thread": int, "numa": bool,
    "low_vram": bool, "f16_kv": bool, "logits_all": bool, "use_mmap": bool, "use_mlock": bool,
}  # fmt: skip
"""Where and how fast Ollama computes, and what it keeps of a prompt that it cuts. The answer is the same without:
nothing is ever cut here, and how a model is placed is the server's to say."""

_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "typical_p": ((1, 1.0), "use top_p"),
    "tfs_z": ((1, 1.0), "use top_p or min_p"),
    "mirostat": ((0, 0.0), "use temperature and top_p"),
    "mirostat_tau": ((5, 5.0), "it belongs to mirostat, which is not supported"),
    "mirostat_eta": ((0.1,), "it belongs to mirostat, which is not supported"),
    "penalize_newline": ((True,), "a penalty is for all tokens"),
    "vocab_only": ((False,), "a model is loaded whole"),
    "embedding_only": ((False,), "a model is loaded whole"),
}

_HONOURED = frozenset(
    {
        "num_predict", "num_ctx", "seed", "stop", "temperature", "top_k", "top_p", "min_p", "repeat_last_n",
        "repeat_penalty", "presence_penalty", "frequency_penalty",
    }
)  # fmt: skip


class Options(Struct, frozen=True):
    """What the options come to. ``context`` is the most tokens of prompt and answer together, None for the model's."""

    sampling: SamplingParams
    max_tokens: int | None
    context: int | None


def parse_options(
    given: Mapping[str, Any], limits: Limits, logprobs: int | None, defaults: Mapping[str, float]
) -> Options:
    """Read them all. ``num_predict`` -1, -2 and 0 set no limit.

    Raises:
        InvalidRequest, Unsupported: naming the option, the limit and the fix.
    """
    fields = Fields(given, "options.")
    _check_names(fields, given)
    predict = fields.integer("num_predict", -2, INT32)
    context = fields.integer("num_ctx", 0, INT32) or None
    if context is not None and context > limits.max_model_len:
        raise fields.wrong("num_ctx", f"is {context}, but the model is served with a context of {limits.max_model_len}")
    max_tokens = min(predict, limits.max_model_len) if predict is not None and predict > 0 else None
    window = fields.integer("repeat_last_n", -1, INT32)
    window = REPEAT_LAST_N if window is None else window
    penalised = window != 0
    seed = fields.integer("seed", -1, SEED_MAX)
    temperature = _number(fields, "temperature", 0, 100, defaults)
    top_k = fields.integer("top_k", -1, INT32)
    top_k = int(_default("top_k", defaults)) if top_k is None else top_k
    sampling = SamplingParams(
        max_tokens=limits.max_model_len if max_tokens is None else max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_k=top_k if 0 < top_k < limits.vocab_size else 0,
        top_p=_top_p(fields, defaults),
        min_p=_number(fields, "min_p", 0, 1, defaults),
        repetition_penalty=_number(fields, "repeat_penalty", 0.01, 10, defaults) if penalised else 1.0,
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0 if penalised else 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0 if penalised else 0.0,
        penalty_window=window if window > 0 else 0,
        seed=seed if seed is not None and seed >= 0 else None,
        stop=fields.texts("stop", limits.max_stop, limits.max_stop_chars, single=True),
        logprobs=logprobs,
    )
    return Options(sampling, max_tokens, context)


def _default(name: str, defaults: Mapping[str, float]) -> float:
    return defaults.get(name, DEFAULTS[name])


def _number(fields: Fields, name: str, low: float, high: float, defaults: Mapping[str, float]) -> float:
    value = fields.number(name, low, high)
    return _default("repetition_penalty" if name == "repeat_penalty" else name, defaults) if value is None else value


def _top_p(fields: Fields, defaults: Mapping[str, float]) -> float:
    """0 is what Ollama's users write for greedy: the most likely token alone."""
    value = _number(fields, "top_p", 0, 1, defaults)
    return value if value > 0 else 1e-6


def _check_names(fields: Fields, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _HONOURED or value is None:
            continue
        if name in _PLACEMENT:
            if type(value) is not _PLACEMENT[name]:
                raise fields.wrong(name, "has the wrong type")
        elif name in _NEUTRAL:
            neutral, advice = _NEUTRAL[name]
            if not any(type(value) is type(each) and value == each for each in neutral):
                raise Unsupported(f"options.{name} is not supported with this value: {advice}", f"options.{name}")
        else:
            raise fields.wrong(ascii(name[:64]), "is not an option that is known here")
