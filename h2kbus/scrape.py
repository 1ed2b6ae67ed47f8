"""The endpoint that Prometheus scrapes: one page over HTTP, small, bounded, and off unless asked for."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream

from h2kbus.errors import SettingsError

log = logging.getLogger("h2kbus.metrics")

DEFAULT_ADDRESS: Final = "127.0.0.1"
PATH: Final = "/metrics"
REQUEST_SECONDS: Final = 5.0
"""How long one request may take from its first byte to its last."""
MAX_REQUEST_BYTES: Final = 8192
AT_ONCE: Final = 64
"""More clients than this wait to be let in, so that they cannot use up the files of a process at work."""
PAUSE_SECONDS: Final = 1.0
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN: Final = "text/plain; charset=utf-8"


@contextlib.asynccontextmanager
async def scraped(page: Callable[[], bytes], address: str, port: int) -> AsyncIterator[str]:
    """Serve the page while the context lasts; gives its URL. Port 0 takes a free one.

    Raises SettingsError for an address that cannot be listened on.
    """
    try:
        listener = await anyio.create_tcp_listener(local_host=address, local_port=port)
    except OSError as error:
        raise SettingsError(f"metrics cannot be served at {address}:{port}: {error.strerror}") from None
    async with listener, anyio.create_task_group() as group:
        for each in listener.listeners:
            if isinstance(each, SocketListener):
                group.start_soon(_let_in, each, page)
        bound = listener.extra(SocketAttribute.local_port)  # noqa: S610 - this is no query
        host = f"[{address}]" if ":" in address else address
        yield f"http://{host}:{bound}{PATH}"
        group.cancel_scope.cancel()


async def _let_in(listener: SocketListener, page: Callable[[], bytes]) -> None:
    room = anyio.Semaphore(AT_ONCE)

    async def serve(stream: SocketStream) -> None:
        try:
            async with stream:
                with anyio.move_on_after(REQUEST_SECONDS), contextlib.suppress(anyio.BrokenResourceError):
                    await stream.send(_answer(await _request_line(stream), page))
        finally:
            room.release()

    async with anyio.create_task_group() as clients:
        while True:
            await room.acquire()
            try:
                clients.start_soon(serve, await listener.accept())
            except OSError as error:
                # Without a file to spare nobody is let in, and the jobs of the process go on.
                log.warning("nobody can be shown the metrics: %s", error.strerror)
                room.release()
                await anyio.sleep(PAUSE_SECONDS)


async def _request_line(stream: SocketStream) -> str:
    """The first line of a request, once its head has been read; empty for what is none."""
    head = b""
    with contextlib.suppress(anyio.EndOfStream):
        while b"\r\n\r\n" not in head and len(head) < MAX_REQUEST_BYTES:
            head += await stream.receive(MAX_REQUEST_BYTES)
    return head.partition(b"\r\n")[0].decode("ascii", "replace") if b"\r\n\r\n" in head else ""


def _answer(line: str, page: Callable[[], bytes]) -> bytes:
    words = line.split()
    if len(words) != len(("method", "target", "version")):
        return _response("400 Bad Request", _PLAIN, b"no request\n")
    method, target, _ = words
    if target.partition("?")[0] != PATH:
        return _response("404 Not Found", _PLAIN, b"see /metrics\n")
    if method not in {"GET", "HEAD"}:
        return _response("405 Method Not Allowed", _PLAIN, b"GET only\n")
    try:
        return _response("200 OK", _CONTENT_TYPE, page() if method == "GET" else b"")
    except Exception:
        # A defect of the page must not end the jobs of the process that shows it.
        log.exception("the metrics cannot be shown")
        return _response("500 Internal Server Error", _PLAIN, b"see the log\n")


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
