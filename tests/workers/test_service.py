"""What a worker says of a job while it has it."""

import threading
from typing import Final

import anyio
import pytest
from nats.aio.msg import Msg

from h2kbus.client import Bus
from h2kbus.connection import connect
from h2kbus.settings import ConnectionSettings
from subjects.codec import decode
from subjects.events import ProgressEvent
from subjects.states import State
from tests.conftest import Fleet, rehearsal
from tests.rehearse import Rehearse
from workers.context import JobContext, OperationResult

pytestmark = pytest.mark.anyio

LOOPS: Final = ("asyncio", ("asyncio", {"use_uvloop": True}))
"""A worker runs on uvloop."""


def listen_for_a_start(
    settings: ConnectionSettings, bus: Bus, ready: threading.Event, heard: threading.Event
) -> None:
    """In a thread of its own, which goes on while the worker's is kept busy."""

    def on_message(message: Msg) -> None:
        if decode(ProgressEvent, message.data).state is State.RUNNING:
            heard.set()

    async def listen() -> None:
        async with connect(settings) as connection:
            await connection.listen(bus.grammar.progress_of_all(), on_message)
            ready.set()
            await anyio.to_thread.run_sync(heard.wait, 10)

    anyio.run(listen)


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"], scope="session")
async def test_start_is_told_before_an_operation_that_keeps_its_worker_busy(
    settings: ConnectionSettings, bus: Bus, running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, heard = threading.Event(), threading.Event()

    async def busy(_: Rehearse, job: JobContext) -> OperationResult:
        return OperationResult(summary={"heard": heard.wait(5)})

    monkeypatch.setattr(Rehearse, "run", busy)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, listen_for_a_start, settings, bus, ready, heard)
        assert await anyio.to_thread.run_sync(ready.wait, 10)
        record = await bus.result(await bus.submit(rehearsal()))
        heard.set()
    assert record.result is not None
    assert record.result.summary == {"heard": True}
