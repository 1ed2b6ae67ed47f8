"""What all commands share: the connection options and `--json`, wherever they stand on the line."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from h2kbus.cli.telemetry import tracing
from h2kbus.client import Bus, connect
from h2kbus.settings import ConnectionSettings

VALUED: Final = (
    "--url",
    "--creds",
    "--nkey",
    "--tls-ca",
    "--tls-cert",
    "--tls-key",
    "--sign-key",
    "--context",
    "--root",
)
SWITCHES: Final = ("--json",)


class Invocation(msgspec.Struct, frozen=True):
    """The shared options of one call of the program."""

    flags: Mapping[str, str | None]
    json: bool

    def settings(self, name: str = "h2kbus-cli") -> ConnectionSettings:
        """Flags, environment and contexts put together. Raises SettingsError."""
        return ConnectionSettings.resolve({**self.flags, "name": name}, os.environ)

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        async with connect(settings=self.settings()) as bus:
            yield bus

    @contextlib.asynccontextmanager
    async def traced_bus(self) -> AsyncIterator[Bus]:
        """A bus whose submissions begin traces, if the environment says where spans go."""
        settings = self.settings()
        async with (
            tracing(os.environ, settings.name) as tracer,
            connect(settings=settings, tracer=tracer) as bus,
        ):
            yield bus


def hoist(argv: Sequence[str]) -> list[str]:
    """Move the shared options in front of the command, so that they may stand anywhere.

    What follows `--` is left alone.
    """
    shared: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in SWITCHES or (word.partition("=")[0] in VALUED and "=" in word):
            shared.append(word)
        elif word in VALUED:
            shared += [word, *_value(words)]
        else:
            rest.append(word)
    return [*shared, *rest]


def _value(words: Any) -> list[str]:
    following = next(words, None)
    return [] if following is None else [following]
