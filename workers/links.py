"""Open files by names in a scratch directory, for tools that cannot be handed all of them as descriptors.

A VMDK in several files names its extents, and libguestfs starts programs that inherit no descriptor. Both
get symbolic links that lead to descriptors, so that what was checked is what is read.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Final

import msgspec

from workers.qemu import Disk
from workers.scratch import folder, names_in

DIRECTORY: Final = "source"
"""In the scratch directory. `workers/guest/hold.py` knows this name too."""

HOLD: Final = Path(__file__).parent / "guest" / "hold.py"


def link_files(scratch: Path, descriptors: Mapping[str, int]) -> None:
    """Give names to open files. A tool that is handed the descriptors finds them there.

    Raises TOOL_FAILED if a tool has put something else in the place of the directory.
    """
    with contextlib.suppress(FileExistsError):
        (scratch / DIRECTORY).mkdir()
    with folder(scratch / DIRECTORY) as place:
        for name, descriptor in descriptors.items():
            if _target(place, name) is None:
                _point(place, name, descriptor)


def linked(scratch: Path, disk: Disk) -> Disk:
    """The same disk by names in the scratch directory, and everything that it builds on."""
    backing = linked(scratch, disk.backing) if disk.backing else None
    if disk.descriptor is None:
        return msgspec.structs.replace(disk, backing=backing)
    link_files(scratch, {str(disk.descriptor): disk.descriptor})
    return msgspec.structs.replace(
        disk,
        descriptor=None,
        inside=f"{DIRECTORY}/{disk.descriptor}",
        linked=(disk.descriptor,),
        backing=backing,
    )


@contextlib.contextmanager
def holding(scratch: Path, python: str) -> Iterator[list[str]]:
    """How a command line begins whose program holds descriptors for those that it starts.

    The links lead to that program meanwhile, and back to whoever inherits the descriptors afterwards.
    """
    try:
        yield [python, "-I", str(HOLD)]
    finally:
        with contextlib.suppress(FileNotFoundError), folder(scratch / DIRECTORY) as place:
            for name in names_in(place):
                number = PurePath(_target(place, name) or "").name
                if number.isdecimal():
                    _point(place, name, int(number))


def _target(place: int, name: str) -> str | None:
    """Where a link in the directory leads; None for what is none."""
    with contextlib.suppress(OSError):
        return os.readlink(name, dir_fd=place)
    return None


def _point(place: int, name: str, descriptor: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=place)
    os.symlink(f"/proc/self/fd/{descriptor}", name, dir_fd=place)
