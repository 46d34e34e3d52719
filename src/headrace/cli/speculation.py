"""From the settings to what drafts: nothing, prompt lookup, or a second model with memory of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from headrace.cli.backend import backend_options
from headrace.cli.store import find_model
from headrace.config import Config, SpeculationSettings
from headrace.errors import ConfigError
from headrace.types import BLOCK_SIZE, MemoryItem
from headrace.weights import open_checkpoint

if TYPE_CHECKING:
    from headrace.backends.cpu.backend import CpuBackend
    from headrace.cli.words import ModelWords
    from headrace.scheduler.speculation import Speculation

_STEP_TOKENS = 512
"""Most tokens that the draft model computes at once."""
_CONTEXTS = 4
"""Whole contexts that the draft model has room for: speculation is for few users at a time."""
_COMPARED = 2000
"""Tokens by which two tokenizers are compared."""


class Drafting(Struct, frozen=True):
    """What the scheduler is given, and the memory behind it."""

    speculation: Speculation | None = None
    backend: CpuBackend | None = None
    resident: tuple[MemoryItem, ...] = ()
    """Taken already."""
    reserved: tuple[MemoryItem, ...] = ()
    """Taken as it is used."""

    def close(self) -> None:
        """Give the draft model's memory back."""
        if self.backend is not None:
            self.backend.close()


def prepare(config: Config, words: ModelWords, vocab_size: int, max_model_len: int) -> Drafting:
    """What ``config`` asks for, for a model with these words, vocabulary and context; loads the draft model.

    Raises:
        ConfigError: settings that contradict each other, or a model with another tokenizer.
        ModelError, MemoryPlanError: the draft model cannot be found, read or held.
    """
    settings = config.section(SpeculationSettings)
    model, method = settings.speculative_model, settings.speculative_method
    method = method or ("draft_model" if model else "off")
    if model and method != "draft_model":
        raise ConfigError(f"speculative_method is {method}, which has no use for speculative_model ({model}); drop one")
    if method == "off":
        return Drafting()
    from headrace.scheduler.drafting import PromptLookup
    from headrace.scheduler.speculation import Speculation, SpeculationConfig

    limits = SpeculationConfig(settings.num_speculative_tokens)
    if method == "ngram":
        return Drafting(Speculation(PromptLookup(), limits))
    if model is None:
        raise ConfigError("speculative_method is draft_model, and speculative_model does not say which")
    from headrace.engine.draft_model import DraftModel

    backend, length = _load(config, model, words, max_model_len)
    try:
        resident = MemoryItem("draft model", sum(item.bytes for item in backend.memory()))
        blocks = _CONTEXTS * -(-length // BLOCK_SIZE)
        backend.allocate_kv(blocks)
        drafter = DraftModel(backend, blocks, max_model_len=length, vocab_size=vocab_size)
        kv = MemoryItem("draft model's KV cache", blocks * backend.kv_block_bytes)
        return Drafting(Speculation(drafter, limits), backend, (resident,), (kv,))
    except BaseException:
        backend.close()
        raise


def _load(config: Config, model: str, words: ModelWords, max_model_len: int) -> tuple[CpuBackend, int]:
    """The draft model, and its context."""
    from headrace.backends.cpu.backend import load
    from headrace.cli.words import ModelWords

    checkpoint = open_checkpoint(find_model(config, model))
    theirs = ModelWords(checkpoint.text, checkpoint.spec.vocab_size)
    for token in range(0, checkpoint.spec.vocab_size, max(checkpoint.spec.vocab_size // _COMPARED, 1)):
        if words.token_bytes(token) != theirs.token_bytes(token):
            raise ConfigError(
                f"speculative_model: the tokenizer of {checkpoint.name} is another one (token {token} is not the same);"
                " choose a smaller model of the same family"
            )
    length = min(max_model_len, checkpoint.spec.max_positions)
    options = backend_options(config, length)
    options["max_batch_tokens"] = _STEP_TOKENS
    return load(checkpoint, **options), length
