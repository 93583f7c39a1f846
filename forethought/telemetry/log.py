"""Human-readable logs: one line per record on stderr, prefixed with the process that wrote it.

Design: one line of plain text per record, so that the interleaved output of a laptop run reads in order
and ``grep`` works; line breaks inside a message are escaped. The price is no structured fields: numbers
to compute with belong in metrics. Only tracebacks keep their line breaks.
"""

from __future__ import annotations

import logging
import sys

from forethought.errors import InvalidInput

_CHATTY = ("asyncio", "grpc", "httpcore2", "httpx2", "urllib3", "uvicorn.access")
_LEVELS = ("debug", "info", "warning", "error")


def configure_logging(process: str, level: str = "info") -> None:
    """Send every log record of this process to stderr under the name ``process``.

    ``level`` is debug, info, warning or error; libraries that log every call are limited to warnings.
    Calling it again replaces the previous configuration.

    Raises:
        InvalidInput: unknown level.
    """
    if level.lower() not in _LEVELS:
        raise InvalidInput(f"log level {level!r}; expected one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _OneLine(logging.Formatter):
    """``14:03:59.120 rollout-a1 WARNING trainer.publisher: …``"""

    def __init__(self, process: str) -> None:
        prefix = f"%(asctime)s.%(msecs)03d {process.replace('%', '%%')}"
        super().__init__(f"{prefix} %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Escape line breaks in the message; the traceback is appended later and keeps its own."""
        return super().formatMessage(record).replace("\n", "\\n")
