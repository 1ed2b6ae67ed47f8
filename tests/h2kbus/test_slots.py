"""A bound on how much is done at once."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_slot_that_ends_soon_is_promised_once() -> None:
    slots = Slots(1)
    held = slots.take()
    assert slots.reserve() is None
    held.end_soon()
    assert slots.coming == 1
    promised = slots.reserve()
    assert promised is not None
    assert not promised.is_ready
    assert (slots.coming, slots.reserve()) == (0, None)


async def test_promises_are_kept_in_their_order_and_before_anybody_else_has_the_slot() -> None:
    slots = Slots(2)
    held = [slots.take(), slots.take()]
    for each in held:
        each.end_soon()
    first, second = slots.reserve(), slots.reserve()
    assert first is not None
    assert second is not None
    held[0].give_back()
    assert (first.is_ready, second.is_ready, slots.free, slots.coming) == (True, False, 0, 0)
    held[1].give_back()
    with anyio.fail_after(1):
        await second.wait_ready()
    assert slots.free == 0


def test_broken_promise_leaves_the_slot_to_others() -> None:
    slots = Slots(1)
    held = slots.take()
    held.end_soon()
    promised = slots.reserve()
    assert promised is not None
    with promised:
        pass
    held.give_back()
    assert (slots.free, slots.coming) == (1, 1)


def test_free_slot_needs_no_promise() -> None:
    slots = Slots(1)
    slot = slots.reserve()
    assert slot is not None
    assert slot.is_ready
    assert slots.free == 0


async def test_waiting_for_what_is_coming_ends_before_it_is_free() -> None:
    slots = Slots(1)
    held = slots.take()
    got: list[int] = []

    async def wait() -> None:
        got.append(await slots.wait_coming())

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert got == []
        held.end_soon()
    assert (got, slots.free) == ([1], 0)


@given(st.lists(st.sampled_from(["reserve", "end soon", "give back first", "give back last"]), max_size=40))
def test_never_more_are_ready_than_there_are_slots(steps: list[str]) -> None:
    slots, held = Slots(3), []
    for step in steps:
        if step == "reserve":
            slot = slots.reserve()
            held += [slot] if slot else []
        elif held and step == "end soon":
            held[0].end_soon()
        elif held:
            held.pop(0 if step.endswith("first") else -1).give_back()
        ready = sum(each.is_ready for each in held)
        assert ready <= 3
        assert slots.free == 3 - ready
    for each in held:
        each.give_back()
    assert (slots.free, slots.coming) == (3, 3)
