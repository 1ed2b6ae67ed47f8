"""Who submitted a job is what the server vouches for, not what the job says of itself."""

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from subjects.codec import encode
from subjects.identity import is_own_name, submitter_of
from subjects.spec import Audit, JobSpec
from subjects.states import State
from tests.conftest import Fleet, Program, rehearsal
from tests.scheduler.conftest import send

pytestmark = pytest.mark.anyio


def job_of(requested_by: str, job_id: str = "j1") -> JobSpec:
    return msgspec.structs.replace(rehearsal(job_id=job_id), audit=Audit(requested_by=requested_by))


async def submitted(bus: Bus, submitter: str, spec: JobSpec) -> None:
    await send(bus, "submit", spec.job_id or "", encode(spec), submitter=submitter)
    await bus.verdict(spec.job_id or "")


async def test_record_names_the_submitter_of_the_subject_whatever_the_job_says(
    bus: Bus, running: Fleet
) -> None:
    await submitted(bus, "mallory", job_of("ann"))
    record = await bus.result("j1")
    assert (record.state, record.submitted_by) == (State.COMPLETED, "mallory")
    assert record.transitions[0].reason == "submitted by mallory in the name of ann"


async def test_refused_job_names_its_submitter_too(bus: Bus, running: Fleet) -> None:
    await submitted(bus, "mallory", msgspec.structs.replace(job_of("ann"), operation="nonsense"))
    record = await bus.result("j1")
    assert record.transitions[0].reason == "submitted by mallory in the name of ann"


async def test_status_shows_both_names(bus: Bus, running: Fleet, program: Program) -> None:
    await submitted(bus, "mallory", job_of("ann"))
    shown = await anyio.to_thread.run_sync(program, "status", "j1")
    assert "submitter: mallory, in the name of ann\n" in shown.stdout
    await submitted(bus, "ann", job_of("ann", "j2"))
    shown = await anyio.to_thread.run_sync(program, "status", "j2")
    assert "submitter: ann\n" in shown.stdout


async def test_name_of_somebody_else_is_refused_where_the_own_is_required(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler(own_name=True)
    await fleet.worker()
    await submitted(bus, "mallory", job_of("ann"))
    record = await bus.result("j1")
    assert record.state is State.FAILED
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.message == (
        "$.audit.requested_by: 'ann' is not mallory, who submitted the job"
    )


async def test_own_name_is_accepted_where_it_is_required(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler(own_name=True)
    await fleet.worker()
    await submitted(bus, "ann_smith_corp", job_of("ann.smith@corp"))
    assert (await bus.result("j1")).state is State.COMPLETED


async def test_job_of_somebody_else_is_not_run_again_in_their_name(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler(own_name=True)
    await fleet.worker()
    await submitted(bus, "ann", job_of("ann"))
    await bus.result("j1")
    bus.submitter = "mallory"
    again = await bus.retry("j1")
    await bus.verdict(again)
    assert (await bus.result(again)).state is State.FAILED
    bus.submitter = "ann"
    own = await bus.retry("j1")
    await bus.verdict(own)
    assert (await bus.result(own)).state is State.COMPLETED


async def test_who_runs_a_job_again_stands_in_its_record(bus: Bus, running: Fleet) -> None:
    await submitted(bus, "ann", job_of("ann"))
    await bus.result("j1")
    bus.submitter = "mallory"
    again = await bus.retry("j1")
    await bus.verdict(again)
    assert (await bus.status(again)).transitions[0].reason == "submitted by mallory in the name of ann"


async def test_who_cancelled_a_job_stands_in_its_record(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await submitted(bus, "ann", job_of("ann"))
    await send(bus, "cancel", "j1", submitter="mallory")
    record = await bus.result("j1")
    assert record.transitions[-1].reason == "CANCELLED: cancelled by mallory"


async def test_program_submits_in_the_name_that_it_has_on_the_bus(
    bus: Bus, fleet: Fleet, program: Program
) -> None:
    """A local user `tester` who is `ann` on the bus is nobody else there."""
    await fleet.scheduler(own_name=True)
    program.environment["H2KBUS_USER"] = "ann"
    words = ("--operation", "rehearse", "--image", "disk.img", "--output-dir", "out", "--job-id", "j1")
    done = await anyio.to_thread.run_sync(program, "submit", *words)
    assert done.returncode == 0
    record = await bus.status("j1")
    assert record.spec is not None
    assert (record.submitted_by, record.spec.audit.requested_by) == ("ann", "ann")


@pytest.mark.parametrize(
    ("name", "submitter"),
    [("ann", "ann"), ("ann.smith@corp", "ann_smith_corp"), ("Ännchen", "_nnchen"), ("x" * 80, "x" * 64)],
)
def test_name_of_a_person_becomes_a_token(name: str, submitter: str) -> None:
    assert submitter_of(name) == submitter
    assert is_own_name(submitter, name)
    assert not is_own_name("mallory", name)
