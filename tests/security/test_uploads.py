"""Nothing but files that are among a job's outputs is put on the bus."""

import os

import pytest

from h2kbus.errors import OperationFailed
from tests.security.roots import Land
from workers.job_files import content_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["job-1.log", "job-1.report.json"])
async def test_file_that_became_a_link_is_not_uploaded(land: Land, name: str) -> None:
    (land.root / name).symlink_to(land.canary)
    with pytest.raises(OSError, match="symbolic links"):
        await anext(content_of(land.site.destination(str(land.root)), land.root / name, most=1000))


async def test_pipe_is_not_uploaded(land: Land) -> None:
    os.mkfifo(land.root / "job-1.log")
    with pytest.raises(OperationFailed, match="no ordinary file"):
        await anext(content_of(land.site.destination(str(land.root)), land.root / "job-1.log", most=1000))


async def test_report_elsewhere_is_not_uploaded(land: Land) -> None:
    """Whatever an operation calls its report."""
    with pytest.raises(OperationFailed, match="is not in"):
        await anext(content_of(land.site.destination(str(land.root)), land.canary, most=1000))
