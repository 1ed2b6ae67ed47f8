"""The convert operation beside plain qemu-img on the same disk, turn by turn."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from h2kbus.cli.bench.fleet import Fleet, running_fleet
from h2kbus.cli.sample_disk import convert_sample, find_tool, make_disk
from subjects.spec import ArtifactPolicy, Audit, ImageSpec, JobSpec

ROUNDS: Final = 2


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One way to convert: the job's parameters, and qemu-img's options for the same and by default.

    `content_mib` makes a disk that keeps qemu-img busy for a second or more.
    """

    content_mib: int
    parameters: dict[str, Any]
    same: tuple[str, ...]
    default: tuple[str, ...]


COMPRESSED: Final = Case(
    content_mib=128, parameters={}, same=("-W", "-c", "-o", "compression_type=zlib"), default=("-c",)
)
UNCOMPRESSED: Final = Case(content_mib=512, parameters={"compress": False}, same=("-W",), default=())


async def measure(_jobs: int | None = None) -> dict[str, Any]:
    """A VMDK to qcow2: the job's own time against qemu-img's, results synced on both sides."""
    async with running_fleet(sync_always=True) as fleet:
        figures = await _compare(fleet, COMPRESSED)
        return {**figures, "uncompressed": await _compare(fleet, UNCOMPRESSED)}


async def _compare(fleet: Fleet, case: Case) -> dict[str, Any]:
    image = await anyio.to_thread.run_sync(_make_image, fleet.place, case.content_mib)
    same = default = converting = whole = 0.0
    for _ in range(ROUNDS):
        same += await anyio.to_thread.run_sync(_plain, image, case.same)
        converting += await _job(fleet, image, case, ("convert",))
        default += await anyio.to_thread.run_sync(_plain, image, case.default)
        whole += await _job(fleet, image, case, ())
    return {
        "ratio": round(converting / same, 3),
        "ratio_to_defaults": round(converting / default, 3),
        "proven_ratio_to_defaults": round(whole / default, 3),
        "job_seconds": round(converting / ROUNDS, 2),
        "proven_job_seconds": round(whole / ROUNDS, 2),
        "same_options_seconds": round(same / ROUNDS, 2),
        "default_options_seconds": round(default / ROUNDS, 2),
    }


def _make_image(place: Path, content_mib: int) -> Path:
    raw = make_disk(place / "disk.raw", size_mib=2 * content_mib, content_mib=content_mib)
    try:
        return convert_sample(raw, place / "disk.vmdk", "vmdk")
    finally:
        raw.unlink()


def _plain(image: Path, options: tuple[str, ...]) -> float:
    target = image.with_name("plain.qcow2")
    began = time.perf_counter()
    subprocess.run(
        [find_tool("qemu-img"), "convert", "-f", "vmdk", "-O", "qcow2", *options, str(image), str(target)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


async def _job(fleet: Fleet, image: Path, case: Case, actions: tuple[str, ...]) -> float:
    """The job's execution time as its result states it: everything between claim and outcome."""
    output = image.with_name("out")
    spec = JobSpec(
        operation="convert",
        image=ImageSpec(path=str(image), format="vmdk"),
        artifacts=ArtifactPolicy(output_path=str(output)),
        audit=Audit(requested_by="bench"),
        requested_actions=actions,
        parameters=case.parameters,
    )
    record = await fleet.bus.result(await fleet.bus.submit(spec), check=True)
    for each in output.iterdir():
        each.unlink()
    return record.result.metrics.execution_seconds if record.result else 0.0
