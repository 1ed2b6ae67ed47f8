"""The tracer itself: contexts as W3C writes them, and what the environment says of where spans go."""

import json
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from h2kbus.cli.telemetry import is_traced
from h2kbus.errors import SettingsError
from h2kbus.telemetry import UNTRACED, trace_headers, traceparent_of
from h2kbus.tracing import OpenTelemetryTracer, traced

RFC = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(exporter))
    yield made
    made.shutdown()


@pytest.fixture
def tracer(provider: TracerProvider) -> OpenTelemetryTracer:
    return OpenTelemetryTracer(provider)


def test_context_of_a_span_is_one_that_the_next_step_reads(tracer: OpenTelemetryTracer) -> None:
    with tracer.span("submit") as span:
        assert traceparent_of(trace_headers(span.traceparent)) == span.traceparent is not None


def test_span_goes_on_from_its_parent(tracer: OpenTelemetryTracer) -> None:
    with tracer.span("intake", RFC) as span:
        assert span.traceparent is not None
        _, trace_id, span_id, flags = span.traceparent.split("-")
    assert (trace_id, flags) == (RFC.split("-")[1], "01")
    assert span_id != RFC.split("-")[2]


def test_span_without_a_parent_goes_on_from_the_application_s_own(
    tracer: OpenTelemetryTracer, provider: TracerProvider
) -> None:
    with (
        provider.get_tracer("application").start_as_current_span("request") as own,
        tracer.span("submit") as span,
    ):
        assert span.traceparent is not None
        assert span.traceparent.split("-")[1] == f"{own.get_span_context().trace_id:032x}"


def test_trace_that_is_not_sampled_goes_on_unsampled(
    tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter
) -> None:
    with tracer.span("intake", RFC[:-1] + "0") as span:
        assert span.traceparent is not None
        assert span.traceparent.endswith("-00")
    assert exporter.get_finished_spans() == ()


def test_error_inside_marks_the_span_by_its_kind_and_not_by_its_words(
    tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(ZeroDivisionError), tracer.span("intake"):
        raise ZeroDivisionError("the password is hunter2")
    [span] = exporter.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ZeroDivisionError")
    assert "hunter2" not in span.to_json()


def test_child_never_ends_before_it_began(
    tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter
) -> None:
    """The clock may have been set back meanwhile."""
    with tracer.span("attempt") as span:
        span.child("claim", 2_000, 1_000)
    claim = exporter.get_finished_spans()[0]
    assert claim.start_time == claim.end_time == 2_000


def test_tracer_that_keeps_nothing_passes_the_trace_on() -> None:
    with UNTRACED.span("intake", RFC) as span:
        assert span.child("claim", 1, 2).traceparent == span.traceparent == RFC
    with UNTRACED.span("submit") as span:
        assert span.traceparent is None


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_environment_says_whether_spans_are_kept(env: dict[str, str], wanted: bool) -> None:
    assert is_traced(env) is wanted


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "h2kbus-worker"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs"}, "theirs"),
    ],
)
async def test_process_is_called_as_the_environment_says(
    variables: dict[str, str],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    async with traced({"OTEL_TRACES_EXPORTER": "console"}, "h2kbus-worker") as tracer:
        with tracer.span("attempt"):
            pass
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["resource"]["attributes"]["service.name"] == name


@pytest.mark.anyio
async def test_exporter_that_is_not_known_is_named() -> None:
    with pytest.raises(SettingsError, match="carrier-pigeon"):
        async with traced({"OTEL_TRACES_EXPORTER": "carrier-pigeon"}, "h2kbus-worker"):
            pass
