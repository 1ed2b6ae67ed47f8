"""What is put into the object store comes out as it was, or not at all."""

import pytest

from h2kbus import artifacts
from h2kbus.artifacts import CHUNK_BYTES, find, put, read
from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage
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
