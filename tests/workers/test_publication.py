"""Results become visible whole and once, and whoever comes after a lost attempt knows what it left."""

import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import pytest

from h2kbus.errors import AttemptStopped, ErrorCode, OperationFailed
from tests.workers.conftest import Hanging, lease_is_held
from workers import outputs, publication
from workers.context import OperationResult
from workers.outputs import StagedFile, open_directory
from workers.publication import Publication, clear_away, publish, recover
from workers.site import Destination, OpenDirectory

pytestmark = pytest.mark.anyio

RESULT = OperationResult(summary={"said": "first"})


def scratch_of(out: Path, token: int, job_id: str = "job") -> Path:
    scratch = out / f".h2kbus-{job_id}-{token}"
    scratch.mkdir()
    return scratch


async def give_names(
    scratch: Path, files: Sequence[StagedFile], guard: Callable[[], Awaitable[None]] = lease_is_held
) -> Publication:
    """What an attempt does at its end, in the output directory that it holds open."""
    destination = Destination(scratch.parent)
    with destination.opened() as output:
        private = open_directory(output, scratch.name)
        try:
            return await publish(destination, output, private, files, RESULT, guard)
        finally:
            os.close(private.descriptor)


def staged(scratch: Path, *names: str) -> list[StagedFile]:
    files = []
    for name in names:
        source = scratch / f"staged-{name}"
        source.write_text(name)
        files.append(StagedFile(source, scratch.parent / name))
    return files


async def published(out: Path, token: int, *names: str) -> Publication:
    """What an attempt leaves that dies after its outputs got their names."""
    scratch = scratch_of(out, token)
    return await give_names(scratch, staged(scratch, *names))


async def dies() -> None:
    raise AttemptStopped(ErrorCode.LEASE_LOST, "made up")


def seen(out: Path) -> list[str]:
    return sorted(each.name for each in out.iterdir())


async def test_published_files_are_whole_and_private(tmp_path: Path) -> None:
    await (await published(tmp_path, 1, "a")).keep()
    assert (tmp_path / "a").read_text() == "a"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert seen(tmp_path) == ["a"]


async def test_one_taken_name_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(OperationFailed) as caught:
        await published(tmp_path, 1, "a", "b")
    assert caught.value.error_code is ErrorCode.OUTPUT_EXISTS
    assert seen(tmp_path) == [".h2kbus-job-1", "b"]
    assert (tmp_path / "b").read_text() == "mine"


async def test_filesystem_without_hard_links_does_not_overwrite_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "taken").write_text("mine")
    await published(tmp_path, 1, "free")
    with pytest.raises(OperationFailed):
        await published(tmp_path, 2, "taken")
    assert (tmp_path / "free").read_text() == "free"
    assert (tmp_path / "taken").read_text() == "mine"


async def test_completed_job_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    made = await published(tmp_path, 1, "a")
    monkeypatch.setattr(outputs, "_REMOVAL_SECONDS", 0.1)
    monkeypatch.setattr(publication, "remove_scratch", hanging)
    with anyio.fail_after(10):
        await made.keep()
    assert hanging.hangs


async def test_names_are_taken_back_however_long_the_disk_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    made, withdraw = await published(tmp_path, 1, "a"), publication._withdraw

    def late(output: OpenDirectory, scratch: str) -> None:
        hanging()
        time.sleep(0.1)  # Whoever did not wait would find the name.
        withdraw(output, scratch)

    monkeypatch.setattr(publication, "_withdraw", late)
    async with anyio.create_task_group() as group:
        group.start_soon(made.withdraw)
        await hanging.is_reached()
        group.cancel_scope.cancel()
        hanging.let_go()
    assert seen(tmp_path) == []


async def test_withdrawn_names_are_gone(tmp_path: Path) -> None:
    await (await published(tmp_path, 1, "a", "b")).withdraw()
    assert seen(tmp_path) == []


async def test_whole_publication_is_adopted_with_its_result(tmp_path: Path) -> None:
    await published(tmp_path, 1, "a", "b")
    adopted = await recover(Destination(tmp_path), "job", before=2)
    assert adopted is not None
    assert adopted.result == RESULT
    await adopted.keep()
    assert seen(tmp_path) == ["a", "b"]


async def test_adopter_that_dies_is_followed_by_another(tmp_path: Path) -> None:
    await published(tmp_path, 1, "a")
    await recover(Destination(tmp_path), "job", before=2)
    adopted = await recover(Destination(tmp_path), "job", before=3)
    assert adopted is not None
    assert adopted.result == RESULT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("planted", ["", "/publication.json"])
async def test_publication_of_somebody_else_is_neither_adopted_nor_undone(
    tmp_path: Path, planted: str
) -> None:
    """Whoever may write to the output directory may make a directory that is called like an attempt's."""
    await published(tmp_path, 1, "a")
    os.chown(f"{tmp_path}/.h2kbus-job-1{planted}", 65534, 65534)
    assert await recover(Destination(tmp_path), "job", before=2) is None
    assert (tmp_path / "a").exists()


