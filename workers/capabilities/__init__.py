"""What this machine can do, proven by doing it: nothing is concluded from a file's presence alone."""

import datetime as dt
import platform
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from h2kbus import __version__
from h2kbus.errors import SettingsError
from subjects.fleet import CONFINED, WorkerCapabilities, WorkerSecurity
from workers.capabilities import host
from workers.capabilities.probe import Finding, Probe, Tools
from workers.capabilities.table import PROBES, probe_all

__all__ = ["PROBES", "Finding", "Probe", "Tools", "detect", "level_of", "probe_all"]

_DISK_SECONDS: Final = 10.0
_LEVELS: Final = ((3, frozenset({"guestfs"})), (3, frozenset({"nbd", "mount"})), (2, frozenset({"nbd"})))


async def detect(
    *,
    worker_id: str,
    pool: str,
    slots: int,
    work_dir: Path,
    plugin_tokens: frozenset[str] = frozenset(),
    overrides: Mapping[str, bool] | None = None,
    max_disk_size_tb: float = 0.0,
) -> WorkerCapabilities:
    """The profile that a worker on this machine advertises; `work_dir` is on the disk for its outputs.

    `max_disk_size_tb` is the largest disk that it takes, in terabytes; 0 for any.

    Raises SettingsError for overrides as `probe_all` does, and for a `work_dir` that cannot be measured.
    """
    findings = await probe_all(overrides)
    disk_gb = await _free_disk_gb(work_dir)
    return WorkerCapabilities(
        worker_id=worker_id,
        hostname=socket.gethostname(),
        last_heartbeat=dt.datetime.now(dt.UTC),
        capabilities={each.token: each.proven for each in findings} | dict.fromkeys(plugin_tokens, True),
        evidence={each.token: each.evidence for each in findings} | dict.fromkeys(plugin_tokens, "installed"),
        advice={each.token: each.advice for each in findings if each.advice},
        pool=pool,
        version=__version__,
        execution_mode=host.execution_mode(),
        capability_level=level_of(each.token for each in findings if each.proven),
        max_disk_size_tb=max_disk_size_tb,
        max_concurrent_jobs=slots,
        free_slots=slots,
        memory_gb=host.memory_gb(),
        disk_space_gb=disk_gb,
        os_info=host.os_info(),
        kernel_version=platform.release(),
        security=WorkerSecurity(
            confined=any(each.token == CONFINED and each.proven for each in findings),
            unprivileged=host.is_unprivileged(),
        ),
    )


def level_of(proven: Iterable[str]) -> int:
    """1 userspace only, 2 partition tables readable over NBD, 3 disks mounted and changed."""
    tokens = frozenset(proven)
    return next((level for level, needed in _LEVELS if needed <= tokens), 1)


async def _free_disk_gb(directory: Path) -> float:
    """Measured in a thread, which a network filesystem may hold for ever."""
    try:
        with anyio.fail_after(_DISK_SECONDS):
            return await anyio.to_thread.run_sync(host.free_disk_gb, directory, abandon_on_cancel=True)
    except TimeoutError:
        raise SettingsError(f"{directory}: its disk did not answer within {_DISK_SECONDS:g} s") from None
    except OSError as error:
        raise SettingsError(f"{directory}: the free space cannot be measured: {error.strerror}") from error
