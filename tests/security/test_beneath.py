"""A path below an open directory leads nowhere else, on kernels with openat2 and without."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Final

import pytest

from tests.security.roots import CANARY, GOOD, Land, exchanging
from workers import beneath
from workers.beneath import make_beneath, open_beneath, open_by_openat2, open_by_steps

Opener = Callable[[int, PurePath, int], int]

ROUNDS: Final = 20_000
NAIVE_ROUNDS: Final = 400_000
OPENERS: Final = [open_by_openat2, open_by_steps]


@pytest.fixture
def root(land: Land) -> Iterator[int]:
    descriptor = os.open(land.root, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def content(opener: Opener, root: int, path: str) -> bytes:
    descriptor = opener(root, PurePath(path), os.O_RDONLY)
    try:
        return os.read(descriptor, len(CANARY))
    finally:
        os.close(descriptor)


def refusal(opener: Opener, root: int, path: str) -> int | None:
    try:
        content(opener, root, path)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("opener", OPENERS)
def test_what_is_inside_is_opened(land: Land, root: int, opener: Opener) -> None:
    assert content(opener, root, "images/disk.img") == GOOD


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("path", ["../outside/canary/disk.img", "images/../../outside/canary/disk.img", ".."])
def test_path_upwards_is_refused(land: Land, root: int, opener: Opener, path: str) -> None:
    assert refusal(opener, root, path) == errno.EXDEV


@pytest.mark.parametrize("opener", OPENERS)
def test_absolute_path_is_refused(land: Land, root: int, opener: Opener) -> None:
    assert refusal(opener, root, str(land.canary)) == errno.EXDEV


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("target", ["../outside/canary", "{outside}/canary", "images", "/proc/self/root"])
def test_link_on_the_way_is_refused(land: Land, root: int, opener: Opener, target: str) -> None:
    (land.root / "link").symlink_to(target.format(outside=land.outside))
    assert refusal(opener, root, "link/disk.img") == errno.ELOOP


@pytest.mark.parametrize("opener", OPENERS)
def test_link_at_the_end_is_refused(land: Land, root: int, opener: Opener) -> None:
    (land.root / "link.img").symlink_to(land.canary)
    assert refusal(opener, root, "link.img") == errno.ELOOP


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_kernel_without_openat2_is_no_way_out(
    land: Land, root: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def missing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beneath, "open_by_openat2", missing)
    (land.root / "link").symlink_to(land.canary.parent)
    assert content(open_beneath, root, "images/disk.img") == GOOD
    assert refusal(open_beneath, root, "link/disk.img") == errno.ELOOP


def test_directory_is_not_made_through_a_link(land: Land, root: int) -> None:
    (land.root / "link").symlink_to(land.empty)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        make_beneath(root, PurePath("link/deep/out"))
    assert land.is_untouched


def read_while_exchanged(land: Land, open_it: Callable[[], int], rounds: int) -> set[bytes]:
    """What was read in many rounds, while a directory and a link out of the root change places."""
    link = land.root / "link"
    link.symlink_to(land.canary.parent)
    seen: set[bytes] = set()
    with exchanging(land.root / "images", link):
        for _ in range(rounds):
            try:
                descriptor = open_it()
            except OSError:
                continue
            seen.add(os.read(descriptor, len(CANARY)))
            os.close(descriptor)
            if CANARY in seen:
                break
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("opener", OPENERS)
def test_link_that_comes_and_goes_never_leads_out(land: Land, root: int, opener: Opener) -> None:
    path = PurePath("images/disk.img")
    assert read_while_exchanged(land, lambda: opener(root, path, os.O_RDONLY), ROUNDS) == {GOOD}


@pytest.mark.slow
def test_the_race_is_won_against_a_check_before_the_use(land: Land) -> None:
    """The door open: were this not caught, the test above would prove nothing."""
    root = Path(land.root).resolve()

    def checked() -> int:
        if not land.image.resolve().is_relative_to(root):
            raise PermissionError
        return os.open(land.image, os.O_RDONLY)

    assert CANARY in read_while_exchanged(land, checked, NAIVE_ROUNDS)
