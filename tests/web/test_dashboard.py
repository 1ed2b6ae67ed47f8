"""What `h2kbus dashboard` serves: the page's files, and nothing else."""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from importlib import resources
from typing import NamedTuple

import msgspec
import pytest

from h2kbus import dashboard
from h2kbus.dashboard import PageServer, PageSettings, is_loopback, page_origins, sign_in_link, websocket_url
from h2kbus.errors import SettingsError
from h2kbus.settings import ConnectionSettings
from tests.conftest import Program, environment, read_ready
from tests.web.conftest import serving


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Program:
    home = tmp_path_factory.mktemp("alone")
    return Program(environment(HOME=str(home), USER="tester", H2KBUS_TOKEN="s3cret/+"), home)


@pytest.fixture(scope="module")
def address(alone: Program) -> Iterator[str]:
    with serving(alone, "--port", "0", "--websocket", "wss://bus.example:443") as served:
        yield served["url"]


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(address: str, path: str, method: str = "GET", **headers: str) -> Answer:
    host = address.removeprefix("http://").rstrip("/")
    with contextlib.closing(http.client.HTTPConnection(host, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


@pytest.mark.slow
def test_the_page_and_its_parts_are_there(address: str) -> None:
    page = ask(address, "/").body.decode()
    named = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(named) == 3
    assert {ask(address, f"/{each}").status for each in named} == {HTTPStatus.OK}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/pages/", "/../dashboard.py", "/%2e%2e/dashboard.py", "//etc/passwd", "/.", "/nothing"]
)
def test_nothing_else_is_there(address: str, path: str) -> None:
    assert ask(address, path).status == HTTPStatus.NOT_FOUND


@pytest.mark.slow
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(address: str, method: str) -> None:
    assert ask(address, "/", method).status == HTTPStatus.NOT_IMPLEMENTED


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/app.js", "/settings.json", "/nothing"])
def test_browsers_are_told_to_run_our_scripts_only_and_to_reach_our_bus_only(address: str, path: str) -> None:
    policy = ask(address, path).headers["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "connect-src 'self' wss://bus.example:443" in policy


@pytest.mark.slow
def test_what_the_browser_has_is_not_sent_again(address: str) -> None:
    tag = ask(address, "/app.js").headers["ETag"]
    again = ask(address, "/app.js", **{"If-None-Match": tag})
    assert (again.status, again.body) == (HTTPStatus.NOT_MODIFIED, b"")


@pytest.mark.slow
def test_the_settings_hold_no_secret(address: str) -> None:
    assert b"s3cret" not in ask(address, "/settings.json").body


@pytest.mark.slow
def test_the_settings_say_how_this_user_reaches_the_bus(alone: Program) -> None:
    told = {
        "H2KBUS_INBOX_PREFIX": "_INBOX_olga",
        "H2KBUS_API_PREFIX": "H2KBUS.API",
        "H2KBUS_ROOT": "berlin.v1",
    }
    program = Program({**alone.environment, **told}, alone.place)
    with serving(program, "--port", "0") as served:
        assert msgspec.json.decode(ask(served["url"], "/settings.json").body) == {
            "websocket": "ws://127.0.0.1:4280",
            "root": "berlin.v1",
            "submitter": "olga",
            "inboxPrefix": "_INBOX_olga",
            "apiPrefix": "H2KBUS.API",
        }


@pytest.mark.slow
def test_the_token_is_in_the_link_after_the_hash_only(alone: Program) -> None:
    with alone.started("dashboard", "--port", "0") as process:
        assert process.stdout is not None
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#token=s3cret%2F%2B\n", process.stdout.readline())
        assert process.stderr is not None
        assert "s3cret" not in process.stderr.readline()


@pytest.mark.slow
def test_sigterm_ends_it(alone: Program) -> None:
    with alone.started("dashboard", "--json", "--port", "0") as process:
        read_ready(process)
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(alone: Program, address: str) -> None:
    port = address.rstrip("/").rpartition(":")[2]
    done = alone("dashboard", "--port", port)
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://127.0.0.1:4222", "ws://127.0.0.1:4280"),
        ("nats://user:secret@bus-1:4222,nats://bus-2", "ws://bus-1:4280"),
        ("tls://bus.example", "wss://bus.example:4280"),
        ("nats://[::1]:4222", "ws://[::1]:4280"),
        ("wss://user@bus.example:8443", "wss://bus.example:8443"),
    ],
)
def test_the_bus_is_looked_for_beside_the_server(url: str, expected: str) -> None:
    assert websocket_url(ConnectionSettings(url=url), None) == expected


@pytest.mark.parametrize(
    "given",
    ["nats://bus:4222", "ws://", "ws://a:b", "ws://me@bus", "ws://bus; script-src *", "wss://bus\n", "bus"],
)
def test_what_is_no_websocket_address_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="--websocket"):
        websocket_url(ConnectionSettings(), given)


@pytest.mark.parametrize("given", ["*", "http://", "ws://a", "http://a/b", "http://me@a", "null"])
def test_what_is_no_origin_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="--page-origin"):
        page_origins([given])


@contextlib.contextmanager
def in_this_process() -> Iterator[PageServer]:
    page = PageSettings(websocket="ws://127.0.0.1:1", root="h2k.v1", submitter="tester")
    server, stopped = PageServer("127.0.0.1", 0, page), threading.Event()
    thread = threading.Thread(target=server.serve_until, args=(stopped,))
    thread.start()
    try:
        yield server
    finally:
        stopped.set()
        thread.join()
        server.server_close()


def test_browsers_that_go_away_or_ask_for_no_address_are_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    with in_this_process() as server:
        where = ("127.0.0.1", server.server_port)
        for _ in range(20):
            with socket.create_connection(where, 5) as client:
                client.sendall(b"GET /app.js HTTP/1.1\r\n\r\n" * 20)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with socket.create_connection(where, 5) as client:
            client.sendall(b"GET http://[ HTTP/1.1\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 404 ")
    assert capfd.readouterr().err == ""


def test_no_more_clients_than_there_is_room_for_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "AT_ONCE", 2)
    with in_this_process() as server:
        where = ("127.0.0.1", server.server_port)
        with socket.create_connection(where, 5), socket.create_connection(where, 5):
            assert ask(server.address, "/").status == HTTPStatus.SERVICE_UNAVAILABLE
        until = time.monotonic() + 10
        while ask(server.address, "/").status != HTTPStatus.OK:
            assert time.monotonic() < until


def test_a_link_without_a_token_is_the_address() -> None:
    assert sign_in_link("http://127.0.0.1:1/", None) == "http://127.0.0.1:1/"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("host", False)],
)
def test_loopback_addresses_are_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_files_are_part_of_the_package() -> None:
    found = {each.name for each in resources.files("h2kbus.pages").iterdir() if each.is_file()}
    assert found == {"__init__.py", "index.html", "app.js", "app.css", "icon.svg", "licences.txt"}
