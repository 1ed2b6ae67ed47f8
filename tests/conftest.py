"""What every test may use: the event loop, a real server, a fleet of our own on it, and the program."""

import contextlib
import datetime as dt
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import hypothesis
import pytest
from anyio.abc import TaskGroup

import h2kbus
from h2kbus.client import Bus
from h2kbus.connection import Connection, connect
from h2kbus.plugins import load_catalog
from h2kbus.settings import ConnectionSettings
from h2kbus.signing import Signer
from h2kbus.telemetry import SILENT
from scheduler.service import Scheduler
from subjects.fleet import WorkerCapabilities
from subjects.grammar import Grammar
from subjects.lease import LEASE_SECONDS
from subjects.operations import plugin_token
from subjects.spec import ArtifactPolicy, Audit, ExecutionPolicy, ImageSpec, JobSpec
from subjects.topology import Topology
from tests.servers import container_server, start_server, wheel_server
from workers.profile import Probes
from workers.service import Worker
from workers.trust import Keys

REPOSITORY = Path(__file__).parent.parent
REHEARSE = "tests.rehearse:REHEARSE"

# How long an example takes says something about the machine only.
hypothesis.settings.register_profile("h2kbus", deadline=None)
hypothesis.settings.load_profile("h2kbus")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """One real server for the session: of the wheel, or in a container, as `--nats` says."""
    wanted = request.config.getoption("--nats")
    if wanted != "wheel":
        yield from container_server(built=wanted == "built")
        return
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        process, url = start_server(wheel_server(), place, {"jetstream": {"store_dir": str(place / "js")}})
        yield url
        process.kill()
        process.wait()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nats",
        choices=("wheel", "container", "built"),
        default="wheel",
        help="where the tests' server comes from: the wheel, an image, or an image built of the wheel's",
    )
    parser.addoption(
        "--guests", choices=("family", "all"), default="family", help="one real guest per operation, or all"
    )
    parser.addoption("--fleet", action="store_true", help="run the tests of several hosts, in containers")
    parser.addoption(
        "--peers", action="store_true", help="run the benchmarks' other job queues, in their own environment"
    )
    parser.addoption("--guests-table", metavar="FILE", help="write what was measured into this document")


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would every program that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whole hosts start containers, and other queues have an environment of their own: each by a switch."""
    tests = REPOSITORY / "tests"
    switches = {tests / "fleet": "--fleet", tests / "benchmarks" / "peers": "--peers"}
    switch = switches.get(collection_path)
    return True if switch is not None and not config.getoption(switch) else None


@pytest.fixture
def settings(server_url: str) -> ConnectionSettings:
    """The shared server, under a root that no other test uses."""
    return ConnectionSettings(url=server_url, root=f"t{secrets.token_hex(5)}.v1")


@pytest.fixture
def topology(settings: ConnectionSettings) -> Topology:
    return Topology(Grammar(settings.root))


@pytest.fixture
async def connection(settings: ConnectionSettings) -> AsyncIterator[Connection]:
    async with connect(settings) as opened:
        yield opened


@pytest.fixture
async def bus(settings: ConnectionSettings) -> AsyncIterator[Bus]:
    async with h2kbus.connect(settings=settings, submitter="tester") as opened:
        yield opened


class Fleet:
    """Schedulers and workers of one test, in this process; all of them end with it."""

    def __init__(
        self, settings: ConnectionSettings, group: TaskGroup, stack: contextlib.AsyncExitStack
    ) -> None:
        self.settings = settings
        self.topology = Topology(Grammar(settings.root))
        self.catalog = load_catalog([REHEARSE])
        self.told = SILENT
        self.connections: dict[str, Connection] = {}
        self._group = group
        self._stack = stack

    async def scheduler(
        self,
        name: str = "scheduler-1",
        *,
        lease_seconds: float = LEASE_SECONDS,
        replicas: int = 1,
        own_name: bool = False,
    ) -> Callable[[], None]:
        """Start a scheduler; returns the call that drains it."""
        connection = await self._stack.enter_async_context(connect(self.settings))
        topology = Topology(self.topology.grammar, replicas, lease_seconds)
        service = Scheduler(connection, topology, self.catalog, name, own_name=own_name, telemetry=self.told)
        drain: Callable[[], None] = await self._group.start(service.serve)
        return drain

    async def worker(
        self,
        worker_id: str = "worker-1",
        *,
        slots: int = 2,
        tokens: Sequence[str] = ("qemu-img", plugin_token("rehearse")),
        grace: float = 0.0,
        probes: Probes | None = None,
        trusted_keys: frozenset[str] | None = None,
        signer: Signer | None = None,
        **profile: Any,
    ) -> Callable[[], None]:
        """Start a worker with these capabilities; returns the call that drains it."""
        connection = await self._stack.enter_async_context(connect(self.settings))
        self.connections[worker_id] = connection
        described = worker_profile(worker_id, slots=slots, tokens=tokens, **profile)
        service = Worker(
            connection,
            self.topology,
            self.catalog,
            described,
            probes,
            keys=Keys(trusted=trusted_keys, signer=signer),
            telemetry=self.told,
        )
        drain: Callable[[], None] = await self._group.start(functools.partial(service.serve, grace=grace))
        return drain


def worker_profile(
    worker_id: str, *, slots: int = 2, tokens: Sequence[str] = (), **more: Any
) -> WorkerCapabilities:
    return WorkerCapabilities(
        worker_id=worker_id,
        hostname="test",
        last_heartbeat=dt.datetime.now(dt.UTC),
        capabilities=dict.fromkeys(tokens, True),
        max_concurrent_jobs=slots,
        **{"memory_gb": 8.0, "disk_space_gb": 50.0, **more},
    )


@pytest.fixture
async def fleet(settings: ConnectionSettings) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as group:
        yield Fleet(settings, group, stack)
        group.cancel_scope.cancel()


@pytest.fixture
async def running(fleet: Fleet) -> Fleet:
    """A fleet with one scheduler and one worker."""
    await fleet.scheduler()
    await fleet.worker()
    return fleet


def rehearsal(**more: Any) -> JobSpec:
    """A job for the tests' own operation, which does what its parameters say."""
    policy = more.pop("policy", {})
    return JobSpec(
        operation=more.pop("operation", "rehearse"),
        image=ImageSpec(path=more.pop("image", "/nowhere/disk.img")),
        artifacts=ArtifactPolicy(output_path=more.pop("output", "/nowhere/out"), log_upload=False),
        audit=Audit(requested_by="tester"),
        execution_policy=ExecutionPolicy(**policy),
        job_id=more.pop("job_id", None),
        parameters=more,
    )


