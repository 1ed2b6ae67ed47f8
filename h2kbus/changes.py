"""What is written to the jobs bucket, for those who follow all of it: schedulers.

They have a consumer each, which keeps its place. Reading makes none (decision 4); but each batch of it has
the server walk through its index of all subjects, which is long where a million jobs are
(docs/decisions/0039-followers-have-a-consumer.md).
"""

import datetime as dt
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from h2kbus.answers import Stored
from h2kbus.connection import BATCH_BYTES, BATCH_SIZE, Connection
from h2kbus.errors import BusError, InvalidMessage, NotProvisioned
from h2kbus.pull import Delivery, PullInbox, PullRequest, place_of
from subjects.codec import decode
from subjects.topology import SECOND, Topology

log = logging.getLogger("h2kbus")

WAIT_NANOSECONDS: Final = SECOND // 20
"""How long a pull stays open. One that does not wait is answered by the server's count of what is pending,
which is too low for a moment while records are written over."""
IDLE_SECONDS: Final = 60
"""After so long without a pull the server forgets a consumer: its scheduler died, or was asleep."""

T = TypeVar("T")


class ChangeFeed:
    """One follower's place in the jobs bucket. `after` is the revision that was read last."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self.after = 0
        self._connection = connection
        self._stream = topology.bucket_stream(topology.jobs_bucket)
        self._inbox = PullInbox(connection, self._stream, self._on_delivery)
        self._consumer: str | None = None
        self._is_open = False
        self._taken: list[Delivery] = []

    async def read(self, kind: type[T]) -> AsyncIterator[tuple[Stored, T]]:
        """The jobs that were written since the last time, each once, as this part of what was written last.

        Ends with what the bucket holds now. Raises BusError, and goes on the next time after what was read;
        NotProvisioned without a bucket, whose successor is read from its start.
        """
        try:
            has_more = True
            while has_more:
                has_more = await self._take()
                for stored in self._read_out():
                    self.after = stored.seq
                    part = _part(kind, stored)
                    if part is not None:
                        yield stored, part
        except BaseException:
            # What was on its way is lost with the consumer that brought it.
            self._consumer = None
            raise

    def start_anew(self) -> None:
        """Read everything again."""
        self.after = 0
        self._consumer = None

    async def _take(self) -> bool:
        """Pull what there is, up to a batch; whether there is more."""
        consumer = self._consumer or await self._make_consumer()
        request = PullRequest(batch=BATCH_SIZE, max_bytes=BATCH_BYTES, expires=WAIT_NANOSECONDS)
        pull = await self._inbox.send(consumer, request)
        await pull.wait()
        if self._taken:
            return pull.failed or place_of(self._taken[-1].reply).pending > 0
        if pull.failed or pull.lapsed:
            raise BusError(f"{consumer}, the consumer that follows {self._stream}, does not answer any more")
        return False

    async def _make_consumer(self) -> str:
        if not self._is_open:
            await self._inbox.open()
            self._is_open = True
        name = f"follower-{secrets.token_hex(8)}"
        config: dict[str, Any] = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.after + 1,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": IDLE_SECONDS * SECOND,
        }
        body = {"stream_name": self._stream, "action": "create", "config": config}
        try:
            await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{name}", body)
        except KeyError:
            raise NotProvisioned(f"this server has no stream {self._stream}") from None
        self._consumer, self._taken = name, []
        return name

    def _on_delivery(self, delivery: Delivery) -> None:
        if delivery.consumer == self._consumer:
            self._taken.append(delivery)

    def _read_out(self) -> list[Stored]:
        taken, self._taken = self._taken, []
        return [
            Stored(each.subject, place_of(each.reply).sequence, each.data, _time(each.stored_at))
            for each in taken
        ]


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()


def _part(kind: type[T], stored: Stored) -> T | None:
    """None for what is no record: whoever put it there must not stop those who look after the others."""
    try:
        return decode(kind, stored.data) if stored.data else None
    except InvalidMessage as error:
        log.warning("%s is no job's record: %s", stored.subject, error)
        return None
