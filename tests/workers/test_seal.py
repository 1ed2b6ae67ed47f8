"""Descriptors of sources: nobody who is handed one can write through it, and it is still the same file."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from workers.seal import seal

pytestmark = pytest.mark.anyio


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a,b source"
    path.write_text("content")
    return path


@pytest.fixture
def descriptor(source: Path) -> Iterator[int]:
    number = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    yield number
    os.close(number)


def may_write(descriptor: int) -> bool:
    try:
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
    except OSError:
        return False
    return True


async def test_descriptor_opens_for_writing_until_it_is_sealed(descriptor: int) -> None:
    assert may_write(descriptor)
    await seal(descriptor)
    assert not may_write(descriptor)


async def test_sealed_descriptor_is_of_the_same_file(descriptor: int, source: Path) -> None:
    before = os.fstat(descriptor)
    await seal(descriptor)
    assert os.path.samestat(before, os.fstat(descriptor))
    assert os.pread(descriptor, 100, 0) == source.read_bytes()
    assert not os.get_inheritable(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes directories there")
@pytest.mark.parametrize("name", ["/scratch", "/mnt", "/tmp", "/dev/shm", "/run"])
async def test_source_is_sealed_wherever_a_host_keeps_its_images(name: str) -> None:
    place = Path(name)
    missing = not place.exists()
    place.mkdir(exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=place) as made:
            descriptor = os.open(made.name, os.O_RDONLY)
            await seal(descriptor)
            assert not may_write(descriptor)
            os.close(descriptor)
    finally:
        if missing:
            place.rmdir()


async def test_file_that_took_the_name_of_the_source_is_not_sealed(descriptor: int, source: Path) -> None:
    """The kernel follows a file that is renamed; one that was replaced has no name any more."""
    other = source.with_name("other")
    other.write_text("another content")
    other.replace(source)
    with pytest.raises(OperationFailed):
        await seal(descriptor)
    assert os.pread(descriptor, 100, 0) == b"content"


async def test_output_stays_writable(tmp_path: Path) -> None:
    number = os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        await seal(number)
        assert may_write(number)
    finally:
        os.close(number)


async def test_source_without_a_name_is_refused_in_words(descriptor: int, source: Path) -> None:
    source.unlink()
    with pytest.raises(OperationFailed) as caught:
        await seal(descriptor)
    assert caught.value.error_code in {ErrorCode.TOOL_FAILED, ErrorCode.IMAGE_UNSAFE}
    assert str(source) in str(caught.value)
