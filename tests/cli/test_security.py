"""`h2kbus doctor --security`: every door that stands open is told, with its evidence."""

import datetime as dt
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from h2kbus.cli.doctor import Check
from h2kbus.cli.exits import Exit
from h2kbus.cli.security import is_loopback, is_secure, server_checks, worker_checks
from h2kbus.settings import ConnectionSettings
from subjects.fleet import WorkerCapabilities, WorkerSecurity
from tests.conftest import Program

GUARDED = WorkerSecurity(confined=True, unprivileged=True, verifies_signatures=True)
INFO: dict[str, Any] = {
    "version": "2.14.3",
    "host": "127.0.0.1",
    "auth_required": True,
}


def verdicts(checks: Iterator[Check]) -> dict[str, str]:
    return {each.subject.rpartition(": ")[2]: each.verdict for each in checks}


def worker(security: WorkerSecurity | None = GUARDED, **changes: Any) -> WorkerCapabilities:
    named = {"worker_id": "w1", "hostname": "h", "last_heartbeat": dt.datetime.now(dt.UTC)}
    roots = {"image_roots": ("/srv",), "output_roots": ("/srv",)}
    return WorkerCapabilities(security=security, **{**named, **roots, **changes})


def server(url: str = "nats://127.0.0.1:4222", **changes: Any) -> dict[str, str]:
    return verdicts(server_checks(ConnectionSettings(url=url), {**INFO, **changes}))


def test_guarded_worker_has_every_door_shut() -> None:
    assert set(verdicts(worker_checks(worker())).values()) == {"ok"}


@pytest.mark.parametrize(
    ("open_worker", "door"),
    [
        (worker(WorkerSecurity(unprivileged=True)), "confinement"),
        (worker(WorkerSecurity(confined=True)), "privileges"),
        (worker(image_roots=()), "image roots"),
        (worker(output_roots=()), "output roots"),
    ],
    ids=["confinement", "privileges", "image roots", "output roots"],
)
def test_one_open_door_of_a_worker_is_named(open_worker: WorkerCapabilities, door: str) -> None:
    found = verdicts(worker_checks(open_worker))
    assert [name for name, verdict in found.items() if verdict == "off"] == [door]


def test_worker_of_an_older_version_is_no_worker_without_a_guard() -> None:
    assert list(verdicts(worker_checks(worker(None))).values()) == ["unknown"]


def test_guarded_server_has_every_door_shut() -> None:
    assert set(server().values()) == {"ok"}


def test_server_that_asks_nobody_is_told() -> None:
    assert server(auth_required=False)["authentication"] == "off"


@pytest.mark.parametrize(
    ("url", "host", "tls", "verdict"),
    [
        ("nats://127.0.0.1:4222", "0.0.0.0", False, "off"),
        ("nats://10.0.0.7:4222", "10.0.0.7", False, "off"),
        ("nats://127.0.0.1:4222", "127.0.0.1", False, "ok"),
        ("nats://127.0.0.1:4222", "0.0.0.0", True, "ok"),
    ],
)
def test_server_beyond_the_loopback_needs_tls(url: str, host: str, tls: bool, verdict: str) -> None:
    assert server(url, host=host, tls_required=tls)["TLS"] == verdict


@pytest.mark.parametrize(
    ("version", "secure"),
    [
        ("2.12.11", False),
        ("2.12.12", True),
        ("2.13.1", False),
        ("2.14.2", False),
        ("2.14.3", True),
        ("2.14.3-RC.1", True),
        ("2.15.0", True),
        ("3.0.0", True),
        ("unknown", False),
    ],
)
def test_release_without_the_known_fixes_is_told(version: str, secure: bool) -> None:
    assert is_secure(version) is secure


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("bus.example", False), ("", False)],
)
def test_only_an_address_of_the_loopback_is_one(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.slow
def test_open_server_is_told_and_ends_with_1(program: Program) -> None:
    done = program("doctor", "--security", "--json")
    found = {check["subject"]: check for check in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert found["authentication"]["verdict"] == "off"
    assert found["synced writes"]["verdict"] == "unknown"


@pytest.mark.slow
def test_credentials_that_others_can_read_are_told(program: Program, tmp_path: Path) -> None:
    creds = tmp_path / "worker.creds"
    creds.write_text("no credentials")
    creds.chmod(0o644)
    done = program("--creds", creds, "doctor", "--security", "--json")
    found = {check["subject"]: check for check in map(json.loads, done.stdout.splitlines())}
    assert found["file of creds"]["verdict"] == "off"
    assert found["file of creds"]["mend"] == f"chmod 0600 {creds}"


@pytest.mark.slow
def test_worker_that_must_confine_does_not_start_where_it_cannot(program: Program) -> None:
    """A user whom a namespace does not know may make no further ones."""
    argv = ["unshare", "--user", *program.argv("worker", "--require-confinement")]
    done = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        env=program.environment,
        cwd=program.place,
        timeout=60,
    )
    assert done.returncode == Exit.USAGE
    assert "'confined'" in done.stderr
    assert "Traceback" not in done.stderr
