"""What of the host a tool sees: the command line of bubblewrap that shows it that and no more.

A tool gets mount, process, network, IPC and host name namespaces of its own, and a user namespace unless the
worker is root. It sees the system's programs read-only and can write to its scratch directory and to
nothing else. Why so: docs/decisions/0025.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.child import required_tool
from workers.limits import WORK, ToolLimits
from workers.scratch import MANIFEST

BWRAP: Final = "bwrap"
SCRATCH: Final = "/h2kbus-scratch"
"""Where a tool in a sandbox has its scratch directory, whatever the host calls it. It covers what a host has
by that name, so that no host has: /scratch is where many keep their images."""


_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
"""Programs and libraries. On most systems all but /usr and /opt are links into /usr."""

_LOADER: Final = ("ld.so.cache", "alternatives")
"""What any program needs below /etc."""

_CONFIGURATION: Final = (
    *("ld.so.conf", "ld.so.conf.d", "localtime"),
    *("passwd", "group", "nsswitch.conf", "os-release", "debian_version", "redhat-release"),
    *("libguestfs-tools.conf", "qemu", "lvm", "mke2fs.conf", "selinux"),
)
"""What some programs need there beside it: none of it is secret. Keys, shadow passwords and h2kbus's own
settings are not here."""

_TEMPORARY_BYTES: Final = 256 << 20
"""A tool's temporary directory is in memory; big files belong into the scratch directory (TMPDIR)."""

_LOOK: Final = (
    'test "$(stat -c %d:%i .)" = "$0" && exec "$@"; echo "its scratch directory was exchanged" >&2; exit 125'
)

_ROOT_KEEPS: Final = "dac_override"
"""A worker that is root converts images of any owner, and without this its tools could not open them. It
reaches only what the tool sees."""


_MADE_FOR_MOUNTS: Final = frozenset(
    {"/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd", "/proc/openprom", "/proc/xen"}
)
"""Directories that the kernel keeps empty: what is mounted there covers nothing. systemd does so at boot."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool may have beside the system's programs and its scratch directory.

    `readable` are files and directories that it can read at their own paths; `devices` are device nodes
    that it can use, if the host has them. Without `configured` it sees no configuration below /etc, which
    takes a quarter off the making of its sandbox. With `host` it runs outside of any sandbox and with the
    worker's privileges, as what attaches devices or mounts filesystems has to.
    """

    limits: ToolLimits = WORK
    readable: tuple[Path, ...] = ()
    devices: tuple[str, ...] = ()
    configured: bool = True
    host: bool = False


KVM: Final = ("/dev/kvm",)


ORDINARY: Final = Allowance()


def command_line(program: Sequence[str], allowance: Allowance, *, sandbox: Path | None) -> list[str]:
    """The whole command line of `program`, which begins with its path. The kernel kills it with the worker.

    It has to be started in the scratch directory, which is `sandbox` for a tool that is to be in one. Raises
    TOOL_MISSING, and TOOL_FAILED without such a directory.
    """
    if sandbox is not None:
        return [*_with_worker(), "--", *_in_sandbox(program, allowance, sandbox)]
    privileges = () if allowance.host else _without_privileges()
    limits = allowance.limits.prefix(own_processes=False)
    return [*_with_worker(), *privileges, "--", required_tool(limits[0]), *limits[1:], *program]


def mount_holder(path: Path) -> list[str]:
    """The command line of a sandbox with one file on a read-only mount, and a program that echoes.

    It is there for its mount: what runs in it reads nothing of the file, and is trusted. It is made in a
    third of the time of one for a tool. Raises TOOL_MISSING.
    """
    return [
        *(*_with_worker(), "--", required_tool(BWRAP)),
        *_user(own_user=os.geteuid() != 0),
        *("--unshare-pid", "--die-with-parent", "--new-session", "--as-pid-1"),
        *_programs(),
        *("--ro-bind", str(path), str(path), "--remount-ro", "/", "--", required_tool("cat")),
    ]


def _with_worker() -> tuple[str, ...]:
    return (required_tool("setpriv"), "--pdeathsig", "KILL")


def _without_privileges() -> tuple[str, ...]:
    """Only root has any to give up."""
    root = os.geteuid() == 0
    return ("--no-new-privs", *((f"--bounding-set=-all,+{_ROOT_KEEPS}", "--inh-caps=-all") if root else ()))


def _in_sandbox(program: Sequence[str], allowance: Allowance, scratch: Path) -> list[str]:
    """The tool is the child of the first process of its namespace, which hands it SIGTERM.

    That one also hands on its status, and when it goes, all others are gone.
    """
    own_user = os.geteuid() != 0
    return [
        required_tool(BWRAP),
        *_user(own_user=own_user),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--as-pid-1"),
        *_programs(),
        *_surroundings(configured=allowance.configured),
        *_places((*_program(program[0]), *allowance.readable), allowance.devices),
        *("--chdir", SCRATCH, "--"),
        *allowance.limits.prefix(own_processes=own_user),
        *_only_in(scratch),
        *("timeout", "0", *program),
    ]


def _only_in(scratch: Path) -> tuple[str, ...]:
    """Looks from inside whether it is the right directory: its maker finds it by its name, not as we do."""
    try:
        status = scratch.stat()
    except OSError as error:
        message = f"a tool cannot be started in {scratch}: {error.strerror}"
        raise OperationFailed(ErrorCode.TOOL_FAILED, message) from error
    return ("sh", "-c", _LOOK, f"{status.st_dev}:{status.st_ino}")


def _user(*, own_user: bool) -> tuple[str, ...]:
    return (
        ("--unshare-user",) if own_user else ("--cap-drop", "ALL", "--cap-add", f"CAP_{_ROOT_KEEPS.upper()}")
    )


def _programs() -> Iterator[str]:
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), name)
        elif path.is_dir():
            yield from ("--ro-bind", name, name)
    for name in _LOADER:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")


def _surroundings(*, configured: bool) -> Iterator[str]:
    for name in _CONFIGURATION if configured else ():
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    yield from ("--proc", "/proc") if _may_mount_proc() else ("--ro-bind", "/proc", "/proc")
    yield from ("--dev", "/dev", "--size", str(_TEMPORARY_BYTES), "--tmpfs", "/tmp")  # noqa: S108 - the tool's own
    yield from ("--symlink", "../tmp", "/var/tmp", "--dir", "/run")  # noqa: S108 - the tool's own


def _program(path: str) -> tuple[Path, ...]:
    """The tool itself, where it is not one of the system's."""
    return () if path.startswith(tuple(f"{each}/" for each in _SYSTEM)) else (Path(path),)


def _places(readable: Iterable[Path], devices: Iterable[str]) -> Iterator[str]:
    """The sandbox is made in the scratch directory. At last nothing new can be made anywhere else."""
    for path in dict.fromkeys(readable):
        yield from ("--ro-bind", str(path), str(path))
    for device in devices:
        yield from ("--dev-bind-try", device, device)
    yield from ("--bind", ".", SCRATCH, "--ro-bind", os.devnull, f"{SCRATCH}/{MANIFEST}")
    yield from ("--remount-ro", "/dev", "--remount-ro", "/")


def _may_mount_proc() -> bool:
    """Whether a user namespace may have a /proc of its own.

    The kernel refuses one that would show what is covered in ours, as container engines and systemd's
    ProtectKernelTunables= cover some of it. Such a host's /proc is shown read-only instead.
    """
    if os.geteuid() == 0:
        return True
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = {line.split()[4] for line in lines} - _MADE_FOR_MOUNTS
    return not any(each.startswith("/proc/") for each in mounts)
