"""The log of one attempt on its way to the bus, while it is being written and to its end.

What is stored begins where the attempt began, has every byte once, and is found by what it is only when it is
whole; until then it says that it is open.
"""

import contextlib
from pathlib import Path
from typing import Final

import anyio

from h2kbus.artifacts import Artifact, Upload
from h2kbus.errors import BusTimeout, BusUnreachable
from workers.job_files import content_of
from workers.joblog import MAX_LOG_BYTES, TAIL_BYTES
from workers.site import Destination

LOG_BYTES: Final = MAX_LOG_BYTES + 2 * TAIL_BYTES
"""More than a log of ours has; what others append to the file is left out."""
AGAIN_SECONDS: Final = 0.5


class LogUpload:
    """Stores what a log has from `start` on. All of its methods may be cancelled and called again."""

    def __init__(self, upload: Upload, destination: Destination, file: Path, start: int) -> None:
        self._upload = upload
        self._destination = destination
        self._file = file
        self._start = start
        self._announced = False
        self._unsure = b""
        self._lock = anyio.Lock()

    def lacks(self, end: int) -> bool:
        """Whether there is more than was stored, given where the log ends in its file."""
        return end > self._start + self._upload.size

    async def advance(self) -> None:
        """Store what is new. Raises BusError, and OSError and OperationFailed like `content_of`."""
        async with self._lock:
            if not self._announced:
                await self._upload.announce()
                self._announced = True
            await self._store_new()

    async def finish(self) -> Artifact:
        """Store the rest and what it all is. It waits for the bus as long as the caller waits.

        Raises like `advance`.
        """
        async with self._lock:
            while True:
                try:
                    await self._store_new()
                    return await self._upload.finish()
                except (BusTimeout, BusUnreachable):
                    await anyio.sleep(AGAIN_SECONDS)

    async def _store_new(self) -> None:
        if self._unsure:
            await self._store(self._unsure)
        done = self._upload.size
        content = content_of(self._destination, self._file, start=self._start + done, most=LOG_BYTES - done)
        async with contextlib.aclosing(content):
            async for chunk in content:
                await self._store(chunk)

    async def _store(self, chunk: bytes) -> None:
        """Until the bus has said that it has this chunk, no other one may come."""
        self._unsure = chunk
        await self._upload.write(chunk)
        self._unsure = b""
