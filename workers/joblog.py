"""The log of a job: what its attempts did and what their tools said."""

import datetime as dt
import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from h2kbus.redaction import PLAIN, Redactor
from workers.outputs import output_errors

MAX_LOG_BYTES = 16 * 1024 * 1024
"""A job's log stops growing here. Of what comes later the end is added when the attempt has ended."""
TAIL_BYTES = 256 * 1024
"""How much of the end is kept of what a full log did not take: errors stand there."""

MAX_LINE_CHARS = 4096
_LONGEST_READ = 2 * MAX_LINE_CHARS
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FULL = "log truncated: it reached its limit of {limit} bytes; the end follows when the attempt has ended"
_LEFT_OUT = "{lines} lines are left out here"


class JobLog:
    """Appends lines to one file, each with its time (RFC 3339, UTC), up to a limit of bytes.

    Of what comes after that the last `TAIL_BYTES` are held back, and written at the end: nobody reads 100 MB,
    and why an attempt failed stands at the end. `began` is where this attempt's lines begin in the file, and
    `size` where they end so far.

    A line is one small write into the page cache, so writing from the event loop does not hold it up.
    Raises OUTPUT_UNWRITABLE or NO_SPACE if the file cannot be opened. A later write that fails
    (a full disk) is remembered in `lost` instead of being raised: losing a log line is no reason to
    lose the job.
    """

    def __init__(
        self,
        path: Path,
        directory: Path | None = None,
        *,
        limit_bytes: int = MAX_LOG_BYTES,
        redactor: Redactor = PLAIN,
    ) -> None:
        """`directory` is where this process has the directory of `path`, if not by that name.

        `redactor` takes secrets out of every line, and of whatever else the job's tools are told.
        """
        self.path = path
        self.redactor = redactor
        self.lost: OSError | None = None
        self._limit = limit_bytes
        with output_errors(path):
            self._descriptor = os.open((directory or path.parent) / path.name, _FLAGS, 0o640)
        self.began = self.size = os.fstat(self._descriptor).st_size
        self._open = True
        self._full = False
        self._held: deque[bytes] = deque()
        self._held_bytes = self._left_out = 0

    def line(self, text: str) -> None:
        """Write one line, or one per line of `text`; control characters are shown as escapes."""
        for each in text.splitlines() or [""]:
            self._write(_stamped(self.redactor.text(each[:_LONGEST_READ])))

    def close(self) -> None:
        """Close the file; more lines are dropped without an error. Safe to call twice."""
        if self._open:
            self._open = False
            self._write_held()
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        if not self._open:
            return
        if not self._full and self.size + len(data) >= self._limit:
            self._full = True
            self._append(_stamped(_FULL.format(limit=self._limit)))
        if self._full:
            self._hold(data)
        else:
            self._append(data)

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        while self._held_bytes > TAIL_BYTES:
            self._held_bytes -= len(self._held.popleft())
            self._left_out += 1

    def _write_held(self) -> None:
        if self._left_out:
            self._append(_stamped(_LEFT_OUT.format(lines=self._left_out)))
        for each in self._held:
            self._append(each)
        self._held.clear()

    def _append(self, data: bytes) -> None:
        try:
            self.size += os.write(self._descriptor, data)
        except OSError as error:
            self.lost = error


def printable(text: str) -> str:
    """The text with control characters escaped, so that a tool's output cannot drive a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def encodable(value: Any) -> Any:
    """The same plain value with text only that UTF-8 can hold: guests' files need not be text at all."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [encodable(each) for each in value]
    return value


def _stamped(text: str) -> bytes:
    moment = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{moment} {printable(text[:MAX_LINE_CHARS])}\n".encode("utf-8", "backslashreplace")
