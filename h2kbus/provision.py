"""Make the server match the declared topology: create what is missing, grow what is smaller.

Idempotent: running it twice, or in two processes at once, changes nothing the second time. It never
shrinks anything and never deletes; what it may not change it reports as ContractConflict.
"""

from typing import Any, Final

import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import BusError, ContractConflict
from subjects.topology import Consumer, Stream, Topology

_FIXED: Final = ("retention", "storage", "discard", "discard_new_per_subject", "allow_msg_ttl")
_GROWS: Final = ("max_age", "max_msgs_per_subject", "num_replicas")
_CONSUMER_EXISTS: Final = 10148


async def provision(connection: Connection, topology: Topology) -> list[str]:
    """Apply the whole topology. Returns the names of the streams that were created or changed.

    Raises ContractConflict where a stream exists with another shape, PermissionDenied without the
    right to create streams.
    """
    changed = [stream.name for stream in topology.streams() if await _apply(connection, stream)]
    await ensure_consumer(connection, topology.commands_stream, topology.commands_consumer())
    return changed


async def _apply(connection: Connection, stream: Stream) -> bool:
    try:
        info = await connection.api(f"STREAM.INFO.{stream.name}")
    except KeyError:
        await connection.api(f"STREAM.CREATE.{stream.name}", stream.settings())
        return True
    wanted = stream.settings()
    existing: dict[str, Any] = info["config"]
    _check(stream.name, existing, wanted)
    if all(_same(existing.get(field), value) for field, value in wanted.items()):
        return False
    await connection.api(f"STREAM.UPDATE.{stream.name}", {**existing, **wanted})
    return True


def _check(name: str, existing: dict[str, Any], wanted: dict[str, Any]) -> None:
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
    """Create a consumer unless it exists. An existing one is left as it is, jobs in flight included."""
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
