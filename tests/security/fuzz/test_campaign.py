"""A short campaign: no mutated image breaks a promise, and what breaks one on purpose is caught."""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.security.fuzz import attempt
from tests.security.fuzz.attempt import Arena, Task, Verdict
from tests.security.fuzz.campaign import Plan, run, summary
from tests.security.fuzz.corpus import Seed, is_valid, seeds
from tests.security.fuzz.mutations import Mutant, mutate
from workers.context import JobContext, OperationResult
from workers.formats import qcow2
from workers.operations.inspect import Inspect

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    return seeds(tmp_path_factory.mktemp("seeds"))


async def test_no_mutated_image_breaks_a_promise(tmp_path: Path) -> None:
    report = await run(Plan(seed=11, mutants=150), tmp_path / "campaign")
    assert report.violations == [], summary(report)


async def test_campaign_reaches_what_lies_behind_the_headers(tmp_path: Path) -> None:
    report = await run(Plan(seed=12, mutants=40), tmp_path / "campaign")
    outcomes = {outcome for _, outcome in report.outcomes}
    assert {"COMPLETED", "COMPLETED, found IMAGE_CORRUPT", "IMAGE_UNSAFE"} <= outcomes, summary(report)


def test_seeds_are_images_with_nothing_wrong(corpus: list[Seed], tmp_path: Path) -> None:
    for seed in corpus:
        image = tmp_path / seed.main
        image.write_bytes(seed.files[seed.main])
        assert is_valid(image), seed.name


def test_the_same_seed_draws_the_same_mutants(corpus: list[Seed], tmp_path: Path) -> None:
    again = seeds(tmp_path)
    for number, (one, other) in enumerate(zip(corpus, again, strict=True)):
        first = mutate(random.Random(number), Mutant(one, corpus, "/outside"))
        assert mutate(random.Random(number), Mutant(other, again, "/outside")) == first, one.name


def fails_in_a_reader(_: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsafe(*_: object) -> object:
        raise IndexError("no such byte")

    monkeypatch.setattr(qcow2, "_unsafe", unsafe)


def instead(work: Callable[[JobContext, Arena], None]) -> Callable[[Arena, pytest.MonkeyPatch], None]:
    """An inspection that does something else."""

    def install(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
        async def inspect(_: Inspect, job: JobContext) -> OperationResult:
            work(job, arena)
            return OperationResult()

        monkeypatch.setattr(Inspect, "run", inspect)

    return install


def hangs(_: JobContext, __: Arena) -> None:
    time.sleep(0.5)


def writes_to_the_image(job: JobContext, _: Arena) -> None:
    Path(job.spec.image.path).write_bytes(b"mine")


def writes_elsewhere(_: JobContext, arena: Arena) -> None:
    arena.outside.with_name("new").touch()


def publishes_what_is_outside(job: JobContext, arena: Arena) -> None:
    job.output_path.mkdir(exist_ok=True)
    (job.output_path / "result").write_bytes(arena.outside.read_bytes())


def keeps_a_file_open(_: JobContext, arena: Arena) -> None:
    KEPT.append(arena.outside.open("rb"))


def leaves_a_process(_: JobContext, __: Arena) -> None:
    KEPT.append(subprocess.Popen(["sleep", "60"]))


KEPT: list["BinaryIO | subprocess.Popen[bytes]"] = []
ON_A_SOUND_IMAGE = {
    "it ends with a code of the list": fails_in_a_reader,
    "it ends at its limit": instead(hangs),
    "no file outside is touched": instead(writes_elsewhere),
    "no file stays open": instead(keeps_a_file_open),
    "no process is left over": instead(leaves_a_process),
}


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    for kept in KEPT:
        if isinstance(kept, subprocess.Popen):
            kept.kill()
            kept.wait()
        else:
            kept.close()
    KEPT.clear()


async def verdict_on(arena: Arena, seed: Seed, task: Task, limit: float = 20.0) -> Verdict:
    arena.lay_out(seed.files)
    return await arena.attempt(seed, task, limit)


@pytest.fixture
def qcow2_seed(corpus: list[Seed]) -> Seed:
    return next(each for each in corpus if each.name == "qcow2")


@pytest.mark.parametrize("promise", ON_A_SOUND_IMAGE)
async def test_broken_variant_is_caught(
    promise: str, qcow2_seed: Seed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(tmp_path / "arena")
    monkeypatch.setattr(attempt, "GRACE_SECONDS", 0.1)
    ON_A_SOUND_IMAGE[promise](arena, monkeypatch)
    verdict = await verdict_on(arena, qcow2_seed, Task(operation="inspect"), limit=0.2)
    assert promise in {each for each, _ in verdict.broken}


async def test_changed_source_is_caught(
    qcow2_seed: Seed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(tmp_path / "arena")
    instead(writes_to_the_image)(arena, monkeypatch)
    verdict = await verdict_on(arena, qcow2_seed, Task(operation="inspect"))
    assert ("no file outside is touched", str(arena.images / "image.qcow2")) in verdict.broken


async def test_file_outside_that_was_read_is_caught(
    qcow2_seed: Seed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(tmp_path / "arena")
    instead(publishes_what_is_outside)(arena, monkeypatch)
    verdict = await verdict_on(arena, qcow2_seed, Task(operation="inspect"))
    assert "nothing outside is read" in {promise for promise, _ in verdict.broken}


async def test_extent_outside_is_not_read(tmp_path: Path) -> None:
    arena = Arena(tmp_path / "arena")
    lines = (
        "# Disk DescriptorFile",
        "version=1",
        "CID=1",
        "parentCID=ffffffff",
        'createType="monolithicFlat"',
    )
    text = "\n".join((*lines, f'RW 8192 FLAT "{arena.outside}" 0', ""))
    seed = Seed(name="evil", format="vmdk", main="evil.vmdk", files={"evil.vmdk": text.encode()})
    to_raw = Task(operation="convert", parameters={"output_format": "raw", "output_name": "result"})
    assert (await verdict_on(arena, seed, to_raw)).broken == ()
