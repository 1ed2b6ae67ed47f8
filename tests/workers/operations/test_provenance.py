"""Operations say what they read and wrote, with a checksum of the result if they are asked for one."""

import hashlib
from pathlib import Path

import pytest

from tests.workers.conftest import DISK_BYTES, Bench

pytestmark = pytest.mark.anyio


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["convert", "offline_fix"])
@pytest.mark.parametrize("asked", [False, True])
async def test_checksum_of_the_result_is_that_of_the_file(
    bench: Bench, vmdk: Path, operation: str, asked: bool
) -> None:
    result = await bench.run(operation, vmdk, parameters={"output_checksum": asked})
    [source], [made] = result.provenance.inputs, result.provenance.outputs
    assert (source.path, source.format, source.virtual_size) == (str(vmdk), "vmdk", DISK_BYTES)
    assert source.file_bytes == vmdk.stat().st_size
    content = Path(made.path).read_bytes()
    assert made.file_bytes == len(content)
    assert made.sha256 == (hashlib.sha256(content).hexdigest() if asked else None)
    assert bench.read_report()["output"].get("sha256") == made.sha256


async def test_disk_that_is_only_inspected_is_an_input(bench: Bench, vmdk: Path) -> None:
    result = await bench.run("inspect", vmdk)
    assert [each.path for each in result.provenance.inputs] == [str(vmdk)]
    assert result.provenance.outputs == ()
    assert "qemu-img" in result.provenance.tools
