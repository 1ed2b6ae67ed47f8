"""The profile that a worker advertises, and the facts of the host in it."""

import datetime as dt
import platform
from pathlib import Path

import psutil
import pytest

from h2kbus import __version__
from h2kbus.errors import SettingsError
from subjects.fleet import WorkerCapabilities
from workers.capabilities import PROBES, detect, host, level_of

ADMINISTRATOR = "CapEff:\t000001ffffffffff\n"
ORDINARY = "CapEff:\t00000000a80425fb\n"
WHOLE = "         0          0 4294967295\n"
ROOTLESS = "         0       1000          1\n"


async def profile(work_dir: Path, max_disk_size_tb: float = 0.0, **more: bool) -> WorkerCapabilities:
    return await detect(
        worker_id="w1",
        pool="default",
        slots=3,
        work_dir=work_dir,
        plugin_tokens=frozenset({"op-demo"}),
        overrides=more,
        max_disk_size_tb=max_disk_size_tb,
    )


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


async def test_a_profile_has_evidence_for_each_capability(tmp_path: Path) -> None:
    found = await profile(tmp_path)
    assert found.capabilities.keys() == found.evidence.keys() == {*PROBES, "op-demo"}


async def test_an_installed_plug_in_is_a_capability(tmp_path: Path) -> None:
    found = await profile(tmp_path)
    assert (found.capabilities["op-demo"], found.evidence["op-demo"]) == (True, "installed")


async def test_a_capability_switched_off_is_not_advertised(tmp_path: Path) -> None:
    found = await profile(tmp_path, mount=False)
    assert (found.capabilities["mount"], found.evidence["mount"]) == (False, "switched off by the operator")


async def test_a_profile_tells_who_and_how_many(tmp_path: Path) -> None:
    found = await profile(tmp_path)
    told = (found.worker_id, found.pool, found.max_concurrent_jobs, found.free_slots, found.version)
    assert told == ("w1", "default", 3, 3, __version__)


async def test_a_profile_tells_the_system(tmp_path: Path) -> None:
    found = await profile(tmp_path)
    assert (found.hostname, found.kernel_version) == (platform.node(), platform.release())
    assert found.os_info


async def test_a_heartbeat_is_in_utc(tmp_path: Path) -> None:
    assert (await profile(tmp_path)).last_heartbeat.utcoffset() == dt.timedelta(0)


async def test_any_disk_is_taken_unless_the_operator_says_how_large_one_may_be(tmp_path: Path) -> None:
    assert (await profile(tmp_path)).max_disk_size_tb == 0
    assert (await profile(tmp_path, max_disk_size_tb=2.5)).max_disk_size_tb == 2.5


def test_memory_is_in_powers_of_ten() -> None:
    assert host.memory_gb() == round(psutil.virtual_memory().total / 10**9, 1)


async def test_a_work_directory_that_is_missing_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the free space cannot be measured: No such file or directory"):
        await profile(tmp_path / "missing")


@pytest.mark.parametrize(
    ("proven", "level"),
    [
        ([], 1),
        (["qemu-img", "mount"], 1),
        (["qemu-img", "nbd"], 2),
        (["qemu-img", "nbd", "mount"], 3),
    ],
)
def test_levels_follow_from_what_is_proven(proven: list[str], level: int) -> None:
    assert level_of(proven) == level


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        ({"proc/self/status": ADMINISTRATOR, "proc/self/uid_map": WHOLE}, "host"),
        ({".dockerenv": "", "proc/self/status": ORDINARY, "proc/self/uid_map": WHOLE}, "safe_container"),
        (
            {".dockerenv": "", "proc/self/status": ADMINISTRATOR, "proc/self/uid_map": WHOLE},
            "privileged_container",
        ),
        (
            {"run/.containerenv": "", "proc/self/status": ADMINISTRATOR, "proc/self/uid_map": ROOTLESS},
            "safe_container",
        ),
        ({"proc/1/cgroup": "1:cpu:/kubepods/burstable/pod1\n"}, "safe_container"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, "host"),
    ],
    ids=["host", "container", "privileged", "rootless", "cgroup", "no mark"],
)
def test_the_execution_mode_follows_from_evidence(tmp_path: Path, files: dict[str, str], mode: str) -> None:
    assert host.execution_mode(machine(tmp_path, files)) == mode
