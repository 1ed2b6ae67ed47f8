"""What of the bus's doors stands open: each with its evidence, and how to shut it."""

import ipaddress
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import anyio

from h2kbus.cli.doctor import SERVER_SECONDS, Check, Verdict
from h2kbus.client import Bus, connect
from h2kbus.errors import H2KBusError, NotProvisioned
from h2kbus.handshake import has_fixes, server_info
from h2kbus.settings import ConnectionSettings
from subjects.fleet import WorkerCapabilities, WorkerSecurity
from workers.capabilities import Tools
from workers.capabilities.confined import probe_confined

SECRET_FILES: Final = ("creds", "nkey", "tls_key")
"""The settings that name a file which nobody else may read."""

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


async def examine_security(settings: ConnectionSettings) -> list[Check]:
    """All checks: this machine first, then the server that the settings name, then its live workers."""
    return [await _sandboxes(), *_secret_files(settings), *await _bus(settings)]


def _check(subject: str, evidence: str, mend: str, *, shut: bool, otherwise: Verdict = "off") -> Check:
    if shut:
        return Check(subject=subject, verdict="ok", evidence=evidence)
    return Check(subject=subject, verdict=otherwise, evidence=evidence, mend=mend)


async def _sandboxes() -> Check:
    found = await probe_confined(Tools())
    return _check("sandboxes on this machine", found.evidence, found.advice, shut=found.proven)


def _secret_files(settings: ConnectionSettings) -> Iterator[Check]:
    """Files with secrets that the settings name."""
    for field in SECRET_FILES:
        name = getattr(settings, field)
        if name:
            mode = stat.S_IMODE(Path(name).stat().st_mode)
            words = f"{name} has the mode {mode:04o}"
            yield _check(f"file of {field}", words, f"chmod 0600 {name}", shut=not mode & _OTHERS)


async def _bus(settings: ConnectionSettings) -> list[Check]:
    try:
        with anyio.fail_after(SERVER_SECONDS):
            async with connect(settings=settings) as bus:
                checks = [*server_checks(settings, server_info(bus.connection.nats)), _sync_always()]
                return [*checks, *[await look(bus) for look in _LOOKS], *await _workers(bus)]
    except H2KBusError as error:
        return [Check(subject="bus", verdict="unknown", evidence=str(error), mend=error.advice)]
    except TimeoutError:
        words = f"{settings.display_url} did not answer within {SERVER_SECONDS:g} s"
        return [Check(subject="bus", verdict="unknown", evidence=words, mend="look at the server's log")]


def server_checks(settings: ConnectionSettings, info: Mapping[str, Any]) -> Iterator[Check]:
    """What a server says of itself when it is connected to."""
    version = str(info.get("version", "0"))
    yield _check(
        "server's version",
        f"nats-server {version}",
        "update nats-server: 2.12.12, 2.14.3 and later have the known security fixes",
        shut=is_secure(version),
    )
    asks = bool(info.get("auth_required"))
    yield _check(
        "authentication",
        "the server asks who one is" if asks else "the server lets everybody in who reaches it",
        "give the server users with the permissions of their roles, and a token to an embedded one",
        shut=asks,
    )
    yield _tls(settings, info)


def is_secure(version: str) -> bool:
    """Whether a release of nats-server has the known security fixes; a word after `-` does not count."""
    numbers = tuple(int(each) for each in version.partition("-")[0].split(".") if each.isdigit())
    return has_fixes(numbers)


def _tls(settings: ConnectionSettings, info: Mapping[str, Any]) -> Check:
    """TLS is needed by whoever reaches the server over a network, which its own address tells."""
    if info.get("tls_required"):
        return _check("TLS", "the server requires it", "", shut=True)
    host = str(info.get("host", ""))
    names = [host, *(urlsplit(each).hostname or "" for each in settings.servers)]
    local = all(map(is_loopback, names))
    words = "only the loopback is listened on" if local else f"the server listens on {host} and requires none"
    mend = "configure tls on the server with `verify: true`, or have it listen on 127.0.0.1 only"
    return _check("TLS", words, mend, shut=local)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _sync_always() -> Check:
    words = "a client is not told whether the server syncs each write before it acknowledges it"
    mend = "set `jetstream { sync_interval: always }` on a lone server; a cluster of three needs it less"
    return Check(subject="synced writes", verdict="unknown", evidence=words, mend=mend)


async def _rollups(bus: Bus) -> Check:
    name = bus.topology.bucket_stream(bus.topology.jobs_bucket)
    try:
        config = (await bus.connection.api(f"STREAM.INFO.{name}"))["config"]
    except KeyError:
        return Check(subject="jobs bucket", verdict="unknown", evidence=f"there is no {name} yet")
    allowed = bool(config.get("allow_rollup_hdrs"))
    words = "one message may replace all records" if allowed else "no message can replace the records"
    mend = f"nats stream edit {name} --no-allow-rollup"
    return _check("jobs bucket", words, mend, shut=not allowed)


_LOOKS: Final[tuple[Callable[[Bus], Awaitable[Check]], ...]] = (_rollups,)


async def _workers(bus: Bus) -> list[Check]:
    try:
        alive = await bus.workers()
    except NotProvisioned:
        alive = []
    return [check for worker in alive for check in worker_checks(worker)]


def worker_checks(worker: WorkerCapabilities) -> Iterator[Check]:
    """What a live worker advertises of its guard."""
    name = f"worker {worker.worker_id}"
    if worker.security is None:
        words = f"version {worker.version or 'unknown'} does not say how it is guarded"
        yield Check(subject=name, verdict="unknown", evidence=words, mend="update the worker")
        return
    for subject, find, (good, bad), otherwise, mend in _GUARDS:
        shut = find(worker, worker.security)
        evidence = good if shut else bad
        if subject == "confinement" and not shut:
            evidence = worker.evidence.get("confined", evidence)
        yield _check(f"{name}: {subject}", evidence, mend, shut=shut, otherwise=otherwise)


_Guard = tuple[str, Callable[[WorkerCapabilities, WorkerSecurity], bool], tuple[str, str], Verdict, str]
_GUARDS: Final[tuple[_Guard, ...]] = (
    (
        "confinement",
        lambda _, it: it.confined,
        ("its tools run in sandboxes", "its tools run with limits only"),
        "off",
        "h2kbus capabilities on its host says what is missing; --require-confinement insists on it",
    ),
    (
        "privileges",
        lambda _, it: it.unprivileged,
        ("it has none", "it runs as root or with capabilities of the kernel"),
        "off",
        "run it as a user of its own: no built-in operation needs root",
    ),
    (
        "image roots",
        lambda worker, _: bool(worker.image_roots),
        ("it reads images below its roots only", "it reads any image that its user can read"),
        "off",
        "start it with --image-root",
    ),
    (
        "output roots",
        lambda worker, _: bool(worker.output_roots),
        ("it writes below its roots only", "it writes wherever its user can write"),
        "off",
        "start it with --output-root",
    ),
    (
        "signatures",
        lambda _, it: it.verifies_signatures,
        ("it executes signed jobs only", "it executes jobs that nobody signed"),
        "optional",
        "start it with --verify-keys",
    ),
)
