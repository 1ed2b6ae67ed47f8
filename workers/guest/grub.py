"""GRUB as it lies on a disk: its boot code, its core image, its configuration. No input or output."""

import re
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

SECTOR: Final = 512
CORE_BYTES: Final = 32 * 1024
"""How much of the core image is held against the guest's copy of it."""

CONFIGS: Final = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
CORES: Final = ("/boot/grub/i386-pc/core.img", "/boot/grub2/i386-pc/core.img")
DEFAULTS: Final = "/etc/default/grub"
ENTRIES: Final = "/boot/loader/entries"

_BOOT_CODE: Final = 440
_CORE_AT: Final = 0x5C
_SETTLED_AT: Final = 4 * SECTOR
"""grub-bios-setup writes places of the disk into the first sectors while it installs them."""

_LINUX: Final = re.compile(r"^[ \t]*linux(?:16|efi)?[ \t]+(?P<image>\S+)(?P<arguments>[^\n]*)$", re.MULTILINE)
_SEARCH: Final = re.compile(r"^[ \t]*search\b(?P<words>[^\n]*)$", re.MULTILINE)
_UUID: Final = re.compile(r"[0-9A-Fa-f-]{8,}")
_ROOT: Final = re.compile(r"(?<![\w.-])root=(?P<name>[^\s\"']+)")


class BootSector(msgspec.Struct, frozen=True):
    """What a disk's first sector boots: `loader` is grub, other or None; `core_at` is in bytes."""

    loader: str | None
    core_at: int = 0


class MenuEntry(msgspec.Struct, frozen=True):
    """A kernel that the configuration boots, and with what arguments."""

    image: str
    arguments: str

    @property
    def kernel(self) -> str:
        """The name of the kernel's file, whatever filesystem the path begins at."""
        return self.image.rpartition("/")[2]

    @property
    def root(self) -> str | None:
        match = _ROOT.search(self.arguments)
        return match["name"] if match else None


def read_sector(sector: bytes) -> BootSector:
    """Judge the first sector of a disk."""
    if not any(sector[:_BOOT_CODE]) or sector[510:512] != b"\x55\xaa":
        return BootSector(None)
    if b"GRUB" not in sector[:SECTOR]:
        return BootSector("other")
    (core,) = struct.unpack_from("<Q", sector, _CORE_AT)
    return BootSector("grub", core * SECTOR)


def same_core(on_disk: bytes, in_guest: bytes) -> bool:
    """Whether the core image on the disk is the one that the guest installed."""
    end = min(len(in_guest), CORE_BYTES)
    return end > _SETTLED_AT and on_disk[_SETTLED_AT:end] == in_guest[_SETTLED_AT:end]


def entries(config: str) -> list[MenuEntry]:
    """The kernels in a grub.cfg."""
    return [MenuEntry(each["image"], each["arguments"]) for each in _LINUX.finditer(config)]


def loader_entry(text: str) -> MenuEntry | None:
    """The kernel in a file of the Boot Loader Specification."""
    fields = dict(line.split(None, 1) for line in text.splitlines() if len(line.split(None, 1)) > 1)
    return MenuEntry(fields["linux"], fields.get("options", "")) if "linux" in fields else None


def searched(config: str) -> set[str]:
    """The UUIDs of the filesystems that a grub.cfg looks for."""
    found = (each["words"].split() for each in _SEARCH.finditer(config))
    return {words[-1] for words in found if "--fs-uuid" in words and _UUID.fullmatch(words[-1])}


def root_arguments(text: str) -> Iterator[str]:
    """What `root=` is, wherever it stands in a file that holds kernel arguments."""
    for line in text.splitlines():
        if not line.lstrip().startswith("#") and "set root=" not in line:
            yield from (each["name"] for each in _ROOT.finditer(line))


def with_root(text: str, wrong: set[str], name: str) -> str:
    """The text with every `root=` that names one of `wrong` naming `name` instead."""

    def line_with_root(line: str) -> str:
        if "set root=" in line:
            return line
        return _ROOT.sub(lambda found: f"root={name}" if found["name"] in wrong else found[0], line)

    return "".join(line_with_root(line) for line in text.splitlines(keepends=True))
