"""What this machine can do, proven by doing it: nothing is concluded from a file's presence alone."""

import datetime as dt
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus import __version__
from h2kbus.errors import SettingsError
from subjects.fleet import WorkerCapabilities
from workers.capabilities import host
from workers.capabilities.kvm import probe_kvm
from workers.capabilities.probe import Finding, Probe, Tools, refuted
from workers.capabilities.tools import probe_lvm, probe_mount, probe_nbd, probe_qemu_img, probe_selinux_tools

__all__ = ["PROBES", "Finding", "Tools", "detect", "level_of", "probe_all"]

PROBE_SECONDS: Final = 10.0

PROBES: Final[Mapping[str, Probe]] = {
    "qemu-img": probe_qemu_img,
    "nbd": probe_nbd,
    "lvm": probe_lvm,
    "mount": probe_mount,
    "selinux-tools": probe_selinux_tools,
    "kvm": probe_kvm,
}
"""Each capability token and how it is proven."""

_LEVELS: Final = ((3, frozenset({"nbd", "mount"})), (2, frozenset({"nbd"})))


async def probe_all(
    overrides: Mapping[str, bool] | None = None, *, tools: Tools | None = None, seconds: float = PROBE_SECONDS
) -> list[Finding]:
    """Run every probe, all at once, each with a deadline of `seconds`.

    An override of False switches a capability off. Raises SettingsError for an unknown token, and for
    one that is insisted on and cannot be proven: a worker never advertises what it cannot do.
    """
    wanted = dict(overrides or {})
    unknown = wanted.keys() - PROBES.keys()
    if unknown:
        raise SettingsError(f"unknown capability {min(unknown)!r}; known: {', '.join(PROBES)}")
    findings: dict[str, Finding] = {}

    async def run(token: str, probe: Probe) -> None:
        findings[token] = await _bounded(token, probe, tools or Tools(), seconds)

    async with anyio.create_task_group() as group:
        for token, probe in PROBES.items():
            group.start_soon(run, token, probe)
    return [_overridden(findings[token], wanted=wanted.get(token)) for token in PROBES]


async def detect(
    *,
    worker_id: str,
    pool: str,
    slots: int,
    work_dir: Path,
    plugin_tokens: frozenset[str] = frozenset(),
    overrides: Mapping[str, bool] | None = None,
) -> WorkerCapabilities:
    """The profile that a worker of this machine advertises; `work_dir` tells which disk is measured."""
    findings = await probe_all(overrides)
    proven = frozenset(each.token for each in findings if each.proven)
    disk = host.free_disk_gb(work_dir)
    return WorkerCapabilities(
        worker_id=worker_id,
        hostname=socket.gethostname(),
        last_heartbeat=dt.datetime.now(dt.UTC),
        capabilities={each.token: each.proven for each in findings} | dict.fromkeys(plugin_tokens, True),
        evidence={each.token: each.evidence for each in findings} | dict.fromkeys(plugin_tokens, "installed"),
        pool=pool,
        version=__version__,
        execution_mode=host.execution_mode(),
        capability_level=level_of(proven),
        max_disk_size_tb=round(disk / 1000, 3),
        max_concurrent_jobs=slots,
        free_slots=slots,
        memory_gb=host.memory_gb(),
        disk_space_gb=disk,
        os_info=host.os_info(),
        kernel_version=platform.release(),
    )


def level_of(proven: frozenset[str]) -> int:
    """1 userspace only, 2 partition tables readable over NBD, 3 disks mounted and changed."""
    return next((level for level, tokens in _LEVELS if tokens <= proven), 1)


async def _bounded(token: str, probe: Probe, tools: Tools, seconds: float) -> Finding:
    try:
        with anyio.fail_after(seconds):
            finding = await probe(tools)
    except TimeoutError:
        return refuted(token, f"the probe did not end within {seconds:g} s", "look at the host's load")
    except OSError as error:
        return refuted(token, f"the probe failed: {error}", "look at the host")
    return finding


def _overridden(finding: Finding, *, wanted: bool | None) -> Finding:
    if wanted is False:
        return msgspec.structs.replace(finding, proven=False, evidence="switched off by the operator")
    if wanted and not finding.proven:
        raise SettingsError(f"this machine cannot do {finding.token}: {finding.evidence}")
    return finding
