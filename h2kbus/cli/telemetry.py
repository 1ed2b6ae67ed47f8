"""What a process tells of itself, put together: the options, the metrics' endpoint, and where spans go."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Annotated, Final

import msgspec
import typer

from h2kbus.cli.exits import say
from h2kbus.errors import SettingsError
from h2kbus.logs import LogFormat
from h2kbus.scrape import DEFAULT_ADDRESS, scraped
from h2kbus.telemetry import UNTRACED, Observer, Telemetry, Tracer, unobserved

MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        envvar="H2KBUS_METRICS_PORT",
        help="Serve Prometheus metrics on this port; 0 takes a free one [off].",
    ),
]
MetricsAddress = Annotated[
    str, typer.Option(envvar="H2KBUS_METRICS_ADDRESS", help="The address to serve metrics on.")
]
Format = Annotated[
    LogFormat, typer.Option("--log-format", envvar="H2KBUS_LOG_FORMAT", help="How the log on stderr looks.")
]
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Outlet(msgspec.Struct, frozen=True):
    """Where the metrics of a process are served, if anywhere. Port 0 takes a free one."""

    port: int | None = None
    address: str = DEFAULT_ADDRESS


@contextlib.asynccontextmanager
async def telemetry(outlet: Outlet, operations: Iterable[str], service: str) -> AsyncIterator[Telemetry]:
    """Serve metrics and send spans while the context lasts, as the options and the environment want it.

    Raises SettingsError for an extra that is not installed, and for an address that cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(tracing(os.environ, service))
        observe: Observer = unobserved
        if outlet.port is not None:
            observe, page = _metrics(operations)
            url = await stack.enter_async_context(scraped(page, outlet.address, outlet.port))
            say(f"metrics at {url}")
        yield Telemetry(observe, tracer)


def _metrics(operations: Iterable[str]) -> tuple[Observer, Callable[[], bytes]]:
    try:
        from h2kbus.metrics import Metrics
    except ImportError:
        raise SettingsError("metrics are not installed: pip install 'h2kbus[metrics]'") from None
    metrics = Metrics(operations)
    return metrics, metrics.text


@contextlib.asynccontextmanager
async def tracing(env: Mapping[str, str], service: str) -> AsyncIterator[Tracer]:
    """The tracer that the environment wants. Raises SettingsError where that is not installed."""
    if not is_traced(env):
        yield UNTRACED
        return
    try:
        from h2kbus.tracing import traced
    except ImportError:
        raise SettingsError(
            "OTEL_* variables ask for spans, which are not installed: pip install 'h2kbus[tracing]'"
        ) from None
    async with traced(env, service) as tracer:
        yield tracer


def is_traced(env: Mapping[str, str]) -> bool:
    """Whether the environment says where spans go: by an exporter's name, or by an OTLP endpoint."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    named = env.get("OTEL_TRACES_EXPORTER")
    return named != "none" if named else any(env.get(each) for each in _ENDPOINTS)
