"""Logs of schedulers and workers: one line each on stderr, for people or as JSON, with the job's ids bound.

The standard library's logging is enough: a formatter, and a context variable that tasks inherit.
"""

import datetime as dt
import enum
import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from h2kbus.redaction import redacted

_BOUND: Final[ContextVar[Mapping[str, str | int]]] = ContextVar("h2kbus_log_fields")
_NOTHING: Final[Mapping[str, str | int]] = {}
_TRACE_ID: Final = slice(3, 35)

log = logging.getLogger("h2kbus")


class LogFormat(enum.StrEnum):
    """How a line of the log looks."""

    CONSOLE = "console"
    JSON = "json"


class bound:  # noqa: N801 - it is used like a function, on the hottest path
    """Add these fields to what this task, and those that it starts meanwhile, log. None adds nothing."""

    def __init__(self, **fields: str | int | None) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        given = {name: value for name, value in self._fields.items() if value is not None}
        self._token = _BOUND.set({**_BOUND.get(_NOTHING), **given})

    def __exit__(self, *_: object) -> None:
        _BOUND.reset(self._token)


def trace_id(traceparent: str | None) -> str | None:
    """The part of a trace context that names the trace."""
    return traceparent[_TRACE_ID] if traceparent else None


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: whatever a message holds, it stays on its line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **_BOUND.get(_NOTHING),
        }
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(line)


class ConsoleFormatter(logging.Formatter):
    """Words for people. Control characters are shown as escapes, so that no message drives a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name that logging calls
        return "\n".join(map(shown, super().formatException(ei).split("\n")))


def shown(text: str) -> str:
    """The text on one line, without secrets, its unprintable characters as escapes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in redacted(text)
    )


_FORMATTERS: Final[Mapping[LogFormat, type[logging.Formatter]]] = {
    LogFormat.CONSOLE: ConsoleFormatter,
    LogFormat.JSON: JsonFormatter,
}


def set_up_logging(log_format: LogFormat, *, verbose: bool) -> None:
    """Log to stderr, one line each; the NATS client's own chatter only when asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format]())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    logging.getLogger("nats").setLevel(logging.DEBUG if verbose else logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if log_format is LogFormat.JSON:
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_defect


def is_json() -> bool:
    """Whether this process logs in JSON, so that nothing else may be written to stderr."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def _log_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("it ends by a defect", exc_info=(kind, error, trace))
