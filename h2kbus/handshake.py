"""What is said to a server on connecting, and what its answer must be."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client

from h2kbus.errors import BusError, BusUnreachable, ErrorCode, PermissionDenied, ServerUnfit, SettingsError
from h2kbus.settings import ConnectionSettings

RECONNECT_SECONDS: Final = 0.25

# The first release of each line that has what the guarantees rest on.
_FLOORS: Final = {(2, 12): (2, 12, 0), (2, 13): (2, 14, 3), (2, 14): (2, 14, 0)}
_OLDEST: Final = (2, 12, 0)


def client_options(settings: ConnectionSettings) -> dict[str, Any]:
    """The NATS client's options. Raises SettingsError for TLS files that cannot be used."""
    given = {
        "user": settings.user,
        "password": settings.password,
        "token": settings.token,
        "user_credentials": settings.creds,
        "nkeys_seed": settings.nkey,
        "inbox_prefix": settings.inbox_prefix,
        "tls": _tls(settings),
    }
    return {
        "servers": settings.servers,
        "name": settings.name,
        "reconnect_time_wait": RECONNECT_SECONDS,
        # For ever: a bus that comes back must find us. The first connect has a deadline of its own.
        "max_reconnect_attempts": -1,
        # The default of two minutes would hide a dead link for four.
        "ping_interval": 20,
        # The grammar has checked every subject already.
        "skip_subject_validation": True,
        **{name: value for name, value in given.items() if value is not None},
    }


def connect_error(settings: ConnectionSettings, errors: list[Exception]) -> BusError:
    """What kept us from connecting, in words that hold no secret."""
    words = [str(error) or type(error).__name__ for error in errors]
    # The server hangs up after refusing, so its refusal need not be the last thing that happened.
    if any("authorization" in each.lower() or "authentication" in each.lower() for each in words):
        return PermissionDenied(f"{settings.display_url} refused these credentials")
    last = words[-1] if words else "it did not answer"
    return BusUnreachable(f"no NATS server answers at {settings.display_url} ({last})")


def all_refused(errors: list[Exception], servers: int) -> bool:
    """Whether each of the servers has refused the connection."""
    refused = [error for error in errors if isinstance(error, ConnectionRefusedError)]
    return len(refused) >= servers


def check_server(client: Client) -> None:
    """Refuse a server below the floor of our guarantees, or one without JetStream."""
    version = client.connected_server_version
    release = (version.major, version.minor, version.patch)
    if release < _FLOORS.get(release[:2], _OLDEST):
        raise ServerUnfit(f"nats-server {'.'.join(map(str, release))} is too old")
    if not server_info(client).get("jetstream"):
        raise ServerUnfit("the server runs without JetStream", code=ErrorCode.JETSTREAM_MISSING)


def server_info(client: Client) -> Mapping[str, Any]:
    """What the server said of itself on connecting."""
    info: Mapping[str, Any] = client._server_info  # noqa: SLF001 - the client has no public word for most of it
    return info


def _tls(settings: ConnectionSettings) -> ssl.SSLContext | None:
    wants_tls = any(server.startswith(("tls://", "wss://")) for server in settings.servers)
    if not (settings.tls_ca or settings.tls_cert or wants_tls):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_cert:
            context.load_cert_chain(Path(settings.tls_cert), settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the TLS files cannot be used: {error}") from None
    return context
