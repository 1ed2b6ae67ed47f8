"""How to reach the bus: from flags, the environment and NATS contexts, in one order.

A flag beats an `H2KBUS_*` variable, which beats the NATS context, which beats the `NATS_*` variables that
other NATS tools read. An empty variable counts as unset. Nothing here reads the environment by itself.
"""

import getpass
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from h2kbus.contexts import load_context
from h2kbus.errors import SettingsError
from h2kbus.local_servers import token_of
from subjects.grammar import DEFAULT_ROOT, Grammar
from subjects.identity import submitter_of
from subjects.permissions import user_of

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
DEFAULT_API_PREFIX: Final = "$JS.API"
_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_SECRETS: Final = ("password", "token")
_FILES: Final = ("creds", "nkey", "tls_ca", "tls_cert", "tls_key", "sign_key")
_NATS_VARIABLES: Final = {
    "url": "NATS_URL",
    "creds": "NATS_CREDS",
    "nkey": "NATS_NKEY",
    "user": "NATS_USER",
    "password": "NATS_PASSWORD",
    "token": "NATS_TOKEN",
    "tls_ca": "NATS_CA",
    "tls_cert": "NATS_CERT",
    "tls_key": "NATS_KEY",
}


class ConnectionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bus is and who we are there. `url` may name several servers, separated by commas.

    `sign_key` is the file of a seed that submitted jobs are signed with.
    `connect_timeout_seconds` bounds the first connection; later ones are tried for ever. Secrets are
    left out of the text form.
    """

    url: str = DEFAULT_URL
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    sign_key: str | None = None
    inbox_prefix: str | None = None
    api_prefix: str = DEFAULT_API_PREFIX
    root: str = DEFAULT_ROOT
    name: str = "h2kbus"
    connect_timeout_seconds: float = 5.0
    accept_old_server: bool = False

    def __repr__(self) -> str:
        shown = {field: getattr(self, field) for field in self.__struct_fields__ if getattr(self, field)}
        hidden = dict.fromkeys(shown.keys() & set(_SECRETS), "***")
        text = ", ".join(
            f"{field}={value!r}" for field, value in {**shown, "url": self.display_url, **hidden}.items()
        )
        return f"ConnectionSettings({text})"

    @property
    def servers(self) -> list[str]:
        return [each.strip() for each in self.url.split(",") if each.strip()]

    @property
    def display_url(self) -> str:
        """The servers without what stands before an `@`: fit for messages and logs."""
        return ",".join(_without_secret(server) for server in self.servers)

    def submitter(self) -> str:
        """Who submits, as a subject token: the configured user, else the local user.

        Whoever connects by a key is the one whose private inbox it is.
        """
        return submitter_of(self.person())

    def person(self) -> str:
        """Who submits, as people write it."""
        return self.user or user_of(self.inbox_prefix) or _local_user()

    def with_local_token(self, env: Mapping[str, str]) -> "ConnectionSettings":
        """The same with the token of `h2kbus up` on this machine, if nothing else says who we are."""
        given = (self.creds, self.nkey, self.user, self.password, self.token)
        if any(given) or len(self.servers) != 1:
            return self
        return msgspec.structs.replace(self, token=token_of(self.url, env))

    @classmethod
    def resolve(cls, flags: Mapping[str, str | None], env: Mapping[str, str]) -> "ConnectionSettings":
        """Put the settings together. `flags` are named as the fields, plus `context`.

        Raises SettingsError naming the setting that makes no sense or the file that cannot be read.
        """
        context = load_context(
            flags.get("context") or env.get("H2KBUS_CONTEXT") or env.get("NATS_CONTEXT"), env
        )
        chosen: dict[str, Any] = {}
        for field in cls.__struct_fields__:
            sources = (
                flags.get(field),
                env.get(f"H2KBUS_{field.upper()}"),
                context.get(field),
                env.get(_NATS_VARIABLES.get(field, "")),
            )
            value = next((each for each in sources if each), None)
            if value is not None:
                chosen[field] = value
        try:
            return _checked(msgspec.convert(chosen, cls, strict=False)).with_local_token(env)
        except msgspec.ValidationError as error:
            raise SettingsError(f"a setting makes no sense: {error}") from None


def _checked(settings: ConnectionSettings) -> ConnectionSettings:
    for server in settings.servers:
        _check_address(server)
    if not 0 < settings.connect_timeout_seconds < math.inf:
        raise SettingsError("connect_timeout_seconds is a number of seconds above 0")
    if not settings.servers:
        raise SettingsError("url names no server")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingsError("tls_cert and tls_key belong together: give both or none")
    for field in _FILES:
        path = getattr(settings, field)
        if path and not _readable(path):
            raise SettingsError(f"{field}: {path} cannot be read")
    Grammar(settings.root)
    return msgspec.structs.replace(
        settings,
        **{each: str(Path(getattr(settings, each)).absolute()) for each in _FILES if getattr(settings, each)},
    )


def _readable(path: str) -> bool:
    try:
        return os.access(path, os.R_OK)
    except ValueError:
        # A context may hold characters that no file's name can.
        return False


def _check_address(server: str) -> None:
    try:
        parts = urlsplit(server if "://" in server else f"nats://{server}")
        fits = parts.scheme in _SCHEMES and (parts.port is None or parts.port > 0)
    except ValueError as error:
        # The words of the parser may quote what stands before the `@`.
        raise SettingsError(f"url: {type(error).__name__} in one of the addresses") from None
    if not fits:
        raise SettingsError(f"url {_without_secret(server)!r}: use one of {', '.join(_SCHEMES)}")


def _without_secret(server: str) -> str:
    parts = urlsplit(server if "://" in server else f"nats://{server}")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
