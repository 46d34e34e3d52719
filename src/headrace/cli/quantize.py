"""``headrace quantize``: a model with fewer bits, as a GGUF file."""

# ruff: noqa: RUF009  (knob declares a setting; it makes no default that instances share)

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, cast

from headrace.cli import flags
from headrace.cli.store import find_model, megabytes, progress_bar
from headrace.config import CacheSettings, knob, path, switch
from headrace.errors import ConfigError, HeadraceError, UnsupportedModel
from headrace.weights import Checkpoint, open_checkpoint
from headrace.weights.spec import DType, Tensor

if TYPE_CHECKING:
    from headrace.backends.cpu.quantize import Scheme

ABOUT = """\
Write a quantised copy of a float model as one GGUF file, which headrace and llama.cpp open; tokenizer and chat template
go with it. int8 and int4 are what `headrace serve --quantize` makes at each start: Q8_0, and Q4_1 with the least
squared error. q8_0, q4_0 and q4_1 round as llama.cpp does. With four bits, embedding and head keep eight."""

EXAMPLES = """\
  headrace quantize ./my-model my-model-q8.gguf
  headrace quantize HuggingFaceTB/SmolLM2-360M-Instruct smollm2-360m-q4.gguf --type int4
"""

TYPES = ("int8", "int4", "q8_0", "q4_0", "q4_1")
_FILE_TYPES = {DType.Q8_0: 7, DType.Q4_0: 2, DType.Q4_1: 3}
"""llama.cpp's numbers for what most of a file's tensors are stored as (``general.file_type``)."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is written where."""

    TITLE: ClassVar[str] = "quantisation"

    model: str | None = knob(
        None, "A directory, a .gguf file, a catalogue name or a hub id.", positional=True, env=False, metavar="MODEL"
    )
    out: Path | None = knob(None, "The file to write.", path, positional=True, env=False, metavar="OUT.gguf")
    type: str = knob("int8", "How the weights are stored.", choices=TYPES, env=False)
    force: bool = knob(False, "Replace OUT.gguf if it exists.", switch, env=False)


SECTIONS = (Quantization, CacheSettings)


def run(argv: Sequence[str]) -> int:
    """Write the copy and print how large it became.

    Raises:
        ConfigError: no model or no file was named, or the file exists.
        HeadraceError: the model cannot be opened, quantised or written.
    """
    from headrace.backends.cpu.quantize import SCHEMES

    config = flags.read(flags.parser("headrace quantize", ABOUT, SECTIONS, EXAMPLES), argv, SECTIONS)
    settings = config.section(Quantization)
    out = settings.out
    if settings.model is None or out is None:
        raise ConfigError("quantize: name a model and the file to write (see headrace quantize --help)")
    if out.suffix != ".gguf":
        raise ConfigError(f"{out}: the file's name must end in .gguf, or nothing could open it")
    if out.exists() and not settings.force:
        raise ConfigError(f"{out} exists; --force replaces it")
    checkpoint = open_checkpoint(find_model(config, settings.model))
    before = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    write_quantized(checkpoint, out, SCHEMES[settings.type])
    print(f"{out}: {megabytes(out.stat().st_size)}, from {megabytes(before)} of weights")
    if checkpoint.text.tokenizer_json is not None and checkpoint.text.sampling_defaults:
        left = ", ".join(f"{name} {value:g}" for name, value in checkpoint.text.sampling_defaults.items())
        print(f"GGUF has no place for the model's sampling defaults: {left}")
    return 0


def write_quantized(checkpoint: Checkpoint, out: Path, scheme: Scheme) -> None:
    """Write ``checkpoint`` under ``scheme``; the file appears when it is whole and has been read back.

    Raises:
        UnsupportedModel: the model is quantised already, or GGUF cannot say what it is.
        HeadraceError: the disk is full, or the folder cannot be written.
    """
    from headrace.backends.cpu.quantize import FLOATS

    matrices = [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2]
    if not any(tensor.dtype in FLOATS for tensor in matrices):
        raise UnsupportedModel(
            f"{checkpoint.path}: its weights are stored as {matrices[0].dtype} already; quantising twice only loses "
            "quality, so start from the float model"
        )
    from headrace.weights.gguf_write import write_gguf

    entries, tensors, alignment = _contents(checkpoint, scheme)
    with _appearing(out) as (file, partial), progress_bar(out.name, "quantising") as progress:
        write_gguf(file, entries, tensors, alignment=alignment, progress=progress)
        file.flush()
        _check(checkpoint, partial)


def _contents(
    checkpoint: Checkpoint, scheme: Scheme
) -> tuple[Mapping[str, bytes | memoryview], Mapping[str, Tensor], int]:
    """Encoded metadata, tensors that are quantised when their turn comes, and the file's alignment."""
    from headrace.backends.cpu.quantize import floats
    from headrace.weights.gguf_export import exported_metadata, exported_tensors
    from headrace.weights.gguf_write import ALIGNMENT, entry

    added = {"general.file_type": _FILE_TYPES[scheme.inner], "general.quantization_version": 2}
    written = {key: entry(key, value) for key, value in added.items()}
    if checkpoint.text.tokenizer_json is None:
        from headrace.weights.gguf import read_gguf

        source = read_gguf(_gguf_file(Path(checkpoint.path)))
        outer = {"token_embd.weight": "embedding", "output.weight": "lm_head"}
        tensors = {name: _late(outer.get(name, name), tensor, scheme) for name, tensor in source.tensors.items()}
        alignment: int = source.metadata.get("general.alignment", ALIGNMENT)
        return {**source.entries, **written}, tensors, alignment
    from headrace.text.gguf_export import exported_vocabulary

    metadata = exported_metadata(checkpoint) | exported_vocabulary(checkpoint.text, checkpoint.spec.vocab_size)
    tensors = exported_tensors(checkpoint, lambda name, tensor: _late(name, tensor, scheme), floats)
    return {**{key: entry(key, value) for key, value in metadata.items()}, **written}, tensors, ALIGNMENT


def _late(name: str, tensor: Tensor, scheme: Scheme) -> Tensor:
    """The tensor quantised when it is read, so that one at a time is in memory."""
    from headrace.backends.cpu.quantize import quantized, storage_type

    target = storage_type(name, tensor, scheme)
    return Tensor(target, tensor.shape, lambda: quantized(name, tensor, scheme).data)


def _gguf_file(path: Path) -> Path:
    return next(iter(sorted(path.glob("*.gguf")))) if path.is_dir() else path


def _check(checkpoint: Checkpoint, written: Path) -> None:
    """What was written must say what the source says."""
    from headrace.weights.gguf_export import differences

    copy = open_checkpoint(written)
    wrong = differences(checkpoint.spec, copy.spec)
    if copy.text.eos_token_ids != checkpoint.text.eos_token_ids:
        wrong.append("the end tokens")
    if copy.text.chat_templates != checkpoint.text.chat_templates:
        wrong.append("the chat templates")
    if wrong:
        raise UnsupportedModel(f"{checkpoint.path}: cannot be written to GGUF unchanged: {', '.join(wrong)}")


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file under another name beside ``path``, which becomes ``path`` at the end and vanishes on any failure."""
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}.", suffix=".gguf", delete=False
        ) as file:
            partial = Path(file.name)
            try:
                yield cast(BinaryIO, file), partial
                os.fsync(file.fileno())
                partial.chmod(0o666 & ~_umask())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise HeadraceError(f"{path}: cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
