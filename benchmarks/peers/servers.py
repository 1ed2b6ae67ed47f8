"""The servers that the peers work on, each one fresh for a turn, with the durability that is asked for."""

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from h2kbus.errors import SettingsError

START_SECONDS: Final = 15.0
STOP_SECONDS: Final = 10.0


class Durability(NamedTuple):
    """What both servers are told about their disks, and what an acknowledged write outlives."""

    redis: tuple[str, ...]
    sync_always: bool
    outlives: str


DURABILITY: Final[Mapping[str, Durability]] = {
    "no": Durability(
        redis=(),
        sync_always=False,
        outlives=(
            "as both come: Redis has it in memory and takes a snapshot after minutes; nats-server writes it"
            " to a file at once, so that it outlives the server's death, and syncs that every two minutes"
        ),
    ),
    "everysec": Durability(
        redis=("appendonly yes", "appendfsync everysec"),
        sync_always=False,
        outlives=(
            "the server's death on both; a power cut but for the last second (Redis) or two minutes (NATS)"
        ),
    ),
    "always": Durability(
        redis=("appendonly yes", "appendfsync always"),
        sync_always=True,
        outlives="a power cut on both: each write is synced before it is acknowledged",
    ),
}


class RedisServer(NamedTuple):
    """A running server: its URL without a database, and its process."""

    url: str
    pid: int


@contextlib.contextmanager
def redis_server(durability: Durability, programs: Path) -> Iterator[RedisServer]:
    """A Redis server on a free port of the loopback, for a password.

    It is the one in `programs` or on PATH. Its data goes away with it. Raises SettingsError when there is
    none, or it does not start.
    """
    program = shutil.which("redis-server", path=programs) or shutil.which("redis-server")
    if program is None:
        raise SettingsError("there is no redis-server: run `.ci/setup peers`, or leave the Redis peers out")
    password = secrets.token_urlsafe(24)
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="h2kbus-redis-") as directory:
        config = Path(directory) / "redis.conf"
        lines = ("bind 127.0.0.1", f"port {port}", f"dir {directory}", f"requirepass {password}")
        config.write_text("\n".join((*lines, *durability.redis, "")), encoding="utf-8")
        log = Path(directory) / "redis.log"
        with (
            log.open("wb") as output,
            ended(subprocess.Popen([program, str(config)], stdout=output, stderr=output)) as process,
        ):
            _wait_for(process, port, log)
            yield RedisServer(f"redis://:{password}@127.0.0.1:{port}", process.pid)


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """The process while the context lasts; it has ended afterwards."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    words = log.read_text(encoding="utf-8", errors="replace")[-300:]
    raise SettingsError(f"redis-server did not start: {words}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
