import anyio
import pytest

from h2kbus.crew import Crew

pytestmark = pytest.mark.anyio


async def test_everything_given_is_done_before_the_crew_ends() -> None:
    done: list[int] = []

    async def work(item: int) -> None:
        await anyio.sleep(0)
        done.append(item)

    crew = Crew(3, work)
    async with anyio.create_task_group() as group:
        group.start_soon(crew.serve)
        for item in range(1, 20):
            crew.give(item)
        crew.dismiss()
    assert sorted(done) == list(range(1, 20))


async def test_no_more_run_at_once_than_the_crew_has_tasks() -> None:
    running = most = 0

    async def work(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.005)
        running -= 1

    crew = Crew(4, work)
    async with anyio.create_task_group() as group:
        group.start_soon(crew.serve)
        for item in range(1, 21):
            crew.give(item)
        crew.dismiss()
    assert most == 4


async def test_a_cancelled_crew_stops_its_work() -> None:
    started = anyio.Event()
    ended = False

    async def work(_: int) -> None:
        nonlocal ended
        started.set()
        await anyio.sleep(30)
        ended = True

    crew = Crew(1, work)
    async with anyio.create_task_group() as group:
        group.start_soon(crew.serve)
        crew.give(1)
        await started.wait()
        group.cancel_scope.cancel()
    assert not ended
