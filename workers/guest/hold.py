"""Lets the links to open files lead to this process by its number, then becomes the program that is named.

It stands alone, because it runs under the system's Python. The program keeps the number and the
descriptors, and those that it starts reach them there, although they inherit none.
"""

import os
import sys
from pathlib import Path

PLACE = Path("source")


def main() -> None:
    """The arguments are the program and its own arguments."""
    # As /proc counts processes here, which is not how a namespace of its own counts them.
    own = Path("/proc/self").readlink()
    for link in list(PLACE.iterdir()) if PLACE.is_dir() else ():
        number = link.readlink().name
        link.unlink()
        link.symlink_to(f"/proc/{own}/fd/{number}")
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - becoming a program needs no shell


if __name__ == "__main__":
    main()
