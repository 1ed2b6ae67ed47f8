"""What scheduler and workers tell the world: progress events, and messages that nobody could handle."""

import datetime as dt
from typing import Final

from h2kbus.connection import Connection
from h2kbus.errors import InvalidSubject
from h2kbus.pull import Delivery
from subjects.codec import encode
from subjects.events import ProgressEvent
from subjects.grammar import token
from subjects.record import DeadLetter
from subjects.topology import Topology

KEPT_BYTES: Final = 512 * 1024


async def publish_event(connection: Connection, topology: Topology, event: ProgressEvent) -> None:
    """Store one progress event, durably."""
    await connection.publish(topology.grammar.progress(event.job_id), encode(event))


async def bury(
    connection: Connection, topology: Topology, delivery: Delivery, *, reason: str, message: str, by: str
) -> None:
    """Keep a message that nobody could handle in the dead-letter stream. The caller acknowledges it."""
    letter = DeadLetter(
        subject=delivery.subject,
        reason=reason,
        message=message,
        at=dt.datetime.now(dt.UTC),
        by=by,
        data=delivery.data[:KEPT_BYTES],
    )
    await connection.publish(topology.grammar.dead(reason, _job_id(delivery.subject)), encode(letter))


def _job_id(subject: str) -> str:
    """The id in a message's subject; one that cannot stand in a subject of ours stays in the letter only."""
    try:
        return token(subject.rsplit(".", 1)[-1])
    except InvalidSubject:
        return "unnamed"
