"""Each capability is proven by doing it; a machine that cannot do it is told what was missing."""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from h2kbus.errors import SettingsError
from workers.capabilities import PROBES, Finding, Probe, Tools, probe_all
from workers.capabilities.guestfs import appliance_parts
from workers.capabilities.nbd import open_free_device
from workers.child import tool_path

REPOSITORY = Path(__file__).parents[3]
NOTHING = Tools("")
HALT = """
import ctypes, fcntl, mmap, os, struct
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)
page = mmap.mmap(-1, 4096)
page[:1] = bytes([0xF4])
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
fcntl.ioctl(vm, 0x4020AE46, struct.pack("=IIQQQ", 0, 0, 0x1000, 4096, address))
cpu = fcntl.ioctl(vm, 0xAE41, 0)
shared = mmap.mmap(cpu, fcntl.ioctl(kvm, 0xAE04))
special = bytearray(312)
fcntl.ioctl(cpu, 0x8138AE83, special)
struct.pack_into("=QIH", special, 0, 0, 0xFFFF, 0)
fcntl.ioctl(cpu, 0x4138AE84, bytes(special))
fcntl.ioctl(cpu, 0x4090AE82, struct.pack("=18Q", *[0] * 16, 0x1000, 2))
fcntl.ioctl(cpu, 0xAE80, 0)
assert struct.unpack_from("=I", shared, 8) == (5,)
"""
"""The simplest guest, in 16-bit mode: one halt. It shares no code with the probe."""


def script(directory: Path, name: str, *lines: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("\n".join(("#!/bin/sh", *lines, "")))
    (directory / name).chmod(0o755)


def with_first(directory: Path) -> Tools:
    return Tools(f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin")


def processes_with(mark: str) -> list[str]:
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if mark in words:
            found.append(words)
    return found


async def gone(mark: str) -> bool:
    """Orphans that were killed are reaped by process 1, a moment after their group's leader."""
    with anyio.move_on_after(5):
        while processes_with(mark):
            await anyio.sleep(0.01)
    return not processes_with(mark)


def runs(*argv: str) -> bool:
    return subprocess.run(argv, check=False, capture_output=True, timeout=20, cwd=REPOSITORY).returncode == 0


async def found(token: str, tools: Tools | None = None, seconds: float = 10.0) -> Finding:
    [finding] = await probe_all(tools=tools, seconds=seconds, probes={token: PROBES[token]})
    return finding


async def test_every_capability_has_one_finding_with_evidence() -> None:
    findings = await probe_all()
    assert [each.token for each in findings] == list(PROBES)
    assert all(each.evidence for each in findings)


async def test_a_proven_capability_needs_no_advice() -> None:
    assert [each for each in await probe_all() if each.proven and each.advice] == []


async def test_qemu_img_is_proven_where_it_runs() -> None:
    finding = await found("qemu-img")
    path = tool_path("qemu-img")
    assert finding.proven == (path is not None and runs(path, "--version"))


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        ("qemu-img", "apt-get install qemu-utils"),
        ("confined", "apt-get install bubblewrap"),
        ("nbd", "apt-get install qemu-utils"),
        ("lvm", "apt-get install lvm2"),
        ("mount", "apt-get install mount util-linux"),
        ("selinux-tools", "apt-get install policycoreutils"),
        ("guestfs", "apt-get install libguestfs-tools python3-guestfs"),
        ("qemu-system", "apt-get install qemu-system-x86 ovmf"),
        (
            "virtio-win",
            "apt-get install virt-v2v nbdkit, and put virtio-win and rhsrvany.exe where virt-v2v(1) says",
        ),
    ],
)
async def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    token: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    finding = await found(token, NOTHING)
    assert (finding.proven, finding.advice) == (False, advice)
    assert "is not installed" in finding.evidence


async def test_confinement_is_proven_by_namespaces_that_are_not_ours() -> None:
    finding = await found("confined")
    assert finding.proven, f"{finding.evidence}; {finding.advice}"
    assert "namespaces of its own" in finding.evidence


