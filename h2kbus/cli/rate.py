"""How fast a job goes, from what its events say of bytes."""

import time

import msgspec

from subjects.events import ProgressEvent


class Mark(msgspec.Struct, frozen=True):
    """How far a phase was at a monotonic moment, in bytes, and how fast it got there, in bytes a second."""

    phase: str
    bytes_done: int | None
    at: float
    rate: float | None = None

    def moved(self, event: ProgressEvent, now: float | None = None) -> "Mark":
        """The mark after an event. The rate stands while nothing moves, and begins anew with each phase."""
        moment = time.monotonic() if now is None else now
        after = Mark(event.phase, event.bytes_done, moment)
        if after.bytes_done is None or self.bytes_done is None or after.phase != self.phase:
            return after
        if after.bytes_done <= self.bytes_done or after.at <= self.at:
            return msgspec.structs.replace(after, rate=self.rate)
        rate = (after.bytes_done - self.bytes_done) / (after.at - self.at)
        return msgspec.structs.replace(after, rate=rate)


def in_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:  # noqa: PLR2004 - three digits at the most
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"  # noqa: PLR2004
        count /= 1024
    return f"{count:.2f} TiB"
