"""What processes log: lines on stderr, in which nothing drives a terminal or passes for a line of its own."""

import logging
import sys
from typing import Any

from h2kbus.cli.output import printable


class PlainFormatter(logging.Formatter):
    """One line for each record. Messages quote images, tools and other users; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        return "\n".join(printable(line) for line in super().formatException(ei).splitlines())


def set_up_logging(verbose: bool) -> None:
    """Log to stderr, one line each; the NATS client's own chatter only when asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    logging.getLogger("nats").setLevel(logging.DEBUG if verbose else logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
