"""What a campaign has left behind, gathered for the checker."""

from pathlib import Path

import anyio

from h2kbus.client import Bus
from subjects.codec import decode
from subjects.events import ProgressEvent
from subjects.spec import JobSpec
from tests.chaos import ledger
from tests.chaos.checker import Evidence


async def settled(bus: Bus, seconds: float) -> None:
    """Wait until nothing lies in the queues and no lock is held, so many seconds at the most."""
    with anyio.move_on_after(seconds):
        while await _queued(bus) or await _locks(bus):
            await anyio.sleep(0.2)


async def gather(bus: Bus, accepted: dict[str, JobSpec], place: Path) -> Evidence:
    """Everything but the files, from a bus that has settled."""
    records = {entry.record.job_id: entry.record async for entry in bus.store.scan()}
    events: dict[str, list[ProgressEvent]] = {}
    topology = bus.topology
    async for stored in bus.connection.read(topology.progress_stream, f"{bus.grammar.root}.progress.*"):
        event = decode(ProgressEvent, stored.data)
        events.setdefault(event.job_id, []).append(event)
    left = [f"message {subject}" for subject in await _queued(bus)]
    left += [f"lock {each}" for each in await _locks(bus)]
    left += [f"scratch {each}" for each in place.glob("*/.h2kbus-*")]
    return Evidence(
        accepted=accepted,
        records=records,
        events=events,
        ledger=ledger.read(place / "ledger.jsonl"),
        left_over=left,
    )


async def _queued(bus: Bus) -> list[str]:
    """What lies in the command and job streams."""
    found: list[str] = []
    for stream in (bus.topology.jobs_stream, bus.topology.commands_stream):
        info = await bus.connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
        found += info["state"].get("subjects") or {}
    return found


async def _locks(bus: Bus) -> list[str]:
    stream = bus.topology.bucket_stream(bus.topology.locks_bucket)
    read = bus.connection.read(stream, bus.topology.lock_subject(">"))
    return [stored.data.decode() async for stored in read if stored.data]


def files(place: Path) -> dict[str, bytes]:
    """What lies in the directories for outputs."""
    return {
        str(file): file.read_bytes()
        for name in ("out", "small")
        for file in (place / name).iterdir()
        if file.is_file() and not file.name.endswith(".log")
    }
