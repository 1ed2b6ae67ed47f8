"""The facts about a guest, as `inspect` reports them. Sizes are in bytes."""

import msgspec

from workers.guest.disks import Volume
from workers.guest.kernels import Kernel


class VolumeFacts(Volume, frozen=True, kw_only=True, omit_defaults=True):
    """A partition, a logical volume or a bare disk; `used` and `free` where it was mounted."""

    mounted_on: str | None = None
    used: int | None = None
    free: int | None = None


class GroupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A volume group; `missing` counts the disks of it that are not here."""

    name: str
    size: int
    free: int
    volumes: tuple[str, ...]
    missing: int


class MountFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of fstab that names a device: `device` is what it means on this disk.

    A `lasting` name stays true on another hypervisor; without an `optional` device the guest comes up.
    """

    spec: str
    mount_point: str
    filesystem: str
    device: str | None = None
    lasting: bool = True
    optional: bool = False


class LoaderFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the guest boots: its firmware, GRUB's configuration, and what is wrong with them, in words."""

    firmware: str
    config: str | None = None
    loader_fault: str | None = None
    config_faults: tuple[str, ...] = ()


class NetworkFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """By what names the network cards are configured, and where."""

    configured_by: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    tied_to_mac: bool = False
    persistent_rules: bool = False


class SelinuxFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The guest's SELinux; `labelled` by the look of one file, None if that could not be read."""

    mode: str
    policy: str | None = None
    labelled: bool | None = None


class SystemFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One Linux system. `problems` say what of it could not be mounted or read."""

    id: str
    name: str
    root: str
    loader: LoaderFacts
    version: str | None = None
    family: str = "unknown"
    architecture: str | None = None
    hostname: str | None = None
    kernels: tuple[Kernel, ...] = ()
    mounts: tuple[MountFacts, ...] = ()
    network: NetworkFacts = NetworkFacts()
    selinux: SelinuxFacts | None = None
    agents: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class WindowsFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One Windows system, by its registry."""

    root: str
    name: str
    version: str
    architecture: str


class GuestFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything on one disk. `damaged` are filesystems that do not mount, with the words why."""

    scheme: str | None
    volumes: tuple[VolumeFacts, ...] = ()
    groups: tuple[GroupFacts, ...] = ()
    systems: tuple[SystemFacts, ...] = ()
    windows: tuple[WindowsFacts, ...] = ()
    encrypted: tuple[str, ...] = ()
    damaged: dict[str, str] = {}
