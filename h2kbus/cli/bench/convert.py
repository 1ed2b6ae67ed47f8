"""The convert operation beside plain qemu-img on the same disks, by turns: a matrix of both."""

import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from h2kbus.cli.bench.fleet import Fleet, running_fleet
from h2kbus.cli.sample_disk import MIB, convert_sample, find_tool
from subjects.spec import ArtifactPolicy, Audit, ImageFormat, ImageSpec, JobSpec
from workers.conversion import ConversionFacts, choose_options, usable_cores

DEFAULT_MIB: Final = 64
ROUNDS: Final = 3
DENSITY: Final = {"sparse": 8, "full": 1}
"""One MiB in so many holds content: half of it random, half of it text."""

_TEXT: Final = b"".join(b"line %d of a file\n" % number for number in range(30_000))[: MIB // 2]
_SECONDS: Final = 3600


class Source(msgspec.Struct, frozen=True):
    """A kind of image by its name in the table, and how qemu-img makes it."""

    name: str
    format: ImageFormat
    options: tuple[str, ...] = ()
    packed: bool = False


SOURCES: Final = (
    Source("raw", "raw"),
    Source("vmdk-sparse", "vmdk"),
    Source("vmdk-stream", "vmdk", ("-o", "subformat=streamOptimized"), packed=True),
    Source("vhdx", "vhdx"),
)


class Target(msgspec.Struct, frozen=True):
    """A way to write qcow2: the job's parameter, and what qemu-img needs to be asked for the same."""

    name: str
    compress: bool
    default: tuple[str, ...]
    same: tuple[str, ...]


TARGETS: Final = (
    Target("plain", False, (), ()),
    Target("compressed", True, ("-c",), ("-c", "-o", "compression_type=zlib")),
)


async def measure(
    _jobs: int | None = None, size_mib: int = DEFAULT_MIB, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Disks of `size_mib` MiB to qcow2; every result is synced, and every source is in the page cache.

    Seconds are medians. `defaults` is qemu-img as it comes, `options` with what our table chooses, `job`
    the operation without its proof, `proven` with check and comparison; the rest are ratios of those.
    """
    async with running_fleet(sync_always=True) as fleet:
        cells = []
        for density in DENSITY:
            for source in SOURCES:
                image = await anyio.to_thread.run_sync(_make_image, fleet.place, source, size_mib, density)
                for target in TARGETS:
                    seconds = await _compare(fleet, image, source, target, rounds)
                    cells.append({"source": source.name, "disk": density, "target": target.name, **seconds})
                image.unlink()
    return {"size_mib": size_mib, "rounds": rounds, "cells": cells}


async def _compare(
    fleet: Fleet, image: Path, source: Source, target: Target, rounds: int
) -> dict[str, float]:
    same = (*_chosen(source, target), *target.same)
    taken: dict[str, list[float]] = {"defaults": [], "options": [], "job": [], "proven": []}
    for _ in range(rounds):
        taken["defaults"].append(await anyio.to_thread.run_sync(_plain, image, source, target.default))
        taken["job"].append(await _job(fleet, image, source, target, ("convert",)))
        taken["options"].append(await anyio.to_thread.run_sync(_plain, image, source, same))
        taken["proven"].append(await _job(fleet, image, source, target, ()))
    seconds = {name: statistics.median(each) for name, each in taken.items()}
    return {
        **{name: round(each, 3) for name, each in seconds.items()},
        "job/options": round(seconds["job"] / seconds["options"], 2),
        "job/defaults": round(seconds["job"] / seconds["defaults"], 2),
        "proven/defaults": round(seconds["proven"] / seconds["defaults"], 2),
    }


def _chosen(source: Source, target: Target) -> tuple[str, ...]:
    facts = ConversionFacts(
        source=source.format,
        packed=source.packed,
        divisible=True,
        allocated_bytes=0,
        target="qcow2",
        compression="zlib" if target.compress else None,
        cores=usable_cores(),
    )
    return choose_options(facts).options


def _make_image(place: Path, source: Source, size_mib: int, density: str) -> Path:
    raw = place / "made.raw"
    with raw.open("wb") as file:
        for offset, content in _content(size_mib, DENSITY[density]):
            file.seek(offset)
            file.write(content)
        file.truncate(size_mib * MIB)
    image = place / f"disk.{source.format}"
    if source.format == "raw":
        raw.rename(image)
    else:
        convert_sample(raw, image, source.format, *source.options)
        raw.unlink()
    _sync(image)
    return image


def _content(size_mib: int, one_in: int) -> Iterator[tuple[int, bytes]]:
    for number in range(0, size_mib, one_in):
        yield number * MIB, os.urandom(MIB // 2) + _TEXT


def _plain(image: Path, source: Source, options: tuple[str, ...]) -> float:
    output = image.with_name("plain.qcow2")
    argv = [find_tool("qemu-img"), "convert", "-f", source.format, "-O", "qcow2", *options]
    began = time.perf_counter()
    subprocess.run([*argv, str(image), str(output)], check=True, capture_output=True, timeout=_SECONDS)
    _sync(output)
    seconds = time.perf_counter() - began
    output.unlink()
    return seconds


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


async def _job(fleet: Fleet, image: Path, source: Source, target: Target, actions: tuple[str, ...]) -> float:
    """The job's execution time as its result states it: everything between claim and outcome."""
    output = image.with_name("out")
    spec = JobSpec(
        operation="convert",
        image=ImageSpec(path=str(image), format=source.format),
        artifacts=ArtifactPolicy(output_path=str(output)),
        audit=Audit(requested_by="bench"),
        requested_actions=actions,
        parameters={"compress": target.compress},
    )
    record = await fleet.bus.result(await fleet.bus.submit(spec), check=True)
    for each in output.iterdir():
        each.unlink()
    return record.result.metrics.execution_seconds if record.result else 0.0
