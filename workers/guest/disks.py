"""What lies on a guest's disk: partitions, logical volumes and the filesystems in them."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.rescue import Rescue
from workers.tool_json import tool_json

MOUNTABLE: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})
LINUX_TYPES: Final = frozenset(
    {
        "0fc63daf-8483-4772-8e79-3d69d8477de4",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        "e6d6d379-f507-44c2-a23c-238f2a3df928",
        "0x83",
        "0x8e",
        "0xfd",
    }
)
"""Partition types that may hold a Linux filesystem or a physical volume, as blkid names them."""

LVM_TYPES: Final = frozenset({"e6d6d379-f507-44c2-a23c-238f2a3df928", "0x8e"})
EFI_TYPES: Final = frozenset({"c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef"})
BIOS_BOOT_TYPES: Final = frozenset({"21686148-6449-6e6f-744e-656564454649"})
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
ENCRYPTED: Final = frozenset({"crypto_LUKS", "BitLocker"})


class Volume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A block device of the guest. `kind` is disk, part, lvm or what lsblk calls it; sizes are in bytes.

    `filesystem` is what its content is by its own marks: a filesystem, swap, LVM2_member, crypto_LUKS.
    """

    device: str
    kind: str
    size: int
    filesystem: str | None = None
    uuid: str | None = None
    label: str | None = None
    number: int | None = None
    part_type: str | None = None
    part_uuid: str | None = None
    part_label: str | None = None

    @property
    def mountable(self) -> bool:
        return self.filesystem in MOUNTABLE


class _Listed(msgspec.Struct, frozen=True):
    """A device as lsblk lists it; older versions write its size as text."""

    name: str
    size: int | Annotated[str, Meta(pattern=r"^[0-9]{1,20}$")]
    kind: str = msgspec.field(name="type")
    children: "tuple[_Listed, ...]" = ()


class _Listing(msgspec.Struct, frozen=True):
    blockdevices: tuple[_Listed, ...]


class Disks(msgspec.Struct, frozen=True, kw_only=True):
    """All block devices of one disk. `scheme` is gpt, dos or None."""

    disk: Volume
    scheme: str | None
    volumes: tuple[Volume, ...]

    def by_device(self, device: str) -> Volume | None:
        return next((each for each in self.volumes if each.device == device), None)

    def of_type(self, types: frozenset[str]) -> tuple[Volume, ...]:
        return tuple(each for each in self.volumes if each.part_type in types)

    @property
    def encrypted(self) -> tuple[Volume, ...]:
        return tuple(each for each in self.volumes if each.filesystem in ENCRYPTED)

    @property
    def has_efi(self) -> bool:
        return bool(self.of_type(EFI_TYPES))

    @property
    def boots_by(self) -> str:
        """Bios or uefi: what the disk is made for. One with both is booted by the BIOS as before."""
        bios = self.scheme != "gpt" or bool(self.of_type(BIOS_BOOT_TYPES))
        return "uefi" if self.has_efi and not bios else "bios"


async def read_disks(rescue: Rescue) -> Disks:
    """Activate what volume groups there are, then list every device with what is on it."""
    await rescue.run("lvm", "vgchange", "--activate", "y", accept=None)
    await rescue.run("lvm", "vgmknodes", accept=None)
    columns = "NAME,TYPE,SIZE"
    said = await rescue.run("lsblk", "--json", "--bytes", "--paths", "--output", columns, rescue.device)
    tree = tool_json(_Listing, said.out.encode(), "lsblk").blockdevices
    found = [await _volume(rescue, each) for each in _flat(tree)]
    marks = await _marks(rescue, rescue.device)
    unique = {each.device: each for each in found}
    disk = unique.pop(rescue.device, None)
    if disk is None:
        raise OperationFailed(ErrorCode.TOOL_FAILED, f"lsblk does not list {rescue.device}", tool="lsblk")
    bare = (disk,) if disk.filesystem and not unique else ()
    return Disks(disk=disk, scheme=marks.get("PTTYPE"), volumes=(*bare, *unique.values()))


def _flat(tree: tuple[_Listed, ...]) -> Iterator[_Listed]:
    for each in tree:
        yield each
        yield from _flat(each.children)


async def _volume(rescue: Rescue, listed: _Listed) -> Volume:
    marks = await _marks(rescue, listed.name)
    number = marks.get("PART_ENTRY_NUMBER", "")
    return Volume(
        device=listed.name,
        kind=listed.kind,
        size=int(listed.size),
        filesystem=marks.get("TYPE"),
        uuid=marks.get("UUID"),
        label=marks.get("LABEL"),
        number=int(number) if _NUMBER.fullmatch(number) and listed.kind == "part" else None,
        part_type=marks.get("PART_ENTRY_TYPE"),
        part_uuid=marks.get("PART_ENTRY_UUID"),
        part_label=marks.get("PART_ENTRY_NAME"),
    )


async def _marks(rescue: Rescue, device: str) -> Mapping[str, str]:
    """What blkid reads off the device itself, not from any cache; nothing if it knows nothing."""
    said = await rescue.run("blkid", "--probe", "--output", "export", device, accept=None)
    pairs = (line.partition("=") for line in said.out.splitlines())
    return {key: _unescaped(value) for key, _, value in pairs}


def _unescaped(value: str) -> str:
    return value.replace("\\ ", " ").strip()
