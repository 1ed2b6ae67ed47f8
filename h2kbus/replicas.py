"""How many copies of each stream and consumer a cluster keeps, and whether they have caught up.

A stream's consumers get their copies some time after the stream: a node that dies meanwhile would take the
only copy of a consumer along.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import BusTimeout, NotProvisioned
from subjects.topology import Topology

LOOK_SECONDS: Final = 0.25


class Copies(msgspec.Struct, frozen=True, kw_only=True):
    """The copies of a stream or of one of its consumers, and how many of them have caught up."""

    stream: str
    wanted: int
    current: int
    messages: int
    consumer: str | None = None

    @property
    def name(self) -> str:
        return f"{self.stream} > {self.consumer}" if self.consumer else self.stream


async def read_copies(connection: Connection, topology: Topology) -> list[Copies]:
    """Of every stream, bucket and consumer. Raises NotProvisioned when a stream is missing."""
    found = []
    for stream in topology.streams():
        try:
            info = await connection.api(f"STREAM.INFO.{stream.name}")
        except KeyError:
            raise NotProvisioned(f"this server has no stream {stream.name}") from None
        of_stream = Copies(
            stream=stream.name,
            wanted=info["config"]["num_replicas"],
            current=_current(info),
            messages=info["state"]["messages"],
        )
        found.append(of_stream)
        if info["state"]["consumer_count"]:
            found += [each async for each in _of_consumers(connection, of_stream)]
    return found


async def _of_consumers(connection: Connection, stream: Copies) -> AsyncIterator[Copies]:
    """Of the stream's consumers, which come by the page."""
    seen = 0
    while True:
        page = await connection.api(f"CONSUMER.LIST.{stream.stream}", {"offset": seen})
        for info in page.get("consumers") or []:
            seen += 1
            if info["config"].get("mem_storage"):
                # A scheduler's, which makes another one if this is lost.
                continue
            # 0 stands for as many as the stream has.
            wanted = info["config"].get("num_replicas") or stream.wanted
            yield Copies(
                stream=stream.stream,
                consumer=info["name"],
                wanted=wanted,
                current=_current(info),
                messages=info["num_pending"],
            )
        if not page.get("consumers") or seen >= page["total"]:
            return


def _current(info: dict[str, Any]) -> int:
    """The leader, and the others that have caught up. A server that is no cluster tells nothing of copies."""
    cluster = info.get("cluster") or {}
    return 1 + sum(bool(each.get("current")) for each in cluster.get("replicas") or [])


async def wait_for_copies(connection: Connection, topology: Topology, seconds: float) -> list[Copies]:
    """Wait until every copy has caught up. Raises BusTimeout when that takes longer than `seconds`."""
    behind: list[str] = []
    with anyio.move_on_after(seconds):
        while True:
            found = await read_copies(connection, topology)
            behind = [each.name for each in found if each.current < each.wanted]
            if not behind:
                return found
            await anyio.sleep(LOOK_SECONDS)
    raise BusTimeout(f"after {seconds:g} s not every copy has caught up: {', '.join(behind)}")
