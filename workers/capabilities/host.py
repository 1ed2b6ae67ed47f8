"""Facts about this host: its system, its memory and disk, and how it is confined."""

import platform
import re
from pathlib import Path
from typing import Final

import psutil

from subjects.fleet import ExecutionMode

GIGABYTE: Final = 1_000_000_000
_CAP_SYS_ADMIN: Final = 1 << 21
_EFFECTIVE: Final = re.compile(r"^CapEff:\s([0-9a-f]{1,64})$", re.MULTILINE)
_ROOT: Final = Path("/")
_CONTAINER_MARKS: Final = (
    ".dockerenv",
    "run/.containerenv",
    "run/systemd/container",
    "run/secrets/kubernetes.io",
    "var/run/secrets/kubernetes.io",
)
_CONTAINER_WORDS: Final = ("docker", "kubepods", "containerd", "libpod", "lxc")


def memory_gb() -> float:
    """Memory of the host in gigabytes (powers of ten)."""
    return float(round(psutil.virtual_memory().total / GIGABYTE, 1))


def free_disk_gb(directory: Path) -> float:
    """Room for an unprivileged writer on the directory's filesystem, in gigabytes (powers of ten).

    Raises OSError if the directory cannot be looked at.
    """
    return float(round(psutil.disk_usage(str(directory)).free / GIGABYTE, 1))


def os_info() -> str:
    """The distribution, as it calls itself."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def execution_mode(root: Path = _ROOT) -> ExecutionMode:
    """`host` outside of containers; inside, `privileged_container` if it may administer the host's kernel."""
    if not _in_container(root):
        return "host"
    return "privileged_container" if _may_administer(root) else "safe_container"


def is_unprivileged(root: Path = _ROOT) -> bool:
    """Whether this process is neither root nor has a capability (capabilities(7))."""
    lines = _text(root / "proc/self/status").splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    users = set(fields.get("Uid", "0").split())
    return "0" not in users and int(fields.get("CapEff", "1"), 16) == 0


def _in_container(root: Path) -> bool:
    """Whether a container engine left its mark: a file, or its name among the groups of process 1."""
    if any((root / mark).exists() for mark in _CONTAINER_MARKS):
        return True
    groups = _text(root / "proc/1/cgroup")
    return any(word in groups for word in _CONTAINER_WORDS)


def _may_administer(root: Path) -> bool:
    """CAP_SYS_ADMIN (capabilities(7), bit 21) over the whole machine, not just over a user namespace.

    The user namespace of the machine itself maps every id to the same id (user_namespaces(7)).
    """
    whole = _text(root / "proc/self/uid_map").split() == ["0", "0", str(2**32 - 1)]
    effective = _EFFECTIVE.search(_text(root / "proc/self/status"))
    return whole and effective is not None and bool(int(effective[1], 16) & _CAP_SYS_ADMIN)


def _text(path: Path) -> str:
    """The file's text; a file that this process may not read is no evidence, as one that is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