class Program:
    """The `h2kbus` program, run as a user runs it."""

    def __init__(self, environment: dict[str, str], place: Path) -> None:
        self.environment = environment
        self.place = place

    def settings(self, **flags: str) -> ConnectionSettings:
        """How the program would connect."""
        return ConnectionSettings.resolve(flags, self.environment)

    def argv(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "h2kbus", *map(str, words)]

    def __call__(
        self, *words: object, stdin: bytes = b"", timeout: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            self.argv(*words),
            check=False,
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd=self.place,
            timeout=timeout,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    @contextlib.contextmanager
    def started(self, *words: object) -> Iterator["subprocess.Popen[str]"]:
        """A process that runs beside the test; it is gone afterwards."""
        process = subprocess.Popen(
            self.argv(*words),
            env=self.environment,
            cwd=self.place,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def environment(**more: str) -> dict[str, str]:
    """A clean environment: nothing of the caller's NATS settings reaches the program."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "H2KBUS_", "XDG_"))
    }
    return {**kept, "PYTHONPATH": str(REPOSITORY), **more}


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program beside a running `h2kbus up` with one worker, shared by the session."""
    home = tmp_path_factory.mktemp("home")
    program = Program(environment(HOME=str(home), USER="tester"), home)
    words = ("up", "--json", "--port", "0", "--data-dir", home / "data", "--operations", REHEARSE)
    with program.started(*words) as process:
        program.environment["H2KBUS_URL"] = read_ready(process)["url"]
        yield program


def read_ready(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The one line that `up --json` prints once it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        pytest.fail(f"it did not start: {process.stderr.read()}")
    ready: dict[str, Any] = json.loads(line)
    return ready


@pytest.fixture
def program(tmp_path: Path, settings: ConnectionSettings) -> Program:
    """The program, told by its environment where the test's bus is."""
    place = tmp_path / "cwd"
    place.mkdir()
    return Program(
        environment(HOME=str(tmp_path), H2KBUS_URL=settings.url, H2KBUS_ROOT=settings.root, USER="tester"),
        place,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB. Mounting it takes root, as in the container that runs these tests."""
    place = tmp_path / "small"
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=10)
    if done.returncode != 0:
        pytest.fail(f"this test mounts a small filesystem, which takes root: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=10)
