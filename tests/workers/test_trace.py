"""One trace for each job, from its submission to its settlement, in the order and nesting of its road."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from h2kbus.client import Bus
from h2kbus.telemetry import Telemetry
from h2kbus.tracing import OpenTelemetryTracer
from subjects.codec import decode
from subjects.record import LaneMessage
from tests.conftest import Fleet, rehearsal

pytestmark = pytest.mark.anyio

RFC = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Trace:
    """The spans of a test, once they have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    async def named(self, name: str, count: int = 1) -> list[ReadableSpan]:
        with anyio.fail_after(15):
            while len(found := [each for each in self.spans if each.name == name]) < count:
                await anyio.sleep(0.01)
        return found

    def road(self, span: ReadableSpan) -> list[str]:
        """The names from the root to this span."""
        by_id = {each.context.span_id: each for each in self.spans if each.context}
        names = [span.name]
        while span.parent is not None and span.parent.span_id in by_id:
            span = by_id[span.parent.span_id]
            names.insert(0, span.name)
        return names

    def ids(self) -> set[int]:
        return {each.context.trace_id for each in self.spans if each.context}


@pytest.fixture
def trace(bus: Bus, fleet: Fleet) -> Iterator[Trace]:
    """Client, scheduler and worker keep their spans in one place; ask for it before the fleet is started."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = OpenTelemetryTracer(provider)
    bus.tracer, fleet.told = tracer, Telemetry(tracer=tracer)
    yield Trace(exporter)
    provider.shutdown()


@pytest.fixture
async def traced(trace: Trace, fleet: Fleet) -> Trace:
    await fleet.scheduler()
    await fleet.worker()
    return trace


async def test_job_is_one_trace_with_its_steps_inside_each_other(bus: Bus, traced: Trace) -> None:
    await bus.result(await bus.submit(rehearsal(seconds=0.1)))
    await traced.named("attempt")
    assert len(traced.ids()) == 1
    before = ["submit", "intake", "attempt"]
    assert sorted(traced.road(each) for each in traced.spans) == sorted(
        [
            before[:1],
            before[:2],
            before,
            [*before, "claim"],
            [*before, "phase first"],
            [*before, "phase second"],
            [*before, "settle"],
        ]
    )


async def test_tool_is_a_step_of_the_phase_that_ran_it(
    bus: Bus, traced: Trace, vmdk: Path, tmp_path: Path
) -> None:
    await bus.result(
        await bus.submit(rehearsal(operation="convert", image=str(vmdk), output=str(tmp_path))), check=True
    )
    await traced.named("attempt")
    tools = [each for each in traced.spans if each.name == "tool qemu-img"]
    assert len(tools) > 2
    assert {len(traced.road(each)) for each in tools} == {5}
    assert {traced.road(each)[3].partition(" ")[0] for each in tools} == {"phase"}
    assert len(traced.ids()) == 1


async def test_span_says_nothing_that_the_job_does_not_say_of_itself(
    bus: Bus, traced: Trace, vmdk: Path, tmp_path: Path
) -> None:
    """No path and no command line: a trace may be readable by more people than the jobs are."""
    job = rehearsal(operation="convert", image=str(vmdk), output=str(tmp_path), compress="maybe")
    for each in (rehearsal(operation="convert", image=str(vmdk), output=str(tmp_path)), job):
        await bus.result(await bus.submit(each))
    await traced.named("refuse")
    await traced.named("attempt")
    told = " ".join(each.to_json() for each in traced.spans)
    assert str(tmp_path) not in told
    assert str(vmdk.parent) not in told
    assert "maybe" not in told


async def test_failed_attempt_and_its_phase_have_the_error_s_code(bus: Bus, traced: Trace) -> None:
    job = rehearsal(fail="IMAGE_UNSAFE", seconds=0.1)
    await bus.result(await bus.submit(job))
    [attempt] = await traced.named("attempt")
    [phase] = await traced.named("phase second")
    for span in (attempt, phase):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "IMAGE_UNSAFE")
    [earlier] = await traced.named("phase first")
    assert earlier.status.status_code is StatusCode.UNSET


async def test_refused_job_has_an_error_in_its_trace(bus: Bus, traced: Trace) -> None:
    await bus.result(await bus.submit(rehearsal(operation="frob")))
    [refusal] = await traced.named("refuse")
    await traced.named("intake")
    assert refusal.status.status_code is StatusCode.ERROR
    assert traced.road(refusal) == ["submit", "intake", "refuse"]


@pytest.mark.slow
async def test_every_attempt_of_a_job_is_in_its_one_trace(bus: Bus, traced: Trace) -> None:
    await bus.result(
        await bus.submit(rehearsal(fail="TOOL_FAILED", fail_until_attempt=2, policy={"retry_count": 1}))
    )
    attempts = await traced.named("attempt", 2)
    assert [each.attributes["h2kbus.attempt"] for each in attempts if each.attributes] == [1, 2]
    assert len(traced.ids()) == 1


async def test_many_jobs_have_a_trace_each(bus: Bus, traced: Trace) -> None:
    ids = [job_id async for job_id in bus.submit_many(rehearsal() for _ in range(5))]
    async for _ in bus.results(ids):
        pass
    await traced.named("attempt", 5)
    assert len(traced.ids()) == 5


async def test_retried_job_has_a_trace_of_its_own(bus: Bus, traced: Trace) -> None:
    first = await bus.submit(rehearsal())
    await bus.result(first)
    second = await bus.retry(first)
    await bus.verdict(second)
    await bus.result(second)
    await traced.named("attempt", 2)
    roads = [traced.road(each) for each in await traced.named("attempt", 2)]
    assert roads == [["submit", "intake", "attempt"], ["retry", "intake", "attempt"]]


async def test_trace_of_a_foreign_client_goes_on(bus: Bus, traced: Trace) -> None:
    """The header is W3C's: whoever publishes a command with it finds the job in the trace."""
    await submit_with_header(bus, RFC)
    await bus.result("foreign")
    [attempt] = await traced.named("attempt")
    assert {f"{each:032x}" for each in traced.ids()} == {RFC.split("-")[1]}
    assert traced.road(attempt) == ["intake", "attempt"]


