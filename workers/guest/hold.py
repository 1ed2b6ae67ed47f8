"""Lets the links to open files lead to this process by its number, then becomes the program that is named.

It stands alone, because it runs under the system's Python. The program keeps the number and the
descriptors, and those that it starts reach them there, although they inherit none.
"""

import os
import sys

DIRECTORY = "source"


def main() -> None:
    """The arguments are the program and its own arguments."""
    own = os.readlink("/proc/self")
    for name in os.listdir(DIRECTORY) if os.path.isdir(DIRECTORY) else ():
        link = os.path.join(DIRECTORY, name)
        number = os.path.basename(os.readlink(link))
        os.symlink(f"/proc/{own}/fd/{number}", f"{link}.new")
        os.replace(f"{link}.new", link)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
