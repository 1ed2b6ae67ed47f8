"""What this worker says of itself: found by probes when it starts, and found again while it runs."""

import logging
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from h2kbus.errors import H2KBusError
from subjects.fleet import WorkerCapabilities
from subjects.topology import REPROBE_SECONDS

log = logging.getLogger("h2kbus.worker")

Detect = Callable[[], Awaitable[WorkerCapabilities]]


class Probes(msgspec.Struct, frozen=True):
    """What finds out what this machine can do, and after how many seconds it does so again."""

    detect: Detect
    seconds: float = REPROBE_SECONDS


class Profile:
    """The newest findings; `on_change` is called when capabilities have come or gone."""

    def __init__(
        self, found: WorkerCapabilities, probes: Probes | None, on_change: Callable[[], None]
    ) -> None:
        self.found = found
        self.capabilities = _proven(found)
        self._probes = probes
        self._on_change = on_change

    async def run(self) -> None:
        """Look again and again, until cancelled. Without probes the first findings stand for ever."""
        while self._probes is not None:
            await anyio.sleep(self._probes.seconds)
            try:
                self._learn(await self._probes.detect())
            except H2KBusError as error:
                log.warning("the capabilities could not be probed again: %s", error)

    def _learn(self, found: WorkerCapabilities) -> None:
        before = self.capabilities
        self.found, self.capabilities = found, _proven(found)
        for token in sorted(self.capabilities - before):
            log.info("capability %s has come: %s", token, found.evidence.get(token, ""))
        for token in sorted(before - self.capabilities):
            log.warning("capability %s is gone: %s", token, found.evidence.get(token, ""))
        if self.capabilities != before:
            self._on_change()


def _proven(found: WorkerCapabilities) -> frozenset[str]:
    return frozenset(token for token, proven in found.capabilities.items() if proven)
