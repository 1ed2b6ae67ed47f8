"""The appliance is kept where nobody else can have put it."""

import os
from pathlib import Path

import pytest

from h2kbus.errors import OperationFailed
from workers.guest.built import built_appliance
from workers.joblog import JobLog
from workers.process import ToolRunner

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", [0o777, 0o775])
async def test_appliance_that_others_could_have_made_is_not_booted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    place = tmp_path / f".guestfs-{os.geteuid()}"
    place.mkdir()
    place.chmod(mode)
    monkeypatch.setenv("LIBGUESTFS_CACHEDIR", str(tmp_path))
    with JobLog(tmp_path / "log") as log, pytest.raises(OperationFailed, match="can be written to by them"):
        await built_appliance(ToolRunner(log, tmp_path))


async def test_link_to_an_appliance_elsewhere_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f".guestfs-{os.geteuid()}").symlink_to("elsewhere")
    monkeypatch.setenv("LIBGUESTFS_CACHEDIR", str(tmp_path))
    with JobLog(tmp_path / "log") as log, pytest.raises(OperationFailed):
        await built_appliance(ToolRunner(log, tmp_path))
