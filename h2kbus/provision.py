"""Make the server match the declared topology: create what is missing, grow what is smaller.

Idempotent: running it twice, or in two processes at once, changes nothing the second time. It never
shrinks anything and never deletes; what it may not change it reports as ContractConflict.
"""

import datetime as dt
from typing import Any, Final

import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import BusError, ContractConflict, PermissionDenied
from subjects.topology import Consumer, Stream, Topology

_FIXED: Final = ("retention", "storage", "discard", "discard_new_per_subject")
_GROWS: Final = ("max_age", "max_msgs_per_subject", "num_replicas")
_CONSUMER_EXISTS: Final = 10148
_STREAM_EXISTS: Final = 10058

_FIRST_DAY: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


async def provision(connection: Connection, topology: Topology) -> list[str]:
    """Apply the whole topology. Returns the names of the streams that were created or changed.

    A user who may only look is enough where everything is as declared. Raises ContractConflict where a
    stream exists with another shape, PermissionDenied naming what this user may not make or change.
    """
    changed = []
    for stream in topology.streams():
        first = first_revision() if stream.name in topology.fencing_streams else 0
        if await _apply(connection, stream, first):
            changed.append(stream.name)
    await ensure_consumer(connection, topology.commands_stream, topology.commands_consumer())
    return changed


def first_revision() -> int:
    """Where a new bucket begins to count: in milliseconds since the first day of 2026.

    One that was deleted and made anew would start again at 1, and a token from before would beat every
    later one. As long as a bucket takes fewer than a thousand writes a second on average over its life,
    the next one begins above it. Progress events keep their order for the same reason.
    """
    return int((dt.datetime.now(dt.UTC) - _FIRST_DAY).total_seconds() * 1000)


async def _apply(connection: Connection, stream: Stream, first: int) -> bool:
    try:
        info = await connection.api(f"STREAM.INFO.{stream.name}")
    except KeyError:
        if await _create(connection, stream, first):
            return True
        info = await connection.api(f"STREAM.INFO.{stream.name}")
    wanted = stream.settings()
    existing: dict[str, Any] = info["config"]
    _check(stream.name, existing, wanted)
    if all(_same(existing.get(field), value) for field, value in wanted.items()):
        return False
    try:
        await connection.api(f"STREAM.UPDATE.{stream.name}", {**existing, **wanted})
    except PermissionDenied:
        words = f"stream {stream.name} is not as declared; `h2kbus setup`, run as an admin, changes it"
        raise PermissionDenied(words) from None
    return True


async def _create(connection: Connection, stream: Stream, first: int) -> bool:
    """Make the stream; false when somebody else was faster."""
    start = {"first_seq": first} if first else {}
    try:
        await connection.api(f"STREAM.CREATE.{stream.name}", {**stream.settings(), **start})
    except PermissionDenied:
        words = f"there is no stream {stream.name}; `h2kbus setup`, run as an admin, makes it"
        raise PermissionDenied(words) from None
    except BusError as error:
        if error.details.get("err_code") != _STREAM_EXISTS:
            raise
        return False
    return True


def _check(name: str, existing: dict[str, Any], wanted: dict[str, Any]) -> None:
    if existing.get("sealed"):
        raise ContractConflict(f"stream {name} is sealed, for ever; only deleting it lets it be made anew")
    for field in _FIXED:
        if (existing.get(field) or False) != (wanted.get(field) or False):
            raise ContractConflict(
                f"stream {name} has {field}={existing.get(field)!r}, not {wanted.get(field)!r}"
            )
    for field in _GROWS:
        have, want = existing.get(field) or 0, wanted.get(field) or 0
        # 0 and -1 mean unlimited in JetStream.
        if want > 0 and (have > want or (have <= 0 and field != "num_replicas")):
            raise ContractConflict(f"stream {name} has {field}={have}, and {want} would shrink it")


def _same(have: Any, want: Any) -> bool:
    if isinstance(want, (list, tuple)):
        return list(have or ()) == list(want)
    return bool(have == want)


async def ensure_consumer(connection: Connection, stream: str, consumer: Consumer) -> None:
    """Create a consumer unless it exists. An existing one keeps what it knows of messages in flight.

    Only its `ack_wait` is brought up to date, since a fleet may be told to use other leases.
    """
    body = {
        "stream_name": stream,
        "action": "create",
        "config": msgspec.to_builtins(consumer),
    }
    name = f"CONSUMER.CREATE.{stream}.{consumer.durable_name}.{consumer.filter_subject}"
    try:
        await connection.api(name, body)
    except BusError as error:
        if error.details.get("err_code") != _CONSUMER_EXISTS:
            raise
        await connection.api(name, {**body, "action": "update"})
