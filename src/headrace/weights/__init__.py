"""Model files: finding, fetching and reading them. Files are treated as hostile; nothing in them is ever run.

`open_checkpoint` turns a path into a `Checkpoint` (specification, tensors as views of mapped files, text part).
`Store` turns what a user typed (a path, a catalogue name, a hub id, nothing) into a path, fetching what is not there.
"""

from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.spec import Checkpoint, ModelSpec, Tensor, TextSource
from headrace.weights.store import Store, StoredModel

__all__ = ["Checkpoint", "ModelSpec", "Store", "StoredModel", "Tensor", "TextSource", "open_checkpoint"]
