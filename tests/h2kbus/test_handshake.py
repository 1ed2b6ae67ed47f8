"""Connecting: who cannot be reached, refuses us or is unfit is told by name, and without a secret."""

import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from h2kbus.connection import connect
from h2kbus.errors import (
    BusError,
    BusUnreachable,
    ErrorCode,
    PermissionDenied,
    ServerUnfit,
    SettingsError,
)
from h2kbus.handshake import client_options, objection_to
from h2kbus.settings import ConnectionSettings
from tests.h2kbus.conftest import OwnServer

Start = Callable[..., OwnServer]

USERS = {"users": [{"user": "all", "password": "pass-all"}]}


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are accepted and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def failure(settings: ConnectionSettings) -> BusError:
    with pytest.raises(BusError) as caught:
        async with connect(settings):
            pass
    return caught.value


async def test_refused_port_is_an_unreachable_bus_at_once(closed_port: int) -> None:
    settings = ConnectionSettings(url=f"nats://127.0.0.1:{closed_port}", connect_timeout_seconds=60)
    with anyio.fail_after(10):
        error = await failure(settings)
    assert isinstance(error, BusUnreachable)
    assert f"nats://127.0.0.1:{closed_port}" in str(error)


async def test_several_servers_are_unreachable_when_each_refuses(closed_port: int) -> None:
    url = f"nats://127.0.0.1:{closed_port},nats://localhost:{closed_port}"
    with anyio.fail_after(10):
        error = await failure(ConnectionSettings(url=url, connect_timeout_seconds=60))
    assert isinstance(error, BusUnreachable)


async def test_second_server_is_used_where_the_first_refuses(closed_port: int, server_url: str) -> None:
    async with connect(ConnectionSettings(url=f"nats://127.0.0.1:{closed_port},{server_url}")) as connection:
        assert connection.is_connected


async def test_listener_that_says_nothing_is_unreachable_within_the_timeout(silent_port: int) -> None:
    settings = ConnectionSettings(url=f"nats://127.0.0.1:{silent_port}", connect_timeout_seconds=0.3)
    with anyio.fail_after(5):
        assert isinstance(await failure(settings), BusUnreachable)


@pytest.mark.slow
async def test_name_that_does_not_resolve_is_unreachable() -> None:
    settings = ConnectionSettings(url="nats://no-such-host.invalid:4222", connect_timeout_seconds=1)
    assert isinstance(await failure(settings), BusUnreachable)


async def test_server_without_jetstream_is_unfit(own_server: Start) -> None:
    error = await failure(own_server(jetstream=False).settings())
    assert isinstance(error, ServerUnfit)
    assert error.error_code is ErrorCode.JETSTREAM_MISSING


LAST_WORD = "the last of many attempts decides, and a busy server may end one with a reset"


@pytest.fixture
async def refusing_once() -> AsyncIterator[int]:
    """The port of a server that refuses the credentials, and then resets whatever comes."""
    info = b'INFO {"server_id":"x","version":"2.15.0","max_payload":1048576,"auth_required":true}\r\n'
    seen = 0

    async def serve(stream: SocketStream) -> None:
        nonlocal seen
        seen += 1
        async with stream:
            if seen == 1:
                await stream.send(info)
                await stream.receive()
                await stream.send(b"-ERR 'Authorization Violation'\r\n")
                await anyio.sleep(0.1)
            stream.extra(SocketAttribute.raw_socket).setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()
    await listener.aclose()


async def test_refused_credentials_stay_refused_whatever_comes_after(refusing_once: int) -> None:
    url = f"nats://all:wr0ng@127.0.0.1:{refusing_once}"
    error = await failure(ConnectionSettings(url=url, connect_timeout_seconds=1))
    assert isinstance(error, PermissionDenied)


async def test_wrong_password_is_denied_without_being_shown(own_server: Start) -> None:
    server = own_server(authorization=USERS)
    error = await failure(server.settings(user="all", password="wr0ng", connect_timeout_seconds=1))
    assert isinstance(error, (PermissionDenied, BusUnreachable))
    assert "wr0ng" not in str(error)


async def test_password_in_the_address_is_not_shown(own_server: Start) -> None:
    server = own_server(authorization=USERS)
    url = f"nats://all:wr0ng@127.0.0.1:{server.port}"
    error = await failure(ConnectionSettings(url=url, connect_timeout_seconds=1))
    assert isinstance(error, (PermissionDenied, BusUnreachable))
    assert "wr0ng" not in str(error)


CREDS = """-----BEGIN NATS USER JWT-----
eyJ0eXAi.e30.c2ln
------END NATS USER JWT------

************************* IMPORTANT *************************
-----BEGIN USER NKEY SEED-----
SUAKYRHVIOREXV7EUZTBHUHL7NUMHPMAS7QMDU3GTIUWEI5LDNOXD43IZY
------END USER NKEY SEED------
"""


def test_credentials_file_as_nats_tools_write_it_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "user.creds"
    file.write_text(CREDS)
    assert client_options(ConnectionSettings(creds=str(file)))["user_credentials"] == str(file)


@pytest.mark.parametrize("content", ["", "x", CREDS.replace("SUAK", "suak"), CREDS.partition("IMPORTANT")[0]])
def test_file_without_credentials_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "user.creds"
    file.write_text(content)
    with pytest.raises(SettingsError, match=f"^creds: {file} holds no credentials of a user$"):
        client_options(ConnectionSettings(creds=str(file)))


@pytest.mark.parametrize(
    ("release", "words", "accepted"),
    [
        ((2, 11, 99), "too old", "too old"),
        ((2, 12, 0), "lacks fixes", None),
        ((2, 12, 11), "lacks fixes", None),
        ((2, 12, 12), None, None),
        ((2, 13, 9), "lacks fixes", None),
        ((2, 14, 2), "lacks fixes", None),
        ((2, 14, 3), None, None),
        ((2, 15, 0), None, None),
        ((3, 0, 0), None, None),
    ],
)
def test_server_with_known_holes_is_refused_unless_told_otherwise(
    release: tuple[int, int, int], words: str | None, accepted: str | None
) -> None:
    refused, let_pass = objection_to(release, False), objection_to(release, True)
    assert (words is None) == (refused is None)
    assert words is None or (refused and words in refused)
    assert (accepted is None) == (let_pass is None)


def test_old_server_is_accepted_by_the_environment() -> None:
    assert ConnectionSettings.resolve({}, {"H2KBUS_ACCEPT_OLD_SERVER": "true"}).accept_old_server
    assert not ConnectionSettings.resolve({}, {}).accept_old_server
