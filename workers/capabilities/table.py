"""Every capability token and how it is proven, and the running of all the probes."""

from collections.abc import Mapping
from typing import Final

import anyio

from h2kbus.errors import SettingsError
from subjects.fleet import CONFINED
from workers.capabilities.confined import probe_confined
from workers.capabilities.guestfs import probe_guestfs
from workers.capabilities.kvm import probe_kvm
from workers.capabilities.nbd import probe_nbd
from workers.capabilities.probe import Finding, Probe, Tools, refuted
from workers.capabilities.qemu_system import probe_qemu_system
from workers.capabilities.tools import probe_lvm, probe_mount, probe_qemu_img, probe_selinux_tools
from workers.capabilities.virtio_win import probe_virtio_win

PROBE_SECONDS: Final = 10.0


PROBES: Final[Mapping[str, Probe]] = {
    "qemu-img": probe_qemu_img,
    CONFINED: probe_confined,
    "nbd": probe_nbd,
    "lvm": probe_lvm,
    "mount": probe_mount,
    "selinux-tools": probe_selinux_tools,
    "kvm": probe_kvm,
    "guestfs": probe_guestfs,
    "qemu-system": probe_qemu_system,
    "virtio-win": probe_virtio_win,
}

SWITCHED_OFF: Final = "switched off by the operator"


async def probe_all(
    overrides: Mapping[str, bool] | None = None,
    *,
    tools: Tools | None = None,
    seconds: float = PROBE_SECONDS,
    probes: Mapping[str, Probe] = PROBES,
) -> list[Finding]:
    """Run every probe, all at once, each with a deadline of `seconds`; findings come in the table's order.

    An override of False switches a capability off, and its probe is not run. Raises SettingsError for
    an unknown token, and for one that is insisted on and not proven: a worker never advertises what it
    cannot do.
    """
    switches = dict(overrides or {})
    _check_known(switches, probes)
    findings = {token: refuted(token, SWITCHED_OFF) for token in probes}

    async def run(token: str) -> None:
        findings[token] = await _bounded(token, probes[token], tools or Tools(), seconds)

    async with anyio.create_task_group() as group:
        for token in probes:
            if switches.get(token, True):
                group.start_soon(run, token)
    _check_insisted(switches, findings)
    return list(findings.values())


def _check_known(switches: Mapping[str, bool], probes: Mapping[str, Probe]) -> None:
    unknown = sorted(switches.keys() - probes.keys())
    if unknown:
        raise SettingsError(f"{unknown[0]!r} is not a known capability; known: {', '.join(probes)}")


def _check_insisted(switches: Mapping[str, bool], findings: Mapping[str, Finding]) -> None:
    for token, wanted in switches.items():
        if wanted and not findings[token].proven:
            raise SettingsError(f"this machine was not seen to do {token!r}: {findings[token].evidence}")


async def _bounded(token: str, probe: Probe, tools: Tools, seconds: float) -> Finding:
    try:
        with anyio.fail_after(seconds):
            return await probe(tools)
    except TimeoutError:
        return refuted(token, f"the probe did not end within {seconds:g} s")
    except Exception as error:  # noqa: BLE001 - a broken probe proves nothing, and must not stop the worker
        return refuted(token, f"the probe failed: {type(error).__name__}: {error}")
