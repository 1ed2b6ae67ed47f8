import anyio
import pytest

from h2kbus.errors import AttemptStopped, ErrorCode, OperationFailed
from workers.side_by_side import side_by_side

pytestmark = pytest.mark.anyio


async def failing() -> None:
    raise OperationFailed(ErrorCode.TOOL_FAILED, "it broke")


async def test_results_come_in_the_order_of_the_steps() -> None:
    ready = anyio.Event()

    async def first() -> int:
        await ready.wait()
        return 1

    async def second() -> int:
        ready.set()
        return 2

    assert await side_by_side(first, second) == [1, 2]


async def test_failure_cancels_the_other_steps() -> None:
    with anyio.fail_after(10), pytest.raises(OperationFailed):
        await side_by_side(anyio.sleep_forever, failing)


@pytest.mark.parametrize(
    "failure", [AttemptStopped(ErrorCode.CANCELLED, "it was cancelled"), ZeroDivisionError("a defect")]
)
async def test_failure_of_any_kind_is_raised_alone(failure: Exception) -> None:
    async def fail() -> None:
        raise failure

    with pytest.raises(type(failure)):
        await side_by_side(anyio.sleep_forever, fail)


async def test_two_failures_are_raised_as_one() -> None:
    with pytest.raises(OperationFailed, match="it broke"):
        await side_by_side(failing, failing)


async def test_cancelling_all_of_them_is_no_failure() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await side_by_side(anyio.sleep_forever, anyio.sleep_forever)
    assert scope.cancelled_caught
