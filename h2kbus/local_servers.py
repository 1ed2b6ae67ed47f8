"""Servers that this user runs on this machine: how its clients find their tokens without being told.

`h2kbus up` leaves each server's token in a file of its port under `$XDG_STATE_HOME/h2kbus/servers`
(`~/.local/state` by default), readable by nobody else, for as long as it runs.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from h2kbus.private_files import replace

log = logging.getLogger("h2kbus")

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_DEFAULT_PORT: Final = 4222


@contextlib.contextmanager
def announced(url: str, token: str, env: Mapping[str, str]) -> Iterator[None]:
    """Let this user's clients find the token while the context lasts; where that fails they must be told."""
    file = _file(url, env)
    if file is None:
        yield
        return
    try:
        replace(file, token.encode())
    except OSError as error:
        log.warning("clients have to be given H2KBUS_TOKEN: %s: %s", file, error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if file.read_text(encoding="utf-8") == token:
                file.unlink()


def token_of(url: str, env: Mapping[str, str]) -> str | None:
    """The token of a server of this user at a loopback address, None for any other server."""
    file = _file(url, env)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (file.read_text(encoding="utf-8") or None) if file else None
    return None


def _file(url: str, env: Mapping[str, str]) -> Path | None:
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if parts.scheme != "nats" or parts.username or parts.hostname not in _LOOPBACK:
        return None
    base = env.get("XDG_STATE_HOME") or Path(env.get("HOME") or "/var/lib") / ".local" / "state"
    return Path(base) / "h2kbus" / "servers" / str(parts.port or _DEFAULT_PORT)
