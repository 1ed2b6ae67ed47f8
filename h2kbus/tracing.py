"""Spans in OpenTelemetry: the tracer behind the port of `h2kbus.telemetry`, loaded only where it is wanted.

Where spans go, and how many of them, is said by the standard `OTEL_*` variables.
"""

import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

import anyio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from h2kbus.errors import SettingsError
from h2kbus.telemetry import TRACEPARENT, Span

FLUSH_SECONDS: Final = 3.0
"""How long a process that ends waits for its last spans to be taken."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()


class OpenTelemetrySpan:
    """One step, as OpenTelemetry keeps it. Its facts are ids, names and numbers: no path, no message."""

    def __init__(self, span: trace.Span, tracer: trace.Tracer) -> None:
        self._span = span
        self._tracer = tracer

    @property
    def traceparent(self) -> str | None:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier.get(TRACEPARENT)

    def child(
        self, name: str, began_ns: int, ended_ns: int, *, failure: str = "", **facts: str | int
    ) -> Span:
        """Add a step inside this one that is over. Times are nanoseconds since 1970."""
        context = trace.set_span_in_context(self._span, Context())
        span = self._tracer.start_span(name, context, attributes=_named(facts), start_time=began_ns)
        child = OpenTelemetrySpan(span, self._tracer)
        if failure:
            child.fail(failure)
        span.end(max(ended_ns, began_ns))
        return child

    def fail(self, code: str) -> None:
        """Say that this step did not succeed."""
        self._span.set_status(trace.StatusCode.ERROR, code)


class OpenTelemetryTracer:
    """Keeps spans with a provider. A span without a parent goes on from the application's current one."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer("h2kbus")

    @contextlib.contextmanager
    def span(
        self, name: str, parent: str | None = None, *, began_ns: int | None = None, **facts: str | int
    ) -> Iterator[Span]:
        """Open a span that ends with the context; what is raised inside makes it one that failed."""
        context = _PROPAGATOR.extract({TRACEPARENT: parent}, Context()) if parent else None
        span = self._tracer.start_span(name, context, attributes=_named(facts), start_time=began_ns)
        step = OpenTelemetrySpan(span, self._tracer)
        try:
            yield step
        except Exception as error:
            step.fail(type(error).__name__)
            raise
        finally:
            span.end()


@contextlib.asynccontextmanager
async def traced(env: Mapping[str, str], service: str) -> AsyncIterator[OpenTelemetryTracer]:
    """The tracer of one process; at the end its last spans are sent.

    `service` names the process unless the environment does. Raises SettingsError for an exporter that is
    not known.
    """
    # The SDK's own name for a process without one says nothing.
    resource = Resource({"service.name": service})
    provider = TracerProvider(resource=resource.merge(_of_environment()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(env.get("OTEL_TRACES_EXPORTER") or "otlp")))
    try:
        yield OpenTelemetryTracer(provider)
    finally:
        with anyio.CancelScope(shield=True):
            await _shut_down(provider)


def _of_environment() -> Resource:
    found = dict(Resource.create().attributes)
    if str(found.get("service.name", "")).startswith("unknown_service"):
        del found["service.name"]
    return Resource(found)


def _exporter(name: str) -> SpanExporter:
    if name == "otlp":
        return OTLPSpanExporter()
    if name == "console":
        return ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: f"{span.to_json(indent=None)}\n")
    raise SettingsError(f"OTEL_TRACES_EXPORTER={name!r}: use otlp, console or none")


async def _shut_down(provider: TracerProvider) -> None:
    """An exporter whose endpoint is not there would hold the process up for half a minute."""
    last = threading.Thread(target=provider.shutdown, daemon=True)
    last.start()
    await anyio.to_thread.run_sync(last.join, FLUSH_SECONDS)


def _named(facts: Mapping[str, str | int]) -> dict[str, str | int]:
    return {f"h2kbus.{name}": value for name, value in facts.items()}
