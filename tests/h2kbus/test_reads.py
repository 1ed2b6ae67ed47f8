"""Readers of a stream get all that it holds, in order, by as few requests as that takes."""

import anyio
import pytest

from h2kbus.connection import BATCH_BYTES, BATCH_SIZE, EVERYTHING, Connection
from subjects.topology import Topology


async def reads_of(connection: Connection, stream: str) -> list[str]:
    """Subjects of the reads of a stream that the server is asked for from here on."""
    seen: list[str] = []
    await connection.listen(f"$JS.API.DIRECT.GET.{stream}", lambda message: seen.append(message.subject))
    return seen


@pytest.mark.parametrize(
    ("messages", "size", "requests"),
    [(3, 10, 1), (BATCH_SIZE, 1, 1), (BATCH_SIZE + 100, 1, 2), (10, BATCH_BYTES // 9, 2)],
    ids=["few", "a batch", "more than a batch", "more bytes than a batch"],
)
async def test_everything_is_read_in_order_and_no_read_finds_nothing(
    provisioned: Connection, topology: Topology, messages: int, size: int, requests: int
) -> None:
    sent = [(topology.grammar.progress(f"j{number}"), b"x" * size) for number in range(messages)]
    for start in range(0, messages, 500):
        await provisioned.publish_together(*sent[start : start + 500])
    for subject in (EVERYTHING, f"{topology.grammar.root}.progress.*"):
        seen = await reads_of(provisioned, topology.progress_stream)
        read = [
            (each.subject, each.data) async for each in provisioned.read(topology.progress_stream, subject)
        ]
        assert read == sent
        assert len(seen) == requests


async def test_read_goes_on_after_what_was_read(provisioned: Connection, topology: Topology) -> None:
    await provisioned.publish_together(*((topology.grammar.progress(f"j{each}"), b"x") for each in range(10)))
    after = [each.seq async for each in provisioned.read(topology.progress_stream, after=8)]
    assert after == [9, 10]


async def test_read_of_a_stream_that_grows_all_the_time_ends(
    provisioned: Connection, topology: Topology
) -> None:
    """Somebody who reads what has changed has to come to an end on a busy bus too."""

    async def grow() -> None:
        while True:
            await provisioned.publish_together(*((topology.grammar.progress("j"), b"x") for _ in range(50)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(grow)
            await anyio.sleep(0.1)
            seen = await reads_of(provisioned, topology.progress_stream)
            for _ in range(20):
                assert [each.seq async for each in provisioned.read(topology.progress_stream)]
            group.cancel_scope.cancel()
    assert len(seen) < 60
