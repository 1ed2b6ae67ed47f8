"""What is put into the object store comes out as it was, or not at all."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from h2kbus import artifacts
from h2kbus.artifacts import CHUNK_BYTES, Upload, find, put, read
from h2kbus.connection import Connection
from h2kbus.errors import BusError, BusTimeout, InvalidMessage, RevisionConflict
from subjects.topology import Topology

pytestmark = pytest.mark.anyio


async def content(connection: Connection, topology: Topology, name: str) -> bytes:
    found = await find(connection, topology, name)
    assert found is not None
    return b"".join([chunk async for chunk in read(connection, topology, found)])


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
async def test_artifact_comes_out_as_it_was_put_in(
    provisioned: Connection, topology: Topology, size: int
) -> None:
    data = bytes(number % 251 for number in range(size))
    await put(provisioned, topology, "job/1/log", data)
    assert await content(provisioned, topology, "job/1/log") == data


async def test_artifact_is_stored_as_it_comes(provisioned: Connection, topology: Topology) -> None:
    stream, stored = f"OBJ_{topology.artifacts_store}", []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield bytes([number]) * (CHUNK_BYTES + 1)
            info = await provisioned.api(f"STREAM.INFO.{stream}")
            stored.append(info["state"]["messages"])

    await put(provisioned, topology, "job/1/log", pieces())
    assert stored == [2, 4, 6]
    whole = b"".join(bytes([number]) * (CHUNK_BYTES + 1) for number in range(3))
    assert await content(provisioned, topology, "job/1/log") == whole


async def test_chunk_whose_answer_was_lost_is_stored_once(
    provisioned: Connection, topology: Topology
) -> None:
    """The server stores it, and the connection says that nobody knows."""
    upload = Upload(Forgetful(provisioned, 1), topology, "job/1/log")
    for chunk in (b"one ", b"two ", b"three"):
        try:
            await upload.write(chunk)
        except BusTimeout:
            await upload.write(chunk)
    await upload.finish()
    assert await content(provisioned, topology, "job/1/log") == b"one two three"


async def test_chunk_that_somebody_else_put_there_is_no_answer_that_was_lost(
    provisioned: Connection, topology: Topology
) -> None:
    upload = Upload(provisioned, topology, "job/1/log")
    await upload.write(b"ours")
    await provisioned.publish(upload.chunks_subject, b"theirs")
    with pytest.raises(RevisionConflict):
        await upload.write(b"ours too")


class Forgetful(Connection):
    """A connection that loses the answer to one publish of several."""

    def __init__(self, connection: Connection, lost: int) -> None:
        vars(self).update(vars(connection))
        self._left = lost

    async def publish(self, *words: Any, **more: Any) -> int:
        sequence = await super().publish(*words, **more)
        self._left -= 1
        if self._left == -1:
            raise BusTimeout("the answer was lost")
        return sequence


async def test_name_that_nobody_stored_is_none(provisioned: Connection, topology: Topology) -> None:
    assert await find(provisioned, topology, "job/1/log") is None


async def test_artifact_whose_chunks_are_gone_is_said_to_be_damaged(
    provisioned: Connection, topology: Topology
) -> None:
    await put(provisioned, topology, "job/1/log", b"x" * (2 * CHUNK_BYTES))
    found = await find(provisioned, topology, "job/1/log")
    assert found is not None
    stream = f"OBJ_{topology.artifacts_store}"
    await provisioned.api(
        f"STREAM.PURGE.{stream}", {"filter": f"$O.{topology.artifacts_store}.C.{found.nuid}"}
    )
    with pytest.raises(BusError, match="damaged"):
        await content(provisioned, topology, "job/1/log")


async def test_artifact_to_which_somebody_added_is_said_to_be_damaged(
    provisioned: Connection, topology: Topology
) -> None:
    await put(provisioned, topology, "job/1/log", b"what was logged")
    found = await find(provisioned, topology, "job/1/log")
    assert found is not None
    await provisioned.publish(f"$O.{topology.artifacts_store}.C.{found.nuid}", b" and more")
    with pytest.raises(BusError, match="damaged"):
        await content(provisioned, topology, "job/1/log")


async def test_description_that_leads_elsewhere_is_refused(
    provisioned: Connection, topology: Topology
) -> None:
    await put(provisioned, topology, "job/1/log", b"x")
    found = await find(provisioned, topology, "job/1/log")
    assert found is not None
    for changed in ({"nuid": ">"}, {"nuid": "*"}, {"size": 1 << 40}):
        lying = artifacts.Artifact(
            **{field: getattr(found, field) for field in found.__struct_fields__} | changed
        )
        with pytest.raises(InvalidMessage):
            await anext(read(provisioned, topology, lying))
