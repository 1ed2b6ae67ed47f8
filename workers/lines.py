"""A tool's output, line by line."""

from collections.abc import Callable

MAX_LINE_BYTES = 4096
OnLine = Callable[[str], None]


class LineSplitter:
    """Cuts a stream of bytes into lines at newlines and carriage returns; no line is without bound."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self.close()

    def close(self) -> None:
        """Hand over what is left without an end of line."""
        rest, self._rest = self._rest, b""
        self._emit(rest)

    def _emit(self, line: bytes) -> None:
        if line:
            self._on_line(line[:MAX_LINE_BYTES].decode("utf-8", "replace"))
