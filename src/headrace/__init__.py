"""headrace: the software between model weights and production traffic."""

__version__ = "0.1.0"
