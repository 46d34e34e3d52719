"""The settings themselves."""

# ruff: noqa: RUF009  (knob declares a setting; it makes no default that instances share)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from headrace.config.knobs import duration, integer, knob, number, path, size, switch


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What is served, and in which precision."""

    TITLE: ClassVar[str] = "model"

    model: tuple[str, ...] = knob(
        (),
        "A directory (config.json + safetensors), a .gguf file, a catalogue name, or a hub id (organisation/name)."
        " Without one, the built-in default SmolLM2-135M-Instruct is fetched once and served. NAME=MODEL gives it a"
        " name. `headrace serve` takes several; the first answers requests that name none.",
        metavar="MODEL",
        many=True,
        positional=True,
    )
    dtype: str = knob(
        "auto",
        "Precision of matrix products and KV cache, and of weights that are not quantised. auto is bfloat16.",
        choices=("auto", "bfloat16", "float32"),
    )
    quantize: str | None = knob(
        None,
        "Quantise weights that the files have as floats: less memory, faster answers to few users at once, slightly"
        " different texts. int4 keeps embedding and head in int8. auto leaves all weights as they are.",
        choices=("int8", "int4"),
    )
    activations: str = knob(
        "float",
        "What quantised weights are multiplied by. float keeps every weight as the file has it. int16 and int8 put"
        " weights on 8-bit grids of their own and multiply integers, which is faster: int16 for perplexities half a"
        " percent higher, int8 for about four.",
        choices=("float", "int16", "int8"),
    )
    max_model_len: int | None = knob(
        None,
        "Longest context, prompt and answer together. auto is what the checkpoint was trained for, or what fits in the"
        " KV cache. Longer prompts are refused, never cut.",
        integer,
        unit="tokens",
        minimum=1,
        maximum=16_777_216,
    )
    seed: int | None = knob(
        None,
        "Starts the generator that gives a seed to requests without one: the same requests in the same order then get"
        " the same answers. auto is different at every start.",
        integer,
        minimum=0,
        maximum=2**32 - 1,
    )


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where models are kept."""

    TITLE: ClassVar[str] = "cache"

    cache_dir: Path | None = knob(
        None, "Where fetched models are kept. auto is $XDG_CACHE_HOME/headrace, else ~/.cache/headrace.", path
    )


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How requests share the model. More at once: higher throughput; fewer: lower latency for each."""

    TITLE: ClassVar[str] = "batching"

    max_num_seqs: int = knob(
        256, "Most sequences computed in one step; the others wait their turn.", integer, minimum=1, maximum=4096
    )
    max_num_batched_tokens: int = knob(
        2048,
        "Most tokens computed in one step, prompts and answers together. It sizes the activation memory.",
        integer,
        unit="tokens",
        minimum=16,
        maximum=131_072,
    )
    enable_prefix_caching: bool = knob(
        True, "Compute the shared beginning of prompts once and keep it while there is room.", switch
    )
    kv_cache_dtype: str = knob(
        "auto",
        "How keys and values are held. int8 takes about half the memory of bfloat16 (8 bits a value, a scale for each"
        " token's head), which makes room for more and, with AMX, decodes long contexts faster, for slightly different"
        " texts. auto is the model's dtype.",
        choices=("auto", "int8"),
    )
    kv_cache_memory: int | None = knob(
        None,
        "Memory for the KV cache: 4GiB, 512MiB, or a number of bytes. auto lets it grow to half of what the weights"
        " leave.",
        size,
        unit="bytes",
        minimum=1 << 16,
    )


@dataclass(frozen=True, slots=True)
class ResidencySettings:
    """Several models in one server: which are in memory. The first is from the start, others when asked for."""

    TITLE: ClassVar[str] = "models in memory"

    memory_budget: int | None = knob(
        None,
        "What all models may take together: weights, activations and KV caches. When one is asked for that does not"
        " fit, the longest unused ones leave. auto is no limit for one model, else 90 % of the memory that is there.",
        size,
        unit="bytes",
        minimum=1 << 20,
    )
    pin: tuple[str, ...] = knob(
        (), "Names of models that are loaded at the start and never make room for others.", many=True, metavar="NAME"
    )
    keep_alive: float = knob(
        -1.0,
        "How long an unused model stays in memory: 30, 30s, 5m, 1h; 0 not at all, -1 for as long as there is room.",
        duration,
        metavar="TIME",
        unit="seconds",
    )


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """Guessing ahead: one step then checks several tokens. Answers are the same with it and without."""

    TITLE: ClassVar[str] = "speculation"

    speculative_method: str | None = knob(
        None,
        "Where guesses come from. ngram copies what followed the same words earlier in prompt or answer, and pays for"
        " summaries, edits and quotes. draft_model asks a smaller model. Both stay out of the way where guesses fail,"
        " and when many users share a step. auto is draft_model if there is a --speculative-model, else off.",
        choices=("off", "ngram", "draft_model"),
    )
    speculative_model: str | None = knob(
        None,
        "The smaller model, in any form that MODEL may have. It must have the same tokenizer.",
        metavar="MODEL",
    )
    num_speculative_tokens: int = knob(15, "Longest guess.", integer, unit="tokens", minimum=1, maximum=16)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Who may ask, by which name, and for how long."""

    TITLE: ClassVar[str] = "server"

    host: str = knob("127.0.0.1", "Address to listen on; 0.0.0.0 serves the whole network.")
    port: int = knob(8000, "TCP port; 0 takes any free one.", integer, minimum=0, maximum=65535)
    api_key: tuple[str, ...] = knob(
        (),
        "Keys that requests must present one of (Authorization: Bearer KEY). Prefer HEADRACE_API_KEY, comma-separated:"
        " other users of the machine can read command lines.",
        many=True,
        secret=True,
        metavar="KEY",
    )
    api_key_file: Path | None = knob(
        None,
        "A file of keys, one a line, with scopes and quotas; `headrace keys` writes it. It is read again when it"
        " changes, and on SIGHUP.",
        path,
        metavar="FILE",
    )
    share_prefix_cache: bool = knob(
        False,
        "Let requests with different API keys share what is cached of their prompts. Faster where many keys use one"
        " system prompt; but how fast an answer begins then tells one tenant what another has asked.",
        switch,
    )
    served_model_name: tuple[str, ...] = knob(
        (), "Names that requests may call the model by; the first is the one in answers.", many=True, metavar="NAME"
    )
    manage_models: str = knob(
        "auto",
        "Whether clients may fetch, copy and delete models of this machine's cache (Ollama's /api/pull, /api/copy,"
        " /api/delete). auto: where only this machine can ask (--host), or where it takes a key.",
        choices=("auto", "on", "off"),
    )
    max_queue: int = knob(
        1024,
        "Most requests that wait for their first step; more are answered 429 with Retry-After.",
        integer,
        unit="requests",
        minimum=1,
        maximum=1_000_000,
    )
    request_timeout: float = knob(
        600.0,
        "Longest that one request may take, waiting included; it then ends with an error. 0 sets no limit.",
        number,
        unit="seconds",
        minimum=0,
        maximum=86_400,
    )
    response_store: int = knob(
        64 << 20,
        "Memory for responses of /v1/responses that can be continued or looked up by their id; a quarter of it for any"
        " one key. The least recently used go first. 0 keeps none.",
        size,
        metavar="SIZE",
        minimum=0,
    )
    grace_period: float = knob(
        25.0,
        "How long running requests may finish after SIGTERM. Keep it below the orchestrator's own limit"
        " (Kubernetes: 30).",
        number,
        unit="seconds",
        minimum=0,
        maximum=86_400,
    )
    log_level: str = knob("info", "How much is logged to stderr.", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """What of this machine is used."""

    TITLE: ClassVar[str] = "machine"

    threads: int | None = knob(
        None,
        "Compute threads. auto is one for each CPU that the process may use and its container has time for.",
        integer,
        minimum=1,
        maximum=1024,
    )
    isa: str | None = knob(
        None,
        "Instruction set of the kernels. auto is the best that the CPU has; the others are for tests and comparisons.",
        choices=("amx", "avx512bf16", "avx512", "avx2", "portable"),
    )


@dataclass(frozen=True, slots=True)
class WatermarkSettings:
    """How answers that ask for a watermark (TGI's `watermark` parameter) are marked; how the mark is found."""

    TITLE: ClassVar[str] = "watermark"

    watermark_key: int = knob(
        15_485_863,
        "Secret of the mark. Whoever knows it can find the mark, and could forge it; the default is known to all.",
        integer,
        minimum=0,
        maximum=10**18,
        secret=True,
    )
    watermark_gamma: float = knob(
        0.5, "Share of the vocabulary that is preferred at each position.", number, minimum=0.01, maximum=0.99
    )
    watermark_delta: float = knob(
        2.0, "How much it is preferred, in logits: 2 is found in 100 tokens, 5 hurts.", number, minimum=0, maximum=20
    )


SECTIONS: tuple[type[object], ...] = (
    ModelSettings,
    BatchSettings,
    ResidencySettings,
    SpeculationSettings,
    ServerSettings,
    WatermarkSettings,
    MachineSettings,
    CacheSettings,
)
"""Everything that environment and file may set."""
