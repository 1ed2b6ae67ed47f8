"""What is said to a server on connecting, and what its answer must be."""

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client

from h2kbus.errors import (
    BusError,
    BusUnreachable,
    ErrorCode,
    PermissionDenied,
    ServerUnfit,
    SettingsError,
    TlsFailed,
)
from h2kbus.settings import DEFAULT_API_PREFIX, ConnectionSettings

RECONNECT_SECONDS: Final = 0.25

_OLDEST: Final = (2, 12, 0)
"""The first release that has what the guarantees rest on."""
_FIXED: Final[Mapping[tuple[int, ...], tuple[int, ...]]] = {
    (2, 12): (2, 12, 12),
    (2, 13): (2, 14, 3),
    (2, 14): (2, 14, 3),
}
"""The first release of each line with the security fixes that are known; later lines have them all."""
_SEED: Final = re.compile(rb"SU[A-Z2-7]{56}")
_CREDS: Final = re.compile(
    rb"\s*-+BEGIN NATS USER JWT-+\s+[\w.-]+\s+-+END NATS USER JWT-+\s.*"
    rb"-+BEGIN USER NKEY SEED-+\s+SU[A-Z2-7]{56}\s",
    re.DOTALL,
)


def client_options(settings: ConnectionSettings) -> dict[str, Any]:
    """The NATS client's options. Raises SettingsError for TLS files that cannot be used."""
    given = {
        "user": settings.user,
        "password": settings.password,
        "token": settings.token,
        "user_credentials": _creds(settings),
        "nkeys_seed": _seed(settings),
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


def connect_error(settings: ConnectionSettings, client: Client, errors: list[Exception]) -> BusError:
    """What kept us from connecting, in words that hold no secret."""
    where = settings.display_url
    # The server hangs up after refusing, so its refusal need not be the last thing that happened.
    if any(map(_is_refusal, errors)):
        return PermissionDenied(f"{where} refused these credentials")
    untrusted = next((each for each in errors if isinstance(each, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        return TlsFailed(f"the certificate of {where} is not to be trusted: {untrusted.verify_message}")
    info = client._server_info  # noqa: SLF001 - the client has no public word for what the server wants
    if errors and info.get("tls_verify") and not settings.tls_cert:
        return TlsFailed(f"{where} wants a certificate of its clients, and none was given")
    refused = next((each for each in errors if isinstance(each, ssl.SSLError)), None)
    if refused is not None:
        return TlsFailed(f"{where} did not agree on TLS: {refused.reason or refused}")
    last = (str(errors[-1]) or type(errors[-1]).__name__) if errors else "it did not answer"
    return BusUnreachable(f"no NATS server answers at {where} ({last})")


def is_hopeless(errors: list[Exception], servers: int) -> bool:
    """Whether each of the servers has refused us in a way that waiting does not mend."""
    final = [each for each in errors if isinstance(each, _FINAL) or _is_refusal(each)]
    return len(final) >= servers


_FINAL: Final = (ConnectionRefusedError, ssl.SSLError)


def _is_refusal(error: Exception) -> bool:
    words = str(error).lower()
    return "authorization" in words or "authentication" in words


def check_server(client: Client, settings: ConnectionSettings) -> None:
    """Refuse a server below the floor of our guarantees, one with known holes, or one without JetStream.

    `accept_old_server` lets one with known holes pass: on a network of one's own there may be reasons.
    The server tells of JetStream in the own account of the user, which another API prefix leads out of.
    """
    version = client.connected_server_version
    objection = objection_to((version.major, version.minor, version.patch), settings.accept_old_server)
    if objection is not None:
        raise ServerUnfit(objection)
    if settings.api_prefix == DEFAULT_API_PREFIX and not server_info(client).get("jetstream"):
        raise ServerUnfit("the server runs without JetStream", code=ErrorCode.JETSTREAM_MISSING)


def objection_to(release: tuple[int, int, int], accept_old: bool) -> str | None:  # noqa: FBT001 - as it is set
    """Why a release of nats-server will not do, in words; None for one that will."""
    words = f"nats-server {'.'.join(map(str, release))}"
    if release < _OLDEST:
        return f"{words} is too old"
    if not (accept_old or has_fixes(release)):
        return f"{words} lacks fixes of known security holes (H2KBUS_ACCEPT_OLD_SERVER=true lets it pass)"
    return None


def has_fixes(release: tuple[int, ...]) -> bool:
    """Whether a release has the security fixes that are known."""
    return release >= _FIXED.get(release[:2], (2, 12, 12))


def server_info(client: Client) -> Mapping[str, Any]:
    """What the server said of itself on connecting."""
    info: Mapping[str, Any] = client._server_info  # noqa: SLF001 - the client has no public word for most of it
    return info


def _seed(settings: ConnectionSettings) -> str | None:
    """The file of the key, if it holds one: the client itself fails on anything else without a word."""
    if settings.nkey is None:
        return None
    try:
        sound = _SEED.fullmatch(Path(settings.nkey).read_bytes().strip())
    except OSError as error:
        raise SettingsError(f"nkey: {settings.nkey} cannot be read: {error.strerror}") from None
    if sound is None:
        raise SettingsError(f"nkey: {settings.nkey} holds no seed of a user's key")
    return settings.nkey


def _creds(settings: ConnectionSettings) -> str | None:
    """The file of the credentials, if it holds some, for the same reason."""
    if settings.creds is None:
        return None
    try:
        sound = _CREDS.match(Path(settings.creds).read_bytes())
    except OSError as error:
        raise SettingsError(f"creds: {settings.creds} cannot be read: {error.strerror}") from None
    if sound is None:
        raise SettingsError(f"creds: {settings.creds} holds no credentials of a user")
    return settings.creds


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
