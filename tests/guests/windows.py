"""A disk that looks like Windows to everything that looks: NTFS, a registry, a program of the right kind.

Nobody may hand on a real one. virt-v2v works on it as on a real one, except that nothing ever boots.
"""

import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.guests.build import MIB, UNACCELERATED, BuildFailed, run

_BLOCK: Final = 4096
_NONE: Final = 0xFFFFFFFF
_FREE_SECURITY: Final = bytes.fromhex("0100048000000000000000000000000000000000")
_SOFTWARE: Final = r"""Windows Registry Editor Version 5.00

[\Microsoft\Windows NT\CurrentVersion]
"ProductName"="Windows Phony"
"CurrentVersion"="6.1"
"CurrentBuildNumber"="7601"
"InstallationType"="Client"

[\Microsoft\Windows\CurrentVersion]
"DevicePath"="%SystemRoot%\\inf"

[\Microsoft\Windows\CurrentVersion\RunOnce]
"""
_SYSTEM: Final = r"""Windows Registry Editor Version 5.00

[\Select]
"Current"=dword:00000001
"Default"=dword:00000001
"Failed"=dword:00000000
"LastKnownGood"=dword:00000001

[\MountedDevices]

[\ControlSet001\Control\ComputerName\ComputerName]
"ComputerName"="PHONY"

[\ControlSet001\Control\CriticalDeviceDatabase]

[\ControlSet001\Control\Class]

[\ControlSet001\Control\Session Manager\Memory Management]

[\ControlSet001\Control\CrashControl]

[\ControlSet001\Services\Tcpip\Parameters]
"""
_DIRECTORIES: Final = (
    "/Windows/System32/config",
    "/Windows/System32/drivers",
    "/Windows/Temp",
    "/Windows/inf",
    "/Program Files",
    "/Users",
)


def windows(disk: Path, place: Path) -> Path:
    """Make the disk, working in `place`: one NTFS partition of an MBR disk. Raises BuildFailed."""
    place.mkdir(parents=True, exist_ok=True)
    registry = [_hive(place / name, text) for name, text in (("SOFTWARE", _SOFTWARE), ("SYSTEM", _SYSTEM))]
    program = place / "cmd.exe"
    program.write_bytes(_program())
    disk.touch()
    os.truncate(disk, 384 * MIB)
    script = [
        "run",
        "part-disk /dev/sda mbr",
        "part-set-mbr-id /dev/sda 1 0x07",
        "mkfs ntfs /dev/sda1",
        "mount /dev/sda1 /",
        *(f'mkdir-p "{each}"' for each in _DIRECTORIES),
        *(f"upload {each} /Windows/System32/config/{each.name}" for each in registry),
        f"upload {program} /Windows/System32/cmd.exe",
    ]
    _guestfish(disk, script)
    return disk


def virtio_drivers(place: Path) -> Path:
    """A directory of drivers as the vendor's package has it; no file of it is a real driver."""
    drivers = place / "amd64" / "Win7"
    drivers.mkdir(parents=True)
    for name in ("viostor", "vioscsi", "netkvm", "vioser", "balloon", "viorng"):
        for suffix in ("inf", "sys", "cat"):
            (drivers / f"{name}.{suffix}").write_text(f"{name} for tests\n")
    return place


def service_runner(place: Path) -> Path:
    """The directory in which virt-v2v looks for the program that runs its first-boot scripts."""
    place.mkdir(parents=True)
    (place / "rhsrvany.exe").write_bytes(_program())
    return place


def _guestfish(disk: Path, script: Sequence[str]) -> None:
    done = subprocess.run(
        ["guestfish", "--format=raw", "-a", disk], input="\n".join(script) + "\n", text=True,
        capture_output=True, check=False, timeout=300, env={**os.environ, **UNACCELERATED},
    )  # fmt: skip
    if done.returncode:
        raise BuildFailed(done.stderr)


def _hive(path: Path, text: str) -> Path:
    """A registry hive with these keys."""
    path.write_bytes(_empty_hive())
    keys = path.with_suffix(".reg")
    keys.write_text(_with_parents(text))
    run("hivexregedit", "--merge", path, keys)
    return path


def _with_parents(text: str) -> str:
    """The same keys, each after all that it is in, as the merging tool wants them."""
    made: dict[str, None] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("[\\"):
            parts = line.strip("[]\\").split("\\")
            parents = ["\\" + "\\".join(parts[:end]) for end in range(1, len(parts))]
            lines += [f"[{each}]\n" for each in parents if each not in made]
            made |= dict.fromkeys(parents)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _empty_hive() -> bytes:
    """A hive with a root key and its security descriptor, by the published format of the file."""
    root_at, name = 32, b"root"
    key = struct.pack(
        "<2sHQIIIIIIIIIIIIIIIHH", b"nk", 0x2C, 0, 0, _NONE, 0, 0, _NONE, _NONE, 0, _NONE,
        root_at + 96, _NONE, 0, 0, 0, 0, 0, len(name), 0,
    ) + name  # fmt: skip
    security_at = root_at + 96
    security = (
        struct.pack("<2sHIIII", b"sk", 0, security_at, security_at, 1, len(_FREE_SECURITY)) + _FREE_SECURITY
    )
    cells = _cell(key, 96) + _cell(security, 48)
    free_at = 32 + len(cells)
    rest = struct.pack("<i", _BLOCK - free_at).ljust(_BLOCK - free_at, b"\0")
    body = struct.pack("<4sIIIIQI", b"hbin", 0, _BLOCK, 0, 0, 0, 0) + cells + rest
    head = struct.pack("<4sIIQIIIIIII", b"regf", 1, 1, 0, 1, 3, 0, 1, root_at, _BLOCK, 1).ljust(508, b"\0")
    checksum = 0
    for (word,) in struct.iter_unpack("<I", head):
        checksum ^= word
    return (head + struct.pack("<I", checksum)).ljust(_BLOCK, b"\0") + body


def _cell(content: bytes, size: int) -> bytes:
    return (struct.pack("<i", -size) + content).ljust(size, b"\0")


def _program() -> bytes:
    """The beginning of a console program for x86-64."""
    optional = struct.pack("<H", 0x20B).ljust(240, b"\0")
    optional = optional[:68] + struct.pack("<H", 3) + optional[70:]
    header = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, len(optional), 0x22) + optional
    return (b"MZ".ljust(60, b"\0") + struct.pack("<I", 128)).ljust(128, b"\0") + header.ljust(1024, b"\0")