async def test_publication_of_another_job_is_not_adopted(tmp_path: Path) -> None:
    """Who may write to the output directory may call an attempt's directory like another one's."""
    await published(tmp_path, 1, "a")
    (tmp_path / ".h2kbus-job-1").rename(tmp_path / ".h2kbus-other-1")
    assert await recover(Destination(tmp_path), "other", before=2) is None
    assert (tmp_path / "a").exists()


async def test_publication_is_adopted_where_no_file_belongs_to_who_has_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is on shares of some servers, which give each file one owner."""
    await published(tmp_path, 1, "a")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert await recover(Destination(tmp_path), "job", before=2) is not None


async def test_half_a_publication_is_taken_back(tmp_path: Path) -> None:
    await published(tmp_path, 1, "a", "b")
    (tmp_path / "b").unlink()
    assert await recover(Destination(tmp_path), "job", before=2) is None
    assert seen(tmp_path) == []


async def test_name_that_somebody_else_gave_is_never_taken_back(tmp_path: Path) -> None:
    await published(tmp_path, 1, "a", "b")
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("mine")
    assert await recover(Destination(tmp_path), "job", before=2) is None
    assert seen(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "mine"


async def test_attempt_that_never_published_is_cleared_away(tmp_path: Path) -> None:
    scratch = scratch_of(tmp_path, 1)
    with pytest.raises(AttemptStopped):
        await give_names(scratch, staged(scratch, "a"), dies)
    assert await recover(Destination(tmp_path), "job", before=2) is None
    assert seen(tmp_path) == []


async def test_revoked_attempt_cannot_publish_however_late_it_wakes(tmp_path: Path) -> None:
    """It was suspended after the bus had confirmed its lease, and wakes when the next one has begun."""
    scratch = scratch_of(tmp_path, 1)

    async def sleeps_too_long() -> None:
        await recover(Destination(tmp_path), "job", before=2)

    with pytest.raises(OperationFailed):
        await give_names(scratch, staged(scratch, "a", "b"), sleeps_too_long)
    assert seen(tmp_path) == []


async def test_name_given_in_the_moment_of_the_revocation_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt holds its directory open, whatever that is called by then."""
    remove, held = publication._remove_staged, os.open(scratch_of(tmp_path, 1), os.O_RDONLY)
    [file] = staged(tmp_path / ".h2kbus-job-1", "a")
    with pytest.raises(AttemptStopped):
        await give_names(tmp_path / ".h2kbus-job-1", [file], dies)

    def in_time(output: OpenDirectory, revoked: str) -> None:
        os.link(f"/proc/self/fd/{held}/{file.source.name}", file.target)
        remove(output, revoked)

    monkeypatch.setattr(publication, "_remove_staged", in_time)
    await recover(Destination(tmp_path), "job", before=2)
    os.close(held)
    assert seen(tmp_path) == []


async def test_late_worker_without_hard_links_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    async def sleeps_too_long() -> None:
        await recover(Destination(tmp_path), "job", before=2)

    monkeypatch.setattr(os, "link", refuse)
    scratch = scratch_of(tmp_path, 1)
    with pytest.raises(OperationFailed):
        await give_names(scratch, staged(scratch, "a"), sleeps_too_long)
    assert seen(tmp_path) == []


async def test_late_worker_leaves_alone_what_was_adopted(tmp_path: Path) -> None:
    late = await published(tmp_path, 1, "a")
    adopted = await recover(Destination(tmp_path), "job", before=2)
    await late.withdraw()
    assert adopted is not None
    await adopted.keep()
    assert seen(tmp_path) == ["a"]


async def test_other_jobs_and_later_attempts_are_left_alone(tmp_path: Path) -> None:
    for name in (".h2kbus-job-1", ".h2kbus-job-9", ".h2kbus-job-a-1", ".h2kbus-other-1"):
        (tmp_path / name).mkdir()
    (tmp_path / ".h2kbus-job-2").symlink_to(tmp_path / ".h2kbus-other-1")
    await recover(Destination(tmp_path), "job", before=3)
    assert seen(tmp_path) == [".h2kbus-job-2", ".h2kbus-job-9", ".h2kbus-job-a-1", ".h2kbus-other-1"]


@pytest.mark.parametrize(("keep", "left"), [(True, ["a"]), (False, [])])
async def test_end_of_a_job_clears_away_and_keeps_what_stands(
    tmp_path: Path, keep: bool, left: list[str]
) -> None:
    await published(tmp_path, 1, "a")
    scratch_of(tmp_path, 5)
    await clear_away(Destination(tmp_path), "job", keep_outputs=keep)
    assert seen(tmp_path) == left


async def test_nothing_to_recover_where_there_is_no_directory(tmp_path: Path) -> None:
    assert await recover(Destination(tmp_path / "nowhere"), "job", before=2) is None


async def test_damaged_manifest_counts_as_none(tmp_path: Path) -> None:
    await published(tmp_path, 1, "a")
    (tmp_path / ".h2kbus-job-1" / "publication.json").write_text("{")
    assert await recover(Destination(tmp_path), "job", before=2) is None
    shutil.rmtree(tmp_path / ".h2kbus-job-1", ignore_errors=True)
    assert seen(tmp_path) == ["a"]
