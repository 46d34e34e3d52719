"""Every metric in one catalogue; a recorder that counts; the exposition that Prometheus reads."""

from headrace.metrics.exposition import CONTENT_TYPE, Exposition
from headrace.metrics.recorder import Recorder

__all__ = ["CONTENT_TYPE", "Exposition", "Recorder"]
