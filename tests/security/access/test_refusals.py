"""Who is not let in learns why at once: by name, never by a time-out."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from h2kbus.authority import Authority, Wanted
from h2kbus.connection import connect
from h2kbus.errors import BusError, ErrorCode, PermissionDenied, TlsFailed
from h2kbus.settings import ConnectionSettings
from subjects.permissions import Role
from tests.security.access.conftest import Guarded, free_port

NO_CERTIFICATE: dict[str, Any] = {"tls_cert": None, "tls_key": None}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another fleet's authority, with a user of the same name."""
    made = Authority(tmp_path_factory.mktemp("elsewhere") / "auth")
    made.init(port=free_port(), users=[Wanted(role=Role.SUBMITTER, name="alice")])
    return made


async def refusal(settings: ConnectionSettings) -> BusError:
    with pytest.raises(BusError) as caught:
        async with connect(settings):
            pytest.fail("it was let in")
    return caught.value


async def test_client_without_a_certificate_is_told_that_one_is_wanted(guarded: Guarded) -> None:
    error = await refusal(guarded.settings("alice", **NO_CERTIFICATE))
    assert isinstance(error, TlsFailed)
    assert "wants a certificate of its clients" in str(error)


@pytest.mark.slow
async def test_server_of_an_unknown_authority_is_not_trusted(guarded: Guarded, elsewhere: Authority) -> None:
    stranger = elsewhere.user_directory("alice") / "ca.pem"
    error = await refusal(guarded.settings("alice", tls_ca=str(stranger)))
    assert isinstance(error, TlsFailed)
    assert "not to be trusted" in str(error)


async def test_certificate_of_another_authority_is_refused(guarded: Guarded, elsewhere: Authority) -> None:
    theirs = elsewhere.user_directory("alice")
    changes = {"tls_cert": str(theirs / "cert.pem"), "tls_key": str(theirs / "key.pem")}
    assert isinstance(await refusal(guarded.settings("alice", **changes)), TlsFailed)


async def test_key_that_the_server_does_not_know_is_refused(guarded: Guarded, elsewhere: Authority) -> None:
    stranger = elsewhere.user_directory("alice") / "alice.nk"
    error = await refusal(guarded.settings("alice", nkey=str(stranger)))
    assert isinstance(error, PermissionDenied)


async def test_nobody_comes_in_with_a_certificate_alone(guarded: Guarded) -> None:
    assert isinstance(await refusal(guarded.settings("alice", nkey=None)), PermissionDenied)


@pytest.mark.slow
async def test_plain_text_is_not_spoken_with_a_server_of_tls(guarded: Guarded) -> None:
    url = f"nats://127.0.0.1:{guarded.authority.ledger().port}"
    error = await refusal(ConnectionSettings(url=url))
    assert error.error_code in (ErrorCode.TLS_FAILED, ErrorCode.PERMISSION_DENIED)


def test_program_says_it_on_one_line(guarded: Guarded, elsewhere: Authority, tmp_path: Path) -> None:
    program = guarded.program("alice", tmp_path)
    done: subprocess.CompletedProcess[str] = program(
        "--nkey", elsewhere.user_directory("alice") / "alice.nk", "ls"
    )
    assert done.returncode == 3
    assert done.stderr.startswith("h2kbus: PERMISSION_DENIED: ")
    assert len(done.stderr.splitlines()) == 1
