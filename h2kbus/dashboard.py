"""The page for browsers, served as static files. It is a NATS client itself: nothing of the bus comes here.

The files are read once, at the start. A request can name one of them and nothing else, so there is no
path to escape from and no directory to list.
"""

import contextlib
import hashlib
import http.server
import ipaddress
import json
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib import resources
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from h2kbus.embedded import DEFAULT_PORT as DEFAULT_BUS_PORT
from h2kbus.embedded import DEFAULT_WEBSOCKET_PORT, Pages
from h2kbus.errors import SettingsError
from h2kbus.settings import ConnectionSettings

DEFAULT_PORT: Final = 4281
LOOPBACK: Final = "127.0.0.1"
POLL_SECONDS: Final = 0.1
REQUEST_SECONDS: Final = 10.0
"""A browser that sends or takes nothing for this long is let go."""
AT_ONCE: Final = 64
"""Ten browsers with the six connections that each opens; more clients than this are refused."""

_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_WEBSOCKET_SCHEMES: Final = {"nats": "ws", "tls": "wss"}
_ORIGIN: Final = re.compile(r"https?://[^/?#@\s]+")


class PageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the page is told: where the bus is, and by which names. No secrets: everybody may read it."""

    websocket: str
    root: str
    submitter: str
    inboxPrefix: str = ""  # noqa: N815 - read by JavaScript
    apiPrefix: str = ""  # noqa: N815 - read by JavaScript


class StaticFile(msgspec.Struct, frozen=True):
    """One file as it is sent."""

    content: bytes
    kind: str
    tag: str


def websocket_url(settings: ConnectionSettings, given: str | None) -> str:
    """Where the page finds the bus: as given, or beside the server that commands use.

    Raises SettingsError for what is no WebSocket address.
    """
    if given is None:
        parts = urlsplit(
            settings.servers[0] if "://" in settings.servers[0] else f"nats://{settings.servers[0]}"
        )
        if parts.scheme not in _WEBSOCKET_SCHEMES:
            return f"{parts.scheme}://{_address(parts.hostname, parts.port)}"
        return f"{_WEBSOCKET_SCHEMES[parts.scheme]}://{_address(parts.hostname, DEFAULT_WEBSOCKET_PORT)}"
    try:
        parts = urlsplit(given)
        fits = parts.scheme in ("ws", "wss") and parts.hostname and not parts.username and (parts.port or 1)
    except ValueError:
        fits = False
    if not fits or re.search(r"[\s;,'\"]", given):
        raise SettingsError("--websocket: give ws://host:port or wss://host:port, without a user")
    return given


def page_origins(given: Iterable[str] = ()) -> tuple[str, ...]:
    """The origins of pages that may connect: those given, or else those of `h2kbus dashboard`.

    Raises SettingsError for what is no origin.
    """
    found = tuple(given)
    for each in found:
        if not _ORIGIN.fullmatch(each):
            raise SettingsError(f"--page-origin {each!r}: give http://host:port or https://host:port")
    return found or tuple(f"http://{host}:{DEFAULT_PORT}" for host in (LOOPBACK, "localhost"))


def pages_for(port: int, websocket_port: int | None, origins: Iterable[str]) -> Pages:
    """The listener for pages of a bus at this port; a second bus must not want the first's.

    Raises SettingsError for what is no origin.
    """
    usual = DEFAULT_WEBSOCKET_PORT if port == DEFAULT_BUS_PORT else 0
    return Pages(usual if websocket_port is None else websocket_port, page_origins(origins))


def sign_in_link(address: str, token: str | None) -> str:
    """The page's address, with the token where browsers keep it to themselves: after the `#`."""
    return f"{address}#token={quote(token, safe='')}" if token else address


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PageServer(http.server.ThreadingHTTPServer):
    """Serves the page. Port 0 takes a free one. Raises SettingsError if it cannot listen."""

    daemon_threads = True
    timeout = POLL_SECONDS

    def __init__(self, host: str, port: int, page: PageSettings) -> None:
        self.files = static_files(page)
        self.policy = content_policy(page.websocket)
        self._room = threading.BoundedSemaphore(AT_ONCE)
        try:
            super().__init__((host, port), _Request)
        except OSError as error:
            raise SettingsError(f"cannot listen at {_address(host, port)}: {error.strerror}") from None

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{_address(str(host), port)}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # There is no thread for it.
            self._room.release()
            self._refuse(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def _refuse(self, request: Any) -> None:
        """Say so without waiting; what has been asked is taken, or else the answer would be lost with it."""
        with contextlib.suppress(OSError):
            request.settimeout(0)
            request.sendall(_FULL)
            request.recv(_TAKEN_BYTES)
        self.shutdown_request(request)

    def handle_error(self, *where: Any) -> None:
        """A browser that went away is no news either."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*where)

    def serve_until(self, stopped: threading.Event) -> None:
        """Answer clients, each in a thread of its own, until told to stop."""
        while not stopped.is_set():
            self.handle_request()


class _Request(http.server.BaseHTTPRequestHandler):
    server: PageServer
    timeout = REQUEST_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "h2kbus"
    sys_version = ""

    def do_GET(self) -> None:
        file = self._file()
        if file is not None and self._send(HTTPStatus.OK, file) is HTTPStatus.OK:
            self.wfile.write(file.content)

    def do_HEAD(self) -> None:
        file = self._file()
        if file is not None:
            self._send(HTTPStatus.OK, file)

    def _file(self) -> StaticFile | None:
        try:
            file = self.server.files.get(urlsplit(self.path).path)
        except ValueError:
            file = None
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        return file

    def _send(self, status: HTTPStatus, file: StaticFile) -> HTTPStatus:
        """The head of an answer; what the browser has already is not sent again."""
        if self.headers.get("If-None-Match") == file.tag:
            status = HTTPStatus.NOT_MODIFIED
        self.send_response(status)
        self.send_header("ETag", file.tag)
        if status is HTTPStatus.OK:
            self.send_header("Content-Type", file.kind)
            self.send_header("Content-Length", str(len(file.content)))
        self.end_headers()
        return status

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", self.server.policy)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Requests for static files are no news."""


_TAKEN_BYTES: Final = 64 * 1024
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def content_policy(websocket: str) -> str:
    """What the page may load and reach: its own files, and the one bus it is for."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            f"connect-src 'self' {websocket}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def static_files(page: PageSettings) -> dict[str, StaticFile]:
    """Every path that can be asked for."""
    folder = resources.files("h2kbus.pages")
    files = {f"/{name}": _static((folder / name).read_bytes(), kind) for name, kind in _TYPES.items()}
    settings = json.dumps(msgspec.to_builtins(page)).encode()
    return {**files, "/": files["/index.html"], "/settings.json": _static(settings, "application/json")}


def _static(content: bytes, kind: str) -> StaticFile:
    return StaticFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _address(host: str | None, port: int | None) -> str:
    name = f"[{host}]" if host and ":" in host else host or LOOPBACK
    return f"{name}:{port}" if port else name
