"""Whoever moves names about while jobs read and write: no job is led outside of its roots."""

import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import pytest

from h2kbus.errors import OperationFailed
from subjects.lease import Lease
from subjects.spec import ImageSpec
from tests.security.roots import CANARY, GOOD, Land, exchanging, ignore
from tests.workers.conftest import Bench, lease_is_held
from workers.context import OperationResult
from workers.image import Gate, open_image
from workers.outputs import StagedFile, report_path
from workers.publication import publish, recover
from workers.site import ANYWHERE, Destination, Site
from workers.workplace import open_workplace

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROUNDS: Final = 3000
NAIVE_ROUNDS: Final = 30_000


async def seen_by_jobs(land: Land, site: Site, rounds: int) -> set[bytes]:
    """What jobs read while the image's directory and a link out of the root change places."""
    link = land.root / "link"
    link.symlink_to(land.canary.parent)
    gate = Gate(scratch=land.root, site=site)
    seen = set()
    with exchanging(land.root / "images", link):
        for _ in range(rounds):
            try:
                async with open_image(ImageSpec(path=str(land.image)), ignore, gate) as image:
                    descriptor = image.disk.descriptor
                    assert descriptor is not None
                    seen.add(os.pread(descriptor, len(CANARY), 0))
            except OperationFailed:
                continue
            if CANARY in seen:
                break
    return seen


async def test_no_job_wins_the_race_for_an_image(land: Land) -> None:
    assert await seen_by_jobs(land, land.site, ROUNDS) == {GOOD}


async def test_race_for_an_image_is_won_where_there_are_no_roots(land: Land) -> None:
    """The door open: were this not seen, the test above would prove nothing."""
    assert CANARY in await seen_by_jobs(land, ANYWHERE, NAIVE_ROUNDS)


async def attempt(destination: Destination, token: int) -> None:
    """What every attempt does with its outputs: a log, a scratch directory, a tool's file, a result."""
    lease = Lease(worker_id="w", token=token)
    job_id = f"job-{token}"
    await recover(destination, job_id, before=token)
    async with open_workplace(destination, job_id, lease, lambda: False) as place:
        place.log.line("working")
        (place.scratch / "result").write_bytes(GOOD)
        staged = [StagedFile(place.scratch / "result", report_path(destination.path, job_id))]
        result = OperationResult()
        publication = await publish(destination, place.output, place.private, staged, result, lease_is_held)
    await publication.keep()


async def race_for_outputs(
    land: Land,
    site: Site,
    rounds: int,
    work: Callable[[Destination, int], Awaitable[None]],
    reached: Callable[[], bool] = lambda: True,
) -> int:
    """Attempts while their output directory and a link out of the root change places; how many succeeded.

    So many rounds of it, and further ones until what shall be raced for has been `reached`: on a machine
    that is busy, one order of the names may last for many attempts.
    """
    (land.root / "out").mkdir()
    link = land.root / "link"
    link.symlink_to(land.empty)
    destination = site.destination(str(land.root / "out"))
    succeeded = 0
    with exchanging(land.root / "out", link), anyio.fail_after(60):
        number = 0
        while number < rounds or not reached():
            number += 1
            try:
                await work(destination, number)
                succeeded += 1
            except OperationFailed:
                continue
            if not land.is_untouched:
                break
    return succeeded


async def test_no_attempt_wins_the_race_for_its_outputs(land: Land) -> None:
    assert await race_for_outputs(land, land.site, ROUNDS, attempt) > 0
    assert land.is_untouched


async def test_race_for_outputs_is_won_where_there_are_no_roots(land: Land) -> None:
    """The door open, as above."""
    await race_for_outputs(land, ANYWHERE, ROUNDS, attempt)
    assert not land.is_untouched


async def test_whole_jobs_that_are_raced_for_read_and_write_inside(land: Land) -> None:
    """Both directories at once, with qemu-img at work; what was published holds what is inside."""
    link = land.root / "images.link"
    link.symlink_to(land.canary.parent)

    async def convert(destination: Destination, number: int) -> None:
        bench = Bench(destination.path)
        bench.site = land.site
        parameters = {"output_format": "raw", "output_name": f"result-{number}"}
        await bench.run("convert", land.image, format="raw", parameters=parameters)
        for each in land.root.glob("*/job-1.report.json"):
            each.unlink(missing_ok=True)

    def tool_has_run() -> bool:
        with contextlib.suppress(FileNotFoundError):  # What was listed may be under its other name by now.
            return any(" run: " in each.read_text() for each in land.root.glob("*/job-1.log"))
        return False

    with exchanging(land.root / "images", link):
        await race_for_outputs(land, land.site, 60, convert, tool_has_run)
    assert land.is_untouched
    contents = {each.read_bytes()[: len(GOOD)] for each in land.root.glob("*/result-*")}
    # In a sandbox hardly a job comes to its end: the names of what it shows have to stand still for a moment.
    assert contents <= {GOOD}
