"""Single keys from a terminal, without waiting for Enter; the terminal is left as it was found."""

import contextlib
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from typing import Final

import anyio

_NAMES: Final = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x1b": "escape",
}
_SEQUENCES: Final = tuple(sorted(_NAMES, key=len, reverse=True))
_CHUNK: Final = 1024


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """While the context lasts, the terminal gives each key at once and does not show it."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


async def keys() -> AsyncIterator[str]:
    """The keys that are pressed: a printable character, or a name such as `up`. Ends with the input."""
    descriptor = sys.stdin.fileno()
    while True:
        await anyio.wait_readable(descriptor)
        text = os.read(descriptor, _CHUNK).decode("utf-8", "ignore")
        if not text:
            return
        for key in split(text):
            yield key


def split(text: str) -> list[str]:
    """What was read at once, as keys; sequences that mean nothing here are left out."""
    found = []
    while text:
        sequence = next((each for each in _SEQUENCES if text.startswith(each)), text[0])
        if sequence == "\x1b" and text.startswith("\x1b["):
            # An unknown sequence ends with a letter or a tilde.
            end = next(
                (at for at, each in enumerate(text[2:], 2) if each.isalpha() or each == "~"), len(text)
            )
            text = text[end + 1 :]
            continue
        if sequence in _NAMES or sequence.isprintable():
            found.append(_NAMES.get(sequence, sequence))
        text = text[len(sequence) :]
    return found
