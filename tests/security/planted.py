"""A bus with secrets planted wherever one can be given, a run over it, and what that left behind."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import anyio
import nkeys

from h2kbus.connection import connect
from h2kbus.settings import ConnectionSettings
from tests.conftest import Program, environment
from tests.servers import start_server, wheel_server

BANNER: Final = {"worker": "is ready", "scheduler": "is ready"}
_READY_SECONDS: Final = 30.0


def new_secret(name: str) -> str:
    """A text that occurs nowhere else; its name tells a finder which one it is."""
    return f"{name}-{secrets.token_hex(16)}"


def new_nkey() -> tuple[str, str]:
    """The seed of a user's key, which is secret, and its public key."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode(), nkeys.from_seed(seed).public_key.decode()


class ProcessList:
    """What every process of this machine shows of itself in the process list, as long as it runs."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            for each in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(each.read_bytes())


class Road:
    """The secrets by name, where they may stand, and everything else that a run left behind, by its place."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.secrets = {name: new_secret(name) for name in ("password", "token", "wrong", "context")}
        self.secrets["nkey"], self.public_key = new_nkey()
        self.secrets["creds"], _ = new_nkey()
        self.told: dict[str, bytes] = {}
        self.processes = ProcessList()

    @property
    def planted(self) -> Path:
        """The directory of the files that hold secrets because a user put them there."""
        return self.place / "planted"

    def plant(self, name: str, content: str) -> Path:
        """Write a file that may hold secrets."""
        file = self.planted / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o600)
        return file

    def program(self, **env: str) -> Program:
        """The program with these variables, and contexts in the planted files."""
        home = self.place / "home"
        home.mkdir(exist_ok=True)
        return Program(
            environment(HOME=str(home), USER="tester", XDG_CONFIG_HOME=str(self.planted), **env), self.place
        )

    def tell(self, name: str, done: "subprocess.CompletedProcess[str]") -> int:
        """Keep what a command said."""
        self.told[name] = f"{done.stdout}\n{done.stderr}".encode()
        return done.returncode

    def found(self, secret: str) -> list[str]:
        """Where a secret is, planted files left out."""
        needle = secret.encode()
        places = [name for name, content in self.told.items() if needle in content]
        places += ["process list"] * any(needle in each for each in self.processes.seen)
        for file in self.place.rglob("*"):
            if file.is_file() and self.planted not in file.parents and needle in file.read_bytes():
                places.append(str(file.relative_to(self.place)))
        return places


@contextlib.contextmanager
def servers(road: Road) -> Iterator[Mapping[str, str]]:
    """A server for users and keys, and one for a token; both say and keep in their logs all that they can."""
    users = [{"user": "all", "password": road.secrets["password"]}, {"nkey": road.public_key}]
    users.append({"user": "context", "password": road.secrets["context"]})
    wanted = {"users": {"users": users}, "token": {"token": road.secrets["token"]}}
    with contextlib.ExitStack() as stack:
        urls = {}
        for name, authorization in wanted.items():
            config = {
                "authorization": authorization,
                "jetstream": {"store_dir": str(road.place / f"{name}-store")},
                "log_file": str(road.place / f"{name}-server.log"),
                "debug": True,
                "trace": True,
            }
            process, urls[name] = start_server(wheel_server(), road.planted / name, config)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield urls


@contextlib.contextmanager
def running(road: Road, name: str, program: Program, *words: str) -> Iterator[None]:
    """A process that runs beside the test; what it says is kept when it has ended."""
    log = road.place / f"{name}.stderr"
    with log.open("wb") as stderr, (road.place / f"{name}.stdout").open("wb") as stdout:
        process = subprocess.Popen(
            program.argv(name, "--verbose", *words),
            env=program.environment, cwd=road.place, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        )  # fmt: skip
        try:
            ready = threading.Event()
            for _ in range(int(_READY_SECONDS / 0.05)):
                if BANNER[name] in log.read_text() or process.poll() is not None:
                    break
                ready.wait(0.05)
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def job(road: Road, job_id: str, image: str) -> Path:
    file = road.place / f"{job_id}.json"
    described = {
        "job_id": job_id, "operation": "inspect", "image": {"path": image},
        "requested_actions": ["info", "check", "partitions"],
        "artifacts": {"output_path": str(road.place / "out")}, "audit": {"requested_by": "tester"},
    }  # fmt: skip
    file.write_text(json.dumps(described))
    return file


def keep_the_bus(road: Road, settings: ConnectionSettings) -> None:
    """Read every message of every stream, as whoever may read the bus does."""

    async def read() -> None:
        async with connect(settings) as connection:
            names: list[str] = (await connection.api("STREAM.NAMES"))["streams"]
            for name in names:
                kept = [each.data + each.subject.encode() async for each in connection.read(name, ">")]
                road.told[f"stream {name}"] = b"\n".join(kept)

    anyio.run(read)
