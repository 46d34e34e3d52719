"""A path → `Checkpoint`: the one entry point for whoever loads a model."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import ModelError, ModelFileError, UnsupportedModel
from headrace.weights.files import Fields, read_json
from headrace.weights.names import from_gguf, from_safetensors
from headrace.weights.spec import Checkpoint
from headrace.weights.text_source import text_from_dir, text_from_gguf


def open_checkpoint(path: Path, *, max_model_len: int | None = None, name: str | None = None) -> Checkpoint:
    """Everything that a model's files say, with the weights as views of memory-mapped files.

    ``path`` is a .gguf file, or a directory with config.json and safetensors (or with one .gguf file and no
    config.json). ``max_model_len`` is the context that will be served: LongRoPE chooses its factors by it. ``name``
    is what the model is called; by default the file's or directory's own name.

    Raises:
        ModelFileError: a file is missing, malformed, or contradicts another; the message names it and the fault.
        UnsupportedModel: a model that is well-formed and not served.
    """
    try:
        if path.is_dir():
            ggufs = sorted(path.glob("*.gguf"))
            if not (path / "config.json").is_file() and len(ggufs) == 1:
                return _open_gguf(ggufs[0], max_model_len, name or path.name)
            return _open_dir(path, max_model_len, name or path.resolve().name)
        return _open_gguf(path, max_model_len, name or path.stem)
    except ModelError:
        raise
    except OSError as error:  # a loop of links, a folder without permission, a name too long
        raise ModelFileError(f"{str(path)!r}: cannot be opened: {error}") from error


def _open_dir(path: Path, max_model_len: int | None, name: str) -> Checkpoint:
    from headrace.weights.config_json import spec_from_config  # here and below: what the other kind of file needs
    from headrace.weights.packed import packing_from, unpacked  # is not imported, 15 ms of a start
    from headrace.weights.safetensors import read_safetensors_dir

    config = read_json(path / "config.json")
    spec = spec_from_config(config, str(path / "config.json"), max_model_len)
    weights = read_safetensors_dir(path)
    packing = packing_from(config, str(path / "config.json"))
    if packing is not None:
        weights = unpacked(weights, packing, spec, str(path))
    tensors = from_safetensors(spec, weights.tensors, weights.other, str(path))
    return Checkpoint(name, str(path), spec, tensors, text_from_dir(path, config))


def _open_gguf(path: Path, max_model_len: int | None, name: str) -> Checkpoint:
    from headrace.weights.gguf import read_gguf
    from headrace.weights.gguf_spec import spec_from_gguf

    file = read_gguf(path)
    parts = Fields(str(path), file.metadata).integer("split.count", 1 << 16, low=0, default=1)
    if parts > 1:
        raise UnsupportedModel(f"{path}: one of {parts} parts of a split model; join them first")
    spec = spec_from_gguf(file, str(path), max_model_len)
    tensors = from_gguf(spec, file.tensors, str(path))
    text = text_from_gguf(file.metadata, str(path))
    tokens = len(file.metadata["tokenizer.ggml.tokens"])
    if tokens > spec.vocab_size:
        raise ModelFileError(f"{path}: {tokens} tokens, but embeddings for {spec.vocab_size} only")
    return Checkpoint(name, str(path), spec, tensors, text)
