"""A bound on how much is done at once."""

import anyio
import pytest

from h2kbus.slots import Slots


def test_taken_slot_is_not_free() -> None:
    slots = Slots(3)
    slots.take()
    assert slots.free == 2


def test_slot_comes_back_when_its_holder_fails() -> None:
    slots = Slots(1)
    with pytest.raises(ZeroDivisionError), slots.take():
        raise ZeroDivisionError
    assert slots.free == 1


async def test_slot_comes_back_when_its_holder_is_cancelled() -> None:
    slots = Slots(1)
    with anyio.move_on_after(0.01), slots.take():
        await anyio.sleep_forever()
    assert slots.free == 1


async def test_waiting_for_room_ends_when_there_is_enough() -> None:
    slots = Slots(2)
    first, second = slots.take(), slots.take()
    got: list[int] = []

    async def wait() -> None:
        got.append(await slots.wait_free(2))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        with first:
            pass
        await anyio.wait_all_tasks_blocked()
        assert got == []
        with second:
            pass
    assert got == [2]


async def test_all_who_wait_are_woken() -> None:
    slots = Slots(1)
    held = slots.take()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(slots.wait_idle)
        await anyio.wait_all_tasks_blocked()
        with held:
            pass
    assert slots.free == 1
