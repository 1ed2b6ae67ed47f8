"""Metrics, spans and logs of real processes: what is asked for is there, and what is not costs nothing."""

import contextlib
import json
import re
import subprocess
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from subjects.codec import encode
from tests.conftest import REHEARSE, Program, environment, read_ready, rehearsal

pytestmark = pytest.mark.slow


@pytest.fixture
def alone(tmp_path: Path) -> Program:
    """The program on a machine where no bus runs yet."""
    return Program(environment(HOME=str(tmp_path), USER="tester"), tmp_path)


@contextlib.contextmanager
def up(alone: Program, *more: object) -> Iterator["subprocess.Popen[str]"]:
    words = ("up", "--json", "--port", "0", "--data-dir", alone.place / "data", "--operations", REHEARSE)
    with alone.started(*words, *more) as process:
        alone.environment["H2KBUS_URL"] = read_ready(process)["url"]
        yield process


def submit(program: Program, *words: object, **job: object) -> "subprocess.CompletedProcess[str]":
    file = program.place / f"{job.get('job_id', 'job')}.json"
    file.write_bytes(encode(rehearsal(**job)))
    return program("submit", file, *words)


def until(look: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def ended(process: "subprocess.Popen[str]") -> list[str]:
    """Drain a process, and everything that it wrote to stderr."""
    process.terminate()
    _, words = process.communicate(timeout=30)
    return words.splitlines()


def test_up_serves_the_metrics_of_its_scheduler_and_workers(alone: Program) -> None:
    with up(alone, "--metrics-port", "0") as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        url = re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", first)
        assert url, first
        submit(alone, "--wait", job_id="measured", seconds=0.1)

        def page() -> str:
            with urllib.request.urlopen(url[1], timeout=5) as response:
                text: str = response.read().decode()
                return text

        wanted = (
            'h2kbus_jobs_total{code="",operation="rehearse",state="COMPLETED"} 1.0',
            'h2kbus_commands_total{outcome="handled",verb="submit"} 1.0',
            'h2kbus_phase_seconds_count{operation="rehearse",phase="first"} 1.0',
            'h2kbus_fleet_workers{state="active"}',
            "process_resident_memory_bytes",
            "h2kbus_worker_free_slots{",
        )
        until(lambda: all(each in page() for each in wanted))
        assert "measured" not in page()


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_port_of_metrics_that_is_taken_is_a_user_s_mistake(program: Program, role: str) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        done = program(role, "--metrics-port", str(other.server_port))
    assert done.returncode == 2
    assert done.stderr.startswith("h2kbus: BAD_SETTINGS: metrics cannot be served at 127.0.0.1:")


def without(program: Program, module: str) -> None:
    """Make a module one that is not installed."""
    place = program.place / "missing"
    place.mkdir()
    (place / f"{module}.py").write_text(f"raise ImportError('no {module}')\n")
    program.environment["PYTHONPATH"] = f"{place}:{program.environment['PYTHONPATH']}"


@pytest.mark.parametrize(
    ("module", "words", "variables", "extra"),
    [
        ("prometheus_client", ("--metrics-port", "0"), {}, "h2kbus[metrics]"),
        ("opentelemetry", (), {"OTEL_TRACES_EXPORTER": "console"}, "h2kbus[tracing]"),
    ],
)
def test_extra_that_is_not_installed_is_named(
    program: Program, module: str, words: tuple[str, ...], variables: dict[str, str], extra: str
) -> None:
    without(program, module)
    program.environment |= variables
    done = program("scheduler", *words)
    assert done.returncode == 2
    assert f"pip install '{extra}'" in done.stderr


@pytest.mark.parametrize("module", ["prometheus_client", "opentelemetry"])
def test_fleet_works_without_the_extras(alone: Program, module: str) -> None:
    without(alone, module)
    with up(alone):
        assert submit(alone, "--wait").returncode == 0


class Collector:
    """Takes spans by OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805 - `self` is the collector
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                self._take(ExportTraceServiceRequest.FromString(body))
                handler.send_response(200)
                handler.end_headers()

            def log_message(handler, *_: object) -> None:  # noqa: N805 - `self` is the collector
                """A test says nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            [service] = [
                e.value.string_value for e in resource.resource.attributes if e.key == "service.name"
            ]
            for scope in resource.scope_spans:
                self.spans += [(service, span) for span in scope.spans]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def has(self, name: str) -> bool:
        return any(span.name == name for _, span in self.spans)


def test_trace_of_a_job_goes_through_three_processes(program: Program) -> None:
    with Collector() as collector:
        program.environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with (
            program.started("scheduler", "--operations", REHEARSE),
            program.started("worker", "--operations", REHEARSE),
        ):
            until(lambda: program("workers", "--json").stdout)
            submit(program, "--wait", job_id="traced", seconds=0.1)
            submit(program, "--wait", job_id="other", fail="IMAGE_UNSAFE")
            until(lambda: len([span for _, span in collector.spans if span.name == "attempt"]) == 2)
    traces = defaultdict(list)
    for service, span in collector.spans:
        traces[span.trace_id].append((service, span.name))
    assert len(traces) == 2
    [steps] = [each for each in traces.values() if ("h2kbus-worker", "phase second") in each]
    assert sorted(steps) == [
        ("h2kbus-cli", "submit"),
        ("h2kbus-scheduler", "intake"),
        ("h2kbus-worker", "attempt"),
        ("h2kbus-worker", "claim"),
        ("h2kbus-worker", "phase first"),
        ("h2kbus-worker", "phase second"),
        ("h2kbus-worker", "settle"),
    ]
    parents = {span.span_id: span.name for _, span in collector.spans}
    above = {span.name: parents.get(span.parent_span_id) for _, span in collector.spans}
    assert above == {
        "submit": None, "intake": "submit", "attempt": "intake", "claim": "attempt",
        "phase first": "attempt", "phase second": "attempt", "settle": "attempt",
    }  # fmt: skip


def test_collector_that_is_not_there_holds_nobody_up(alone: Program) -> None:
    alone.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    with up(alone) as process:
        assert submit(alone, "--wait").returncode == 0
        process.terminate()
        assert process.wait(20) == 0


def test_exporter_that_is_not_known_is_a_user_s_mistake(program: Program) -> None:
    program.environment["OTEL_TRACES_EXPORTER"] = "carrier-pigeon"
    done = program("scheduler")
    assert done.returncode == 2
    assert "use otlp, console or none" in done.stderr


@pytest.mark.parametrize("variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_spans_that_are_switched_off_need_no_extra(alone: Program, variables: dict[str, str]) -> None:
    without(alone, "opentelemetry")
    alone.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variables}
    with up(alone):
        assert submit(alone, "--wait").returncode == 0


def test_every_line_of_a_json_log_parses_and_names_its_attempt(alone: Program) -> None:
    """Several jobs at once, each of which meets a defect, so that its attempt logs something."""
    ids = [f"job-{number}" for number in range(4)]
    with up(alone, "--workers", "2", "--slots", "2", "--log-format", "json") as process:
        for job_id in ids:
            submit(alone, job_id=job_id, seconds=1, defect=True)
        for job_id in ids:
            alone("watch", job_id)
        workers = [json.loads(line)["worker_id"] for line in alone("workers", "--json").stdout.splitlines()]
        lines = [json.loads(line) for line in ended(process)]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    defects = [line for line in lines if "met a defect" in line["message"]]
    assert sorted(line["job_id"] for line in defects) == ids
    for line in defects:
        assert line["job_id"] in line["message"]
        assert line["attempt"] == 1
        assert "ZeroDivisionError" in line["exception"]
    assert {line["worker_id"] for line in defects} <= set(workers)


def test_log_names_the_trace_when_there_is_one(alone: Program) -> None:
    alone.environment["H2KBUS_LOG_FORMAT"] = "json"
    with Collector() as collector:
        alone.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        with up(alone) as process:
            submit(alone, "--wait", defect=True)
            lines = [json.loads(line) for line in ended(process)]
    [trace_id] = {span.trace_id.hex() for _, span in collector.spans}
    assert [line["trace_id"] for line in lines if "met a defect" in line["message"]] == [trace_id]


def test_log_format_that_is_none_is_bad_usage(alone: Program) -> None:
    alone.environment["H2KBUS_LOG_FORMAT"] = "xml"
    done = alone("scheduler")
    assert done.returncode == 2
    assert "xml" in done.stderr


def test_error_that_ends_a_process_is_a_line_of_its_json_log(alone: Program) -> None:
    done = alone("scheduler", "--log-format", "json", "--url", "nats://127.0.0.1:1")
    assert done.returncode == 3
    assert [json.loads(line)["message"].split(":")[0] for line in done.stderr.splitlines()] == [
        "BUS_UNREACHABLE"
    ]
