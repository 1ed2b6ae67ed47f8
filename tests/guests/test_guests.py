"""Real guests, broken on purpose: what keeps them from booting is mended over the bus, and only that."""

import pytest

from tests.guests.campaign import Campaign
from tests.guests.cases import Case

# The first test waits for its guest to be built as well.
pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(5400)]


async def test_guest_boots_before_only_if_the_breakage_is_harmless(campaign: Campaign, case: Case) -> None:
    before = (await campaign.outcome(case)).before
    assert before.boots == case.boots_before, before


async def test_operation_completes_and_does_what_is_decisive(campaign: Campaign, case: Case) -> None:
    first = (await campaign.outcome(case)).first
    assert first.completed, first.error
    for action in case.decisive:
        assert "applied" in first.outcomes_of(action), first.actions
    assert "failed" not in first.actions.values()


async def test_result_reaches_the_login_prompt(campaign: Campaign, case: Case) -> None:
    after = (await campaign.outcome(case)).after
    assert (after.boots, after.stage) == (True, "login")


async def test_second_run_finds_nothing_left_to_do(campaign: Campaign, case: Case) -> None:
    second = (await campaign.outcome(case)).second
    if not case.repeatable:
        assert second is None
        return
    assert second is not None
    assert second.completed, second.error
    for action in case.decisive:
        assert second.outcomes_of(action) == {"not needed"}, second.actions
    assert set(second.actions.values()) <= {"not needed", "skipped"}, second.actions


async def test_source_is_unchanged(campaign: Campaign, case: Case) -> None:
    assert (await campaign.outcome(case)).source_unchanged
