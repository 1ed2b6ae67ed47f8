"""Files that only their owner can read, at no moment otherwise."""

import os
from pathlib import Path


def create(file: Path, content: bytes) -> None:
    """Write a new file, and the directories above it; never over another one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)


def replace(file: Path, content: bytes) -> None:
    """Write a file whole, in the place of an older one. Raises OSError."""
    draft = file.with_name(f".{file.name}.new")
    draft.unlink(missing_ok=True)
    create(draft, content)
    draft.rename(file)
