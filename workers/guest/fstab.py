"""A guest's fstab: which devices it names, and which names outlast a change of the hypervisor.

Nothing here does input or output.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from workers.guest.disks import Volume

_LINE: Final = re.compile(r"^(?P<lead>\s*)(?P<spec>[^\s#]\S*)(?P<gap>\s+)(?P<rest>\S.*)$")
_KERNEL_NAME: Final = re.compile(r"/dev/(?:[hsv]d|xvd|ubd)(?P<disk>[a-z]+)(?P<part>\d+)?")
_NUMBERED_NAME: Final = re.compile(r"/dev/(?:nvme\d+n|mmcblk|nbd|loop)(?P<disk>\d+)(?:p(?P<part>\d+))?")
_LINK_NAME: Final = re.compile(r"/dev/disk/by-(?:path|id)/(?P<disk>.+?)(?:-part(?P<part>\d+))?")
_FIRST_DISKS: Final = frozenset({"a", "0", "1"})
_TAGS: Final = {"UUID": "uuid", "LABEL": "label", "PARTUUID": "part_uuid", "PARTLABEL": "part_label"}
_BY: Final = {
    "/dev/disk/by-uuid/": "uuid",
    "/dev/disk/by-label/": "label",
    "/dev/disk/by-partuuid/": "part_uuid",
    "/dev/disk/by-partlabel/": "part_label",
}
_WITHOUT_DEVICE: Final = frozenset(
    {
        "none",
        "tmpfs",
        "proc",
        "sysfs",
        "devpts",
        "debugfs",
        "nfs",
        "nfs4",
        "cifs",
        "sshfs",
        "overlay",
        "efivarfs",
    }
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an fstab."""

    spec: str
    mount_point: str
    filesystem: str
    options: tuple[str, ...] = ()

    @property
    def optional(self) -> bool:
        """Whether the guest comes up without it."""
        return "nofail" in self.options or "noauto" in self.options

    @property
    def names_device(self) -> bool:
        return self.filesystem not in _WITHOUT_DEVICE and (
            self.spec.startswith("/dev/") or self.spec.partition("=")[0] in _TAGS
        )


def parse(text: str) -> list[Entry]:
    """The entries of an fstab; lines that are none are left out."""
    return [entry for line in text.splitlines() if (entry := _entry(line))]


def _entry(line: str) -> Entry | None:
    match = _LINE.match(line)
    if match is None:
        return None
    fields = [match["spec"].strip('"'), *match["rest"].split()]
    if len(fields) < 3:  # noqa: PLR2004 - fstab(5): the first three fields have no default
        return None
    options = tuple(fields[3].split(",")) if len(fields) > 3 else ()  # noqa: PLR2004 - fstab(5)
    return Entry(
        spec=fields[0].replace('"', ""),
        mount_point=fields[1].replace("\\040", " "),
        filesystem=fields[2],
        options=options,
    )


def is_fragile(spec: str) -> bool:
    """Whether a name comes from the way that the disk is attached, which is another one on KVM."""
    return any(pattern.fullmatch(spec) for pattern in (_KERNEL_NAME, _NUMBERED_NAME, _LINK_NAME))


def resolve(spec: str, volumes: Iterable[Volume]) -> Volume | None:
    """The volume that a name means, None if there is none such on this disk.

    A kernel's name of the first disk means the partition of that number.
    """
    known = list(volumes)
    tag, _, value = spec.partition("=")
    if tag in _TAGS:
        return _with(known, _TAGS[tag], value.strip('"'))
    for prefix, field in _BY.items():
        if spec.startswith(prefix):
            return _with(known, field, spec.removeprefix(prefix))
    for pattern in (_KERNEL_NAME, _NUMBERED_NAME, _LINK_NAME):
        if match := pattern.fullmatch(spec):
            return _numbered(known, match)
    return next((each for each in known if each.device in _mapper_names(spec)), None)


def _with(volumes: list[Volume], field: str, value: str) -> Volume | None:
    same = [each for each in volumes if (getattr(each, field) or "").lower() == value.lower()]
    exact = [each for each in same if getattr(each, field) == value]
    return next(iter(exact or (same if field.endswith("uuid") else [])), None)


def _numbered(volumes: list[Volume], match: re.Match[str]) -> Volume | None:
    by_link = match.re is _LINK_NAME
    if not match["part"] or not (by_link or match["disk"] in _FIRST_DISKS):
        return None
    return next((each for each in volumes if each.number == int(match["part"])), None)


def _mapper_names(spec: str) -> tuple[str, ...]:
    """`/dev/group/volume` is `/dev/mapper/group-volume`, with dashes inside the names doubled."""
    parts = spec.removeprefix("/dev/").split("/")
    if len(parts) != 2 or parts[0] == "mapper":  # noqa: PLR2004 - a group and a volume
        return (spec,)
    return spec, "/dev/mapper/" + "-".join(each.replace("-", "--") for each in parts)


def lasting_name(volume: Volume) -> str | None:
    """A name of the volume that does not depend on how the disk is attached."""
    if volume.kind == "lvm":
        return volume.device
    return f"UUID={volume.uuid}" if volume.uuid else None


def rewritten(text: str, change: Callable[[Entry], Entry]) -> str:
    """The same fstab with every entry that `change` changes written anew; all other lines as they were."""
    return "".join(_rewritten(line, change) for line in text.splitlines(keepends=True))


def _rewritten(line: str, change: Callable[[Entry], Entry]) -> str:
    entry = _entry(line)
    if entry is None or (after := change(entry)) == entry:
        return line
    match = _LINE.match(line.rstrip("\n"))
    assert match is not None  # noqa: S101 - the line has just been read by the same pattern
    rest = match["rest"]
    if after.options != entry.options:
        fields = rest.split()
        fields[2:3] = [",".join(after.options)]
        rest = " ".join(fields)
    end = "\n" if line.endswith("\n") else ""
    return f"{match['lead']}{after.spec}{match['gap']}{rest}{end}"
