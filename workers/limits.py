"""How much one tool may take of its host, enforced by the kernel: a table with a row for each kind of tool.

Whatever is not in the table runs with the row `WORK`. The limits hold for each process by itself, except
the number of processes, which is that of the whole tool.
"""

import resource
from typing import Final

import msgspec

MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40
HOUR: Final = 3600

_SHARED_PROCESSES: Final = 4096
"""Without a user namespace the kernel counts all processes of the worker's user, its own threads too."""


class ToolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Resource limits of one tool (setrlimit(2)); None leaves the worker's own limit.

    Sizes are in bytes, `cpu_seconds` are those of all its threads together. No tool dumps core: a core
    file holds what the tool had in memory.
    """

    address_space_bytes: int | None = None
    cpu_seconds: int | None = None
    file_size_bytes: int | None = None
    open_files: int | None = None
    processes: int | None = None

    def prefix(self, *, own_processes: bool) -> list[str]:
        """The words that set them before a command line.

        `own_processes` says that the tool has a user namespace, in which only its own processes count.
        """
        shared = None if self.processes is None else max(self.processes, _SHARED_PROCESSES)
        given = {
            "as": (resource.RLIMIT_AS, self.address_space_bytes),
            "cpu": (resource.RLIMIT_CPU, self.cpu_seconds),
            "fsize": (resource.RLIMIT_FSIZE, self.file_size_bytes),
            "nofile": (resource.RLIMIT_NOFILE, self.open_files),
            "nproc": (resource.RLIMIT_NPROC, self.processes if own_processes else shared),
        }
        options = [
            f"--{name}={_possible(kind, wanted)}"
            for name, (kind, wanted) in given.items()
            if wanted is not None
        ]
        return ["prlimit", "--core=0", *options, "--"]


def _possible(kind: int, wanted: int) -> int:
    """At most what the worker itself may have: raising that needs a privilege."""
    most = resource.getrlimit(kind)[1]
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)


METADATA: Final = ToolLimits(
    address_space_bytes=GIB, cpu_seconds=60, file_size_bytes=64 * MIB, open_files=2048, processes=128
)
"""Reading an image's metadata takes milliseconds and some 100 MiB of address space; a hostile image takes
all that it can get. It writes nothing but a small range or an empty layer. An image may have 512 extents
(`workers.formats.vmdk`), which qemu opens up to twice, and its pool has up to 64 threads."""

WORK: Final = ToolLimits(
    address_space_bytes=16 * GIB,
    cpu_seconds=72 * HOUR,
    file_size_bytes=80 * TIB,
    open_files=4096,
    processes=512,
)
"""Work on a whole disk. A VDI of the largest size has 2 GiB of block map, and each of qemu's 64 threads
reserves up to 128 MiB of addresses for its stack and its heap, in up to 8 GiB; twice that leaves room.
Compressing 4 TiB at 20 MB/s takes 61 h. A disk has at most 64 TiB (`workers.image`), and formats add
less than a quarter."""

APPLIANCE: Final = ToolLimits(
    address_space_bytes=16 * GIB,
    cpu_seconds=24 * HOUR,
    file_size_bytes=80 * TIB,
    open_files=4096,
    processes=512,
)
"""A libguestfs appliance, or virt-v2v with its own: an emulator with 1280 MiB of guest memory, 1 GiB of
translated code under TCG, and its threads. What one tool inside may take is two hours at most
(`workers.repairs.windows`), on several processors. Its layer may grow to the disk's size."""

PROBE: Final = ToolLimits(
    address_space_bytes=8 * GIB, cpu_seconds=60, file_size_bytes=64 * MIB, open_files=1024, processes=256
)
"""Programs that say their version, and an emulator without a guest: each ends within a second. An
emulator reserves 1 GiB for translated code before it runs any."""

UNPACKING: Final = ToolLimits(
    address_space_bytes=4 * GIB, cpu_seconds=120, file_size_bytes=GIB, open_files=64, processes=64
)
"""Decompressing an initramfs, of which no real one unpacks to more than 1 GiB. A zstd window is at most
2 GiB."""

_EMULATOR_BYTES: Final = 8 * GIB
"""What an emulator maps beside the guest's memory: 1 GiB of translated code, firmware, 64 threads."""

_GUEST_WRITES: Final = 24 * GIB
"""The boot test stops a guest that has written 16 GiB (`workers.boot.machine`) when it looks next."""


def machine(memory_mb: int, boot_seconds: int) -> ToolLimits:
    """Limits of a boot test's emulator: `memory_mb` MiB of guest memory, for `boot_seconds` seconds.

    Its two processors and the emulator's own threads can use four times as much processor time.
    """
    return ToolLimits(
        address_space_bytes=memory_mb * MIB + _EMULATOR_BYTES,
        cpu_seconds=4 * boot_seconds + 600,
        file_size_bytes=_GUEST_WRITES,
        open_files=1024,
        processes=256,
    )
