"""`h2kbus demo`: the whole road of one job, on this machine, with a real disk."""

import tempfile
from pathlib import Path

import anyio

from h2kbus.cli.exits import Exit
from h2kbus.cli.follow import follow
from h2kbus.cli.jobs import ending, outcome
from h2kbus.cli.output import print_line
from h2kbus.cli.processes import local_bus
from h2kbus.cli.sample_disk import convert_sample, make_disk
from h2kbus.errors import SettingsError
from subjects.record import JobRecord
from subjects.spec import ArtifactPolicy, Audit, ImageSpec, JobSpec

_MIB = 1 << 20


async def show(directory: Path | None) -> Exit:
    """Make a disk, start a bus, convert the disk, and say what was proven."""
    place = _directory(directory)
    print_line("making a partitioned disk with an ext4 filesystem and random files in it")
    image = await anyio.to_thread.run_sync(_make_vmdk, place)
    print_line(f"  {image} ({image.stat().st_size / _MIB:.0f} MiB)")
    print_line("starting a bus: nats-server with JetStream on disk, a scheduler, a worker")
    async with local_bus(place / "bus") as bus:
        job_id = await bus.submit(_spec(image, place / "out"))
        print_line(f"submitted job {job_id}")
        [record] = await follow(bus, [job_id])
    _tell(record, image)
    return ending(record.state)


def _directory(given: Path | None) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="h2kbus-demo-"))
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--dir {given}: {error.strerror}") from None
    return given.resolve()


def _make_vmdk(place: Path) -> Path:
    raw = make_disk(place / "disk.raw", size_mib=512, content_mib=64)
    try:
        return convert_sample(raw, place / "disk.vmdk", "vmdk")
    finally:
        raw.unlink()


def _spec(image: Path, output: Path) -> JobSpec:
    return JobSpec(
        operation="convert",
        image=ImageSpec(path=str(image), format="vmdk"),
        artifacts=ArtifactPolicy(output_path=str(output)),
        audit=Audit(requested_by="demo"),
    )


def _tell(record: JobRecord, image: Path) -> None:
    """Where the result is, and that the job itself compared it with its source."""
    result = record.result
    if result is None or result.error is not None:
        print_line(outcome(record))
        return
    if result.summary["actions"]["compare"] == "applied":
        print_line(f"the content was compared with {image.name}: equal")
    print_line(f"qcow2:   {result.outputs.fixed_image}")
    print_line(f"report:  {result.outputs.report}")
