"""A hostile tool does not get out, and would without its sandbox: each way is tried for real, both ways."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.security import break_out
from workers.joblog import JobLog
from workers.process import ToolRunner

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

MIB: Final = 1 << 20
NOBODY: Final = 65534
DAC_OVERRIDE: Final = 1 << 1
SMALL: Final[Mapping[str, Any]] = {
    "address_space_bytes": 1024 * MIB,
    "cpu_seconds": 1,
    "file_size_bytes": 16 * MIB,
    "open_files": 64,
    "processes": 32,
}
ATTACKS: Final = (
    *("read_file", "write_elsewhere", "write_source", "connect", "connect_abstract", "read_environment"),
    *("kill_others", "see_others", "fork_bomb", "take_memory", "grow_file", "open_many", "burn", "gain"),
)
BINFMT: Final = "/proc/sys/fs/binfmt_misc"
Attempt = Callable[..., str]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that an unprivileged user can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="h2kbus-confinement-") as name:
        root = Path(name)
        root.chmod(0o755)
        for each in ("scratch", "elsewhere", "home"):
            (root / each).mkdir()
        (root / "source").write_text("the source")
        (root / "home" / "worker.creds").write_text(f"secret-{uuid.uuid4()}")
        shutil.copy(break_out.__file__, root / "break_out.py")
        for made in (root, *root.rglob("*")):
            os.chown(made, *_unprivileged())
        yield root


@pytest.fixture
def listening() -> Iterator[dict[str, Any]]:
    """What a tool could connect to: a port of the loopback, and a name without a directory."""
    abstract = f"h2kbus-{uuid.uuid4()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as other:
        other.bind("\0" + abstract)
        other.listen()
        yield {"port": server.getsockname()[1], "abstract": abstract}


@pytest.fixture
def victim() -> Iterator[str]:
    """A process of the same user, told from all others by how long it sleeps."""
    marked = f"300.{uuid.uuid4().int}"
    process = subprocess.Popen([*_as_unprivileged(), "sleep", marked])
    yield marked
    process.kill()
    process.wait()


@pytest.fixture
def setuid(place: Path) -> str:
    """A program that makes root of whoever runs it; none where the tests may not make one."""
    if os.geteuid() != 0:
        return ""
    target = place / "id"
    shutil.copy(shutil.which("id") or "", target)
    target.chmod(0o4755)
    return str(target)


@pytest.fixture
def attempt(place: Path, listening: dict[str, Any], victim: str, setuid: str) -> Attempt:
    """Tries an attack as an unprivileged worker's tool, and returns what came of it."""

    def run(attack: str, *, confined: bool, before: Sequence[str] = (), **more: str) -> str:
        canary = place / "home" / "worker.creds"
        known = {
            "canary": str(canary),
            "secret": canary.read_text(),
            "elsewhere": str(place / "elsewhere"),
            "victim": victim,
            "setuid": setuid,
            **listening,
            **more,
        }
        wanted = {
            "attack": attack,
            "known": known,
            "confined": confined,
            "limits": SMALL if confined else {},
            "source": str(place / "source"),
            "scratch": str(place / "scratch"),
            "program": str(place / "break_out.py"),
            "readable": [str(place / "break_out.py"), *([setuid] if setuid else [])],
        }
        return _worker(wanted, known["secret"], before)

    return run


def _worker(wanted: dict[str, Any], secret: str, before: Sequence[str]) -> str:
    """A worker of its own process, with a secret in its environment; `before` begins its command line."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
    argv = [*before, *_as_unprivileged(), sys.executable, "-m", "tests.security.attempt", json.dumps(wanted)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "H2KBUS_TOKEN": secret}
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, env=environment, timeout=100, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _as_unprivileged() -> list[str]:
    user, group = _unprivileged()
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"] if os.geteuid() == 0 else []


def _unprivileged() -> tuple[int, int]:
    return (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


@pytest.mark.parametrize("attack", ATTACKS)
def test_confined_tool_does_not_get_out(attempt: Attempt, attack: str) -> None:
    assert attempt(attack, confined=True).startswith("stopped: ")


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_one_that_gets_through_unconfined(attempt: Attempt, attack: str) -> None:
    assert attempt(attack, confined=False) == "through"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts what systemd mounts at boot")
def test_confined_tool_sees_no_other_process_where_systemd_has_mounted_binfmt_misc(attempt: Attempt) -> None:
    mounting = f'mount -t tmpfs none {BINFMT} && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", mounting, "sh"]
    assert attempt("see_others", confined=True, before=before).startswith("stopped: ")
    assert attempt("see_others", confined=False, before=before) == "through"


def test_confined_tool_reads_the_source_that_it_is_handed(attempt: Attempt) -> None:
    assert attempt("read_source", confined=True) == "through"


def test_victim_is_alive_after_a_confined_attack(attempt: Attempt, victim: str) -> None:
    attempt("kill_others", confined=True)
    assert _sleeping(victim)


@pytest.mark.parametrize("confined", [True, False])
def test_process_that_left_its_group_ends_with_a_confined_tool(attempt: Attempt, confined: bool) -> None:
    marked = f"77.{uuid.uuid4().int}"
    assert attempt("stay", confined=confined, marked=marked) == "through"
    left = _sleeping(marked, wait_gone=confined)
    for each in left:
        each.kill()
    assert bool(left) is not confined


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the shadow passwords in the first place")
@pytest.mark.parametrize(("confined", "status"), [(False, 0), (True, 1)])
async def test_tool_of_a_worker_that_is_root_does_not_see_the_shadow_passwords(
    tmp_path: Path, confined: bool, status: int
) -> None:
    with JobLog(tmp_path / "log") as log:
        tools = ToolRunner(log, tmp_path, confined=confined)
        output = await tools.run(["cat", "/etc/shadow"], accept=(0, 1))
    assert output.status == status


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
@pytest.mark.parametrize("confined", [False, True])
async def test_tool_of_a_worker_that_is_root_has_one_privilege_left(tmp_path: Path, confined: bool) -> None:
    with JobLog(tmp_path / "log") as log:
        tools = ToolRunner(log, tmp_path, confined=confined)
        output = await tools.run(["cat", "/proc/self/status"])
    lines = dict(line.split(":\t", 1) for line in output.stdout.decode().splitlines() if ":\t" in line)
    assert int(lines["CapEff"], 16) == DAC_OVERRIDE
    assert lines["NoNewPrivs"] == "1"


def _sleeping(marked: str, *, wait_gone: bool = False) -> list[psutil.Process]:
    """The processes that sleep for this time; with `wait_gone` those that are left after a while."""
    until = time.monotonic() + (5 if wait_gone else 0)
    while True:
        found = [each for each in psutil.process_iter(["cmdline"]) if marked in (each.info["cmdline"] or ())]
        found = [each for each in found if each.status() != psutil.STATUS_ZOMBIE]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)
