"""How much each submitter has on the bus, as one scheduler counts it.

It follows the jobs bucket, about a second behind, and knows at once of the jobs that it makes itself.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from h2kbus.changes import ChangeFeed
from h2kbus.errors import NotProvisioned
from subjects.quota import Stock
from subjects.record import JobRecord, OwnerGlimpse

_HASH_BITS: Final = (1 << 60) - 1
"""Numbers of 60 bits take the least memory that tells a million jobs apart."""


class Stocks:
    """Counts jobs that have not ended, each once, by a hash of its id: some seventy bytes for each."""

    def __init__(self, feed: ChangeFeed) -> None:
        self._feed = feed
        self._counted: set[int] = set()
        self._stocks: defaultdict[str, Stock] = defaultdict(Stock)
        self._coming: defaultdict[str, Stock] = defaultdict(Stock)

    def of(self, submitter: str) -> Stock:
        """What has been counted, and what is being made."""
        there, coming = self._stocks.get(submitter) or Stock(), self._coming.get(submitter) or Stock()
        return Stock(there.jobs + coming.jobs, there.bytes + coming.bytes)

    async def refresh(self) -> None:
        """Read what has changed. Raises BusError."""
        try:
            async for _, glimpse in self._feed.read(OwnerGlimpse):
                self.note(glimpse)
        except NotProvisioned:
            # A bucket that was deleted comes back empty.
            self.clear()
            raise

    def clear(self) -> None:
        """Forget what was counted, to count anew."""
        self._feed.start_anew()
        self._counted.clear()
        self._stocks.clear()

    def note(self, job: OwnerGlimpse | JobRecord) -> None:
        """Learn of a job as it is now."""
        key = hash(job.job_id) & _HASH_BITS
        if (key in self._counted) is not job.state.terminal:
            return
        if job.state.terminal:
            self._counted.remove(key)
            _change(self._stocks, job.submitted_by, -1, -job.spec_bytes)
        else:
            self._counted.add(key)
            _change(self._stocks, job.submitted_by, 1, job.spec_bytes)

    @contextlib.contextmanager
    def under_way(self, submitter: str, size: int) -> Iterator[None]:
        """Count a command while it is carried out, so that those beside it do not all find the same room."""
        _change(self._coming, submitter, 1, size)
        try:
            yield
        finally:
            _change(self._coming, submitter, -1, -size)


def _change(stocks: defaultdict[str, Stock], submitter: str, jobs: int, size: int) -> None:
    stock = stocks[submitter]
    stock.jobs += jobs
    stock.bytes += size
    if stock.jobs == 0:
        del stocks[submitter]
