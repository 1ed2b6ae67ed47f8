"""Steps of one attempt that go on at once, and fail as if they were one."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

Step = Callable[[], Awaitable[Any]]


async def side_by_side(*steps: Step) -> list[Any]:
    """Run all steps to their ends and return what they return, in their order.

    The first that fails cancels the others, and its failure is raised: never a group of them.
    """
    found: list[Any] = [None] * len(steps)
    failures: list[Exception] = []

    async def run(place: int, step: Step) -> None:
        try:
            found[place] = await step()
        except Exception as failure:  # noqa: BLE001 - it is raised below, alone
            failures.append(failure)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for place, step in enumerate(steps):
            group.start_soon(run, place, step)
    for failure in failures:
        raise failure
    return found