async def test_sandbox_that_cannot_be_made_is_no_confinement(tmp_path: Path) -> None:
    script(tmp_path, "bwrap", "echo bwrap: No permissions to create new namespace >&2", "exit 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        finding = await found("confined")
    assert not finding.proven
    assert finding.advice


async def test_a_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    script(tmp_path, "qemu-img", "echo libfoo.so is broken >&2", "exit 3")
    finding = await found("qemu-img", with_first(tmp_path))
    assert not finding.proven
    assert "status 3: libfoo.so is broken" in finding.evidence


async def test_a_hanging_probe_is_not_proven_and_leaves_no_process_behind(tmp_path: Path) -> None:
    mark = f"9{secrets.randbelow(10**12):012}"
    script(tmp_path / mark, "qemu-img", f"sleep {mark} &", f"sleep {mark}")
    finding = await found("qemu-img", with_first(tmp_path / mark), seconds=0.5)
    assert (finding.proven, finding.evidence) == (False, "the probe did not end within 0.5 s")
    assert await gone(mark)


async def test_a_probe_that_raises_is_not_proven() -> None:
    async def broken(tools: Tools) -> Finding:
        raise RuntimeError("no such luck")

    [finding] = await probe_all(probes={"qemu-img": broken})
    assert finding == Finding(
        "qemu-img", proven=False, evidence="the probe failed: RuntimeError: no such luck"
    )


async def test_one_bad_probe_does_not_spoil_the_others(tmp_path: Path) -> None:
    async def broken(tools: Tools) -> Finding:
        raise RuntimeError("no such luck")

    script(tmp_path, "qemu-img", "echo qemu-img version 9")
    probes: dict[str, Probe] = {"kvm": broken, "qemu-img": PROBES["qemu-img"]}
    findings = await probe_all(tools=with_first(tmp_path), probes=probes)
    assert findings[1] == Finding("qemu-img", proven=True, evidence="qemu-img version 9")


async def test_a_mount_is_proven_where_one_succeeds(tmp_path: Path) -> None:
    finding = await found("mount")
    possible = all(map(shutil.which, ("unshare", "mount")))
    assert finding.proven == (
        possible and runs("unshare", "-m", "mount", "-t", "tmpfs", "check", str(tmp_path))
    )


async def test_probing_mounts_leaves_no_mount_behind() -> None:
    await found("mount")
    assert "h2kbus-probe" not in Path("/proc/self/mountinfo").read_text()


async def test_lvm_evidence_says_whether_a_device_mapper_answered(tmp_path: Path) -> None:
    script(
        tmp_path, "lvm", "echo '  LVM version:     2.03.16(2)'", "echo /dev/mapper/control: open failed >&2"
    )
    finding = await found("lvm", with_first(tmp_path))
    words = "LVM version: 2.03.16(2); no device mapper answered: volumes cannot be activated"
    assert (finding.proven, finding.evidence) == (True, words)


async def test_selinux_tools_that_print_their_usage_are_proven(tmp_path: Path) -> None:
    script(tmp_path, "setfiles", "exit 255")
    script(tmp_path, "restorecon", "exit 0")
    script(tmp_path, "semodule", "exit 0")
    assert (await found("selinux-tools", Tools(str(tmp_path)))).proven


async def test_selinux_tools_that_cannot_start_are_not_proven(tmp_path: Path) -> None:
    script(tmp_path, "setfiles", "exit 255")
    script(tmp_path, "restorecon", "exit 0")
    script(tmp_path, "semodule", "echo error while loading shared libraries >&2", "exit 127")
    finding = await found("selinux-tools", Tools(str(tmp_path)))
    assert (finding.proven, "semodule failed with status 127" in finding.evidence) == (False, True)


@pytest.fixture
def nbd(tmp_path: Path) -> tuple[Path, Path]:
    """A directory of device nodes and one of block devices, with nbd0 held by process 7."""
    devices, blocks = tmp_path / "dev", tmp_path / "block"
    for each in (devices, blocks, blocks / "nbd0", blocks / "nbd0p1"):
        each.mkdir()
    (blocks / "nbd0/pid").write_text("7\n")
    return devices, blocks


async def test_nbd_is_not_proven_without_devices() -> None:
    finding = await found("nbd")
    assert not (finding.proven and not list(Path("/sys/block").glob("nbd*")))


def test_a_held_nbd_device_is_left_alone(nbd: tuple[Path, Path]) -> None:
    finding = open_free_device("qemu-nbd 7", *nbd)
    assert (finding.proven, finding.evidence) == (False, "qemu-nbd 7; all 1 devices are held by others")


def test_a_free_nbd_device_that_opens_is_proven(nbd: tuple[Path, Path]) -> None:
    devices, blocks = nbd
    (blocks / "nbd1").mkdir()
    (devices / "nbd1").touch()
    assert open_free_device("qemu-nbd 7", devices, blocks).proven


def test_a_free_nbd_device_that_does_not_open_is_named(nbd: tuple[Path, Path]) -> None:
    devices, blocks = nbd
    (blocks / "nbd1").mkdir()
    finding = open_free_device("qemu-nbd 7", devices, blocks)
    assert not finding.proven
    assert f"{devices / 'nbd1'} does not open: No such file or directory" in finding.evidence


def test_guestfs_is_not_proven_without_a_kernel_for_its_appliance(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/guestfs/supermin.d").mkdir(parents=True)
    finding = appliance_parts("guestfish 1.48", tmp_path)
    assert (finding.proven, finding.advice) == (False, "apt-get install linux-image-amd64")


def test_guestfs_evidence_says_that_the_appliance_was_not_started(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/guestfs/supermin.d").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1").touch()
    finding = appliance_parts("guestfish 1.48", tmp_path)
    assert finding.proven
    assert finding.evidence.endswith("the appliance was not started")


async def test_qemu_system_is_proven_where_a_machine_starts() -> None:
    finding = await found("qemu-system")
    assert finding.proven == (tool_path("qemu-system-x86_64") is not None)
    assert not finding.proven or "a paused machine started; no guest was booted" in finding.evidence


async def test_an_emulator_that_starts_no_machine_is_not_proven(tmp_path: Path) -> None:
    script(tmp_path, "qemu-system-x86_64", "echo 'invalid accelerator tcg' >&2", "exit 1")
    finding = await found("qemu-system", with_first(tmp_path))
    assert (finding.proven, "invalid accelerator tcg" in finding.evidence) == (False, True)


async def test_an_emulator_that_says_nothing_is_given_up_and_gone(tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    script(tmp_path, "qemu-system-x86_64", f"sleep 60.{int(mark, 16)}")
    finding = await found("qemu-system", with_first(tmp_path), seconds=0.3)
    assert (finding.proven, "did not end within" in finding.evidence) == (False, True)
    assert await gone(f"60.{int(mark, 16)}")


async def test_kvm_is_proven_where_a_guest_halts_unless_the_host_met_an_internal_error() -> None:
    """A host that emulates its processor halts the simplest guest, and gives up on vector registers."""
    finding = await found("kvm")
    halts = runs(sys.executable, "-c", HALT)
    assert finding.proven == (halts and "KVM internal error" not in finding.evidence)


async def test_kvm_is_not_proven_without_its_device() -> None:
    assert not (await found("kvm")).proven or os.access("/dev/kvm", os.R_OK | os.W_OK)


async def test_a_capability_switched_off_is_not_probed() -> None:
    async def probed(tools: Tools) -> Finding:
        raise AssertionError("it was probed")

    [finding] = await probe_all({"qemu-img": False}, probes={"qemu-img": probed})
    assert finding == Finding("qemu-img", proven=False, evidence="switched off by the operator")


async def test_insisting_on_what_is_not_proven_is_refused_with_the_evidence() -> None:
    with pytest.raises(SettingsError, match="'qemu-img': qemu-img is not installed"):
        await probe_all({"qemu-img": True}, tools=NOTHING)


async def test_insisting_on_what_is_proven_is_accepted(tmp_path: Path) -> None:
    script(tmp_path, "qemu-img", "echo qemu-img version 9")
    findings = await probe_all({"qemu-img": True}, tools=with_first(tmp_path))
    assert findings[0].proven


@pytest.mark.parametrize("wanted", [True, False])
async def test_an_unknown_capability_is_refused(wanted: bool) -> None:
    with pytest.raises(SettingsError, match="'teleport' is not a known capability; known: qemu-img"):
        await probe_all({"teleport": wanted})