async def submit_with_header(bus: Bus, traceparent: str) -> None:
    _, subject, body = bus._command(rehearsal(job_id="foreign"))
    await bus.connection.publish(subject, body, {"traceparent": traceparent})
    await bus.verdict("foreign", timeout=10)


@pytest.mark.parametrize(
    "header", ["", "00-x", f"00-{'0' * 32}-{'1' * 16}-01", RFC + "0", RFC.upper(), "ü" * 5000]
)
async def test_header_that_is_no_trace_context_is_left_alone(bus: Bus, fleet: Fleet, header: str) -> None:
    await fleet.scheduler()
    await submit_with_header(bus, header)
    assert (await bus.status("foreign")).traceparent is None


async def test_trace_passes_through_a_fleet_that_keeps_no_spans(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await submit_with_header(bus, RFC)
    assert (await bus.status("foreign")).traceparent == RFC


@pytest.mark.slow
async def test_message_that_is_put_back_into_its_lane_carries_the_trace(bus: Bus, fleet: Fleet) -> None:
    """The trace is a part of the record, so that no way of a message to its lane can lose it."""
    await fleet.scheduler(lease_seconds=3.0)
    await submit_with_header(bus, RFC)
    stream, record = bus.topology.jobs_stream, await bus.status("foreign")
    subject = bus.grammar.job(record.pool, record.lane, record.priority, record.job_id)
    await bus.connection.api(f"STREAM.PURGE.{stream}", {"filter": subject})
    assert await bus.connection.get_last(stream, subject) is None
    with anyio.fail_after(30):
        while (stored := await bus.connection.get_last(stream, subject)) is None:
            await anyio.sleep(0.05)
    assert decode(LaneMessage, stored.data).record.traceparent == RFC


async def test_fleet_without_a_tracer_leaves_no_trace_in_a_record(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    record = await bus.result(job_id)
    assert record.traceparent is None
