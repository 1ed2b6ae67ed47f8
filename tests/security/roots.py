"""A root, something of value outside of it, and somebody who exchanges names as fast as can be."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from workers.site import Site

CANARY: Final = b"what is outside" * 1000
GOOD: Final = b"what is inside." * 1000

_EXCHANGE: Final = """
import ctypes, sys
libc = ctypes.CDLL(None)
one, other = (each.encode() for each in sys.argv[1:])
while libc.renameat2(-100, one, -100, other, 2) == 0:
    pass
"""


class Land:
    """`root` may be used. What is in `outside` is never to be read, nor anything to be put there."""

    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        self.outside = place / "outside"
        self.canary = self.outside / "canary" / "disk.img"
        self.empty = self.outside / "empty"
        for each in (self.root / "images", self.canary.parent, self.empty):
            each.mkdir(parents=True)
        self.image = self.root / "images" / "disk.img"
        self.image.write_bytes(GOOD)
        self.canary.write_bytes(CANARY)

    @property
    def site(self) -> Site:
        return Site(image_roots=(self.root,), output_roots=(self.root,))

    @property
    def is_untouched(self) -> bool:
        """Whether everything outside is as it was."""
        names = sorted(str(each.relative_to(self.outside)) for each in self.outside.rglob("*"))
        return names == ["canary", "canary/disk.img", "empty"] and self.canary.read_bytes() == CANARY


def exchange(one: Path, other: Path) -> None:
    """Let two names change places in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, bytes(one), -100, bytes(other), 2) != 0:
        raise OSError(ctypes.get_errno(), "the names cannot be exchanged")


@contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """Another process lets two names change places as fast as it can."""
    exchange(one, other)
    exchange(one, other)
    argv = [sys.executable, "-c", _EXCHANGE, str(one), str(other)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        try:
            yield
            assert process.poll() is None, "nobody exchanged the names any more"
        finally:
            process.kill()


def ignore(*_: int) -> None:
    """Nobody listens."""
