"""Logs of jobs are kept in the fleet's object store."""

from pathlib import Path

import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.connection import Connection
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal

pytestmark = pytest.mark.anyio


async def test_log_outlives_the_directory_that_it_was_written_to(
    bus: Bus, running: Fleet, connection: Connection, topology: Topology, tmp_path: Path
) -> None:
    spec = rehearsal(publish=True, output=str(tmp_path))
    uploading = msgspec.structs.replace(spec.artifacts, log_upload=True)
    job_id = await bus.submit(msgspec.structs.replace(spec, artifacts=uploading))
    record = await bus.result(job_id)
    assert record.result is not None
    assert record.result.warnings == ()
    store = await connection.nats.jetstream().object_store(topology.artifacts_store)
    kept = await store.get(f"{job_id}/1/log")
    assert b"attempt 1 of rehearse" in (kept.data or b"")
