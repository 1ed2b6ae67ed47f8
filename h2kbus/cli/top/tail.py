"""The end of one job's log on the live screen, as it comes."""

from collections import deque
from typing import Final

import anyio

from h2kbus.client import Bus
from h2kbus.errors import H2KBusError
from h2kbus.log_feed import LogFeed

REMEMBERED_LINES: Final = 500


class Tail:
    """The last lines of a job's log; notices and errors stand among them, in brackets."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.scope = anyio.CancelScope()
        self._lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._begun = b""

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    async def run(self, bus: Bus) -> None:
        """Follow the log until the job ends, or until `scope` is cancelled."""
        with self.scope:
            try:
                async for part in LogFeed(bus, self.job_id).follow():
                    if part.notice:
                        self._lines.append(f"[{part.notice}]")
                    self._take(part.content)
            except H2KBusError as error:
                self._lines.append(f"[{error.error_code}: {error}]")
            else:
                self._lines.append("[the job has ended]")

    def _take(self, content: bytes) -> None:
        """A chunk may end in the middle of a line."""
        *whole, self._begun = (self._begun + content).split(b"\n")
        self._lines.extend(each.decode("utf-8", "replace") for each in whole)
