"""Small disks with what guests bring along at their worst, made without mounting anything."""

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.guests.build import MIB

FIRST_AT: Final = MIB
LINUX: Final = "linux"
_BLOCK: Final = 4096


def tree(place: Path, files: Mapping[str, str]) -> Path:
    """A directory with these files."""
    for name, text in files.items():
        path = place / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def filesystem(at: Path, files: Mapping[str, str], *, mib: int = 48) -> Path:
    """An ext4 with these files in it."""
    at.touch()
    os.truncate(at, mib * MIB)
    source = tree(at.with_suffix(".tree"), files)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", str(_BLOCK), "-d", source, at], check=True, timeout=60)
    return at


def disk(at: Path, *volumes: Path) -> Path:
    """A GPT disk with these volumes as its partitions."""
    sizes = [each.stat().st_size // MIB for each in volumes]
    at.touch()
    os.truncate(at, (sum(sizes) + 2) * MIB)
    lines = ["label: gpt", *(f"size={size}MiB, type={LINUX}" for size in sizes)]
    subprocess.run(["sfdisk", "-q", at], input="\n".join(lines) + "\n", text=True, check=True, timeout=60)
    offset = FIRST_AT
    with at.open("r+b") as whole:
        for each in volumes:
            whole.seek(offset)
            whole.write(each.read_bytes())
            offset += each.stat().st_size
    return at


def system(name: str, **files: str) -> dict[str, str]:
    """What makes a tree an operating system, as far as anybody can see who only looks at it."""
    return {
        "/etc/os-release": f'ID={name.lower()}\nNAME="{name}"\nPRETTY_NAME="{name} 1"\nVERSION_ID="1"\n',
        "/etc/fstab": "",
        "/usr/bin/sh": "",
        **files,
    }


def encrypted(at: Path, *, mib: int = 16) -> Path:
    """A volume whose header says LUKS, version 1."""
    at.touch()
    os.truncate(at, mib * MIB)
    header = struct.pack(
        ">6sH32s32s32sII20s32sI40s",
        b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64, b"", b"", 1000,
        b"5d5e94ea-7d09-4a0a-9f0c-8a4d1e0c7f0a",
    )  # fmt: skip
    with at.open("r+b") as file:
        file.write(header)
    return at
