"""Facts about this host: its system, its memory and disk, and how it is confined."""

import platform
from pathlib import Path
from typing import Final

import psutil

from subjects.fleet import ExecutionMode

GIGABYTE: Final = 1_000_000_000
_CAP_SYS_ADMIN: Final = 1 << 21
_CONTAINER_MARKS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CONTAINER_WORDS: Final = ("docker", "kubepods", "containerd", "libpod", "lxc")


def memory_gb() -> float:
    """Memory of the host in gigabytes (powers of ten)."""
    return float(round(psutil.virtual_memory().total / GIGABYTE, 1))


def free_disk_gb(directory: Path) -> float:
    """Room for an unprivileged writer on the directory's filesystem, in gigabytes (powers of ten)."""
    return float(round(psutil.disk_usage(str(directory)).free / GIGABYTE, 1))


def os_info() -> str:
    """The distribution, as it calls itself."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def execution_mode() -> ExecutionMode:
    """`host` outside of containers; inside, `privileged_container` with CAP_SYS_ADMIN."""
    if not _in_container():
        return "host"
    return "privileged_container" if _may_administer() else "safe_container"


def _in_container() -> bool:
    if any(mark.exists() for mark in _CONTAINER_MARKS):
        return True
    return any(word in _text("/proc/1/cgroup") for word in _CONTAINER_WORDS)


def _may_administer() -> bool:
    """Whether this process has CAP_SYS_ADMIN in effect (capabilities(7), bit 21)."""
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_SYS_ADMIN)
    return False


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
