"""A worker looks again at what its machine can do, and joins and leaves lanes accordingly."""

import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.errors import SettingsError
from subjects.fleet import CONFINED, WorkerCapabilities
from subjects.operations import plugin_token
from subjects.states import State
from tests.conftest import Fleet, rehearsal, worker_profile
from tests.workers.test_orders import seen
from workers.profile import Probes

pytestmark = pytest.mark.anyio

ABLE = worker_profile("worker-1", tokens=("qemu-img", plugin_token("rehearse")))
UNABLE = msgspec.structs.replace(ABLE, capabilities={"qemu-img": True})


class Machine:
    """A machine that can do now this, now that. Real probes cannot be made to find something else."""

    def __init__(self, found: WorkerCapabilities | None) -> None:
        self.found = found

    async def detect(self) -> WorkerCapabilities:
        if self.found is None:
            raise SettingsError("the disk did not answer")
        return self.found


async def test_lane_is_joined_when_its_capability_comes(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    machine = Machine(UNABLE)
    await fleet.worker(tokens=("qemu-img",), probes=Probes(machine.detect, 0.05))
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    assert (await bus.status(job_id)).state is State.QUEUED
    machine.found = ABLE
    assert (await bus.result(job_id)).state is State.COMPLETED


async def test_lane_is_left_when_its_capability_goes(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    machine = Machine(ABLE)
    await fleet.worker(probes=Probes(machine.detect, 0.05))
    assert (await bus.result(await bus.submit(rehearsal()))).state is State.COMPLETED
    machine.found = UNABLE
    token = plugin_token("rehearse")
    await seen(bus, lambda workers: not workers[0].capabilities.get(token, False))
    await fleet.worker("worker-2")
    for _ in range(4):
        assert (await bus.result(await bus.submit(rehearsal()))).worker_id == "worker-2"


async def test_worker_that_cannot_look_goes_on_with_what_it_found(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await fleet.worker(probes=Probes(Machine(None).detect, 0.05))
    for _ in range(3):
        assert (await bus.result(await bus.submit(rehearsal()))).state is State.COMPLETED


@pytest.mark.parametrize(("tokens", "times"), [(("qemu-img",), 1), (("qemu-img", CONFINED), 0)])
async def test_worker_that_cannot_confine_its_tools_says_so_once(
    bus: Bus, fleet: Fleet, caplog: pytest.LogCaptureFixture, tokens: tuple[str, ...], times: int
) -> None:
    await fleet.scheduler()
    await fleet.worker(tokens=tokens)
    await seen(bus, bool)
    assert caplog.text.count("tools are not confined") == times
