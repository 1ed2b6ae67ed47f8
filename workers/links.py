"""Open files by names in a scratch directory, for tools that cannot be handed all of them as descriptors.

A VMDK in several files names its extents, and libguestfs starts programs that inherit no descriptor. Both
get symbolic links that lead to descriptors, so that what was checked is what is read.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from workers.qemu import Disk

DIRECTORY: Final = "source"
"""In the scratch directory. `workers/guest/hold.py` knows this name too."""

HOLD: Final = Path(__file__).parent / "guest" / "hold.py"


def link_files(scratch: Path, descriptors: Mapping[str, int]) -> None:
    """Give names to open files. A tool that is handed the descriptors finds them there."""
    place = scratch / DIRECTORY
    place.mkdir(exist_ok=True)
    for name, descriptor in descriptors.items():
        if not (place / name).is_symlink():
            _point(place / name, descriptor)


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
        place = scratch / DIRECTORY
        for each in list(place.iterdir()) if place.is_dir() else ():
            _point(each, int(each.readlink().name))


def _point(link: Path, descriptor: int) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(f"/proc/self/fd/{descriptor}")
