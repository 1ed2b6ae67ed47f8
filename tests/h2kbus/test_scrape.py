"""The endpoint of metrics: one page, for who asks properly, and no harm from who does not."""

import resource
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from h2kbus import scrape
from h2kbus.errors import SettingsError
from h2kbus.scrape import scraped

pytestmark = pytest.mark.anyio


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with scraped(lambda: b"h2kbus_reconnects_total 1.0\n", "127.0.0.1", 0) as where:
        yield where


async def ask(url: str, request: bytes) -> bytes:
    parts = urlsplit(url)
    answer = b""
    async with await anyio.connect_tcp(str(parts.hostname), parts.port or 0) as stream:
        await stream.send(request)
        with anyio.fail_after(10):
            async for chunk in stream:
                answer += chunk
    return answer


async def test_page_is_what_prometheus_reads(url: str) -> None:
    def get() -> tuple[int, str, bytes]:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.headers["Content-Type"], response.read()

    assert await anyio.to_thread.run_sync(get) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
        b"h2kbus_reconnects_total 1.0\n",
    )


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?a=b HTTP/1.1\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"\xff\xfe\x00\x01\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 3000, b"400"),
    ],
)
async def test_request_is_answered_by_what_it_is(url: str, request_head: bytes, status: bytes) -> None:
    assert (await ask(url, request_head)).split()[1] == status


async def test_head_has_no_body(url: str) -> None:
    assert (await ask(url, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")


async def test_client_that_says_nothing_is_hung_up_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.1)
    assert await ask(url, b"GET /metrics HTT") == b""


@pytest.mark.slow
async def test_clients_that_say_nothing_do_not_keep_others_out_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.5)
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask, url, b"G")
        await anyio.sleep(1.0)
        assert b"200 OK" in await ask(url, b"GET /metrics HTTP/1.1\r\n\r\n")


@pytest.fixture
def few_files() -> Iterator[None]:
    """No room for more than a few files more than this process has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 12, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [4, 64])
async def test_flood_of_clients_does_not_end_the_process_that_shows_the_page(
    monkeypatch: pytest.MonkeyPatch, few_files: None, at_once: int
) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(scrape, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(scrape, "AT_ONCE", at_once)
    flood = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
open = [socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5) for _ in range(40)]
time.sleep(1)
"""
    async with scraped(lambda: b"page", "127.0.0.1", 0) as url:
        await anyio.run_process([sys.executable, "-c", flood, str(urlsplit(url).port)])
        assert b"200 OK" in await ask(url, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_client_that_goes_away_leaves_the_endpoint_up(url: str) -> None:
    parts = urlsplit(url)
    for _ in range(5):
        stream = await anyio.connect_tcp(str(parts.hostname), parts.port or 0)
        await stream.send(b"GET /met")
        await stream.aclose()
    assert b"200 OK" in await ask(url, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_page_that_cannot_be_made_does_not_end_the_process(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError("made up")

    async with scraped(broken, "127.0.0.1", 0) as url:
        assert b" 500 " in await ask(url, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert "the metrics cannot be shown" in caplog.text


async def test_port_that_is_taken_is_named(url: str) -> None:
    port = urlsplit(url).port or 0
    with pytest.raises(SettingsError, match=f"127.0.0.1:{port}"):
        async with scraped(bytes, "127.0.0.1", port):
            pass


async def test_address_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match="no-such-host"):
        async with scraped(bytes, "no-such-host.invalid", 0):
            pass


async def test_endpoint_is_gone_with_its_context() -> None:
    async with scraped(bytes, "127.0.0.1", 0) as url:
        pass

    def get() -> None:
        urllib.request.urlopen(url, timeout=2)

    with pytest.raises(urllib.error.URLError):
        await anyio.to_thread.run_sync(get)
