"""Log lines on stderr: one event, one line, whatever a caller managed to put into it."""

from __future__ import annotations

import logging
import sys

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}


class OneLine(logging.Formatter):
    """Escapes control characters of the message, so that no name or header can forge a line. Tracebacks stay as
    they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with its message escaped."""
        record.message = record.message.translate(_CONTROL)
        return super().formatMessage(record)


def start_logging(level: str) -> None:
    """Log to stderr from ``level`` on; what other libraries say, only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("headrace").setLevel(level.upper())
