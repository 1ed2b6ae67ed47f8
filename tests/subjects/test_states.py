"""The ten states and the moves between them are those of the protocol."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects.codes import ErrorCode, IllegalTransition
from subjects.states import CLAIM_PATHS, LEASED, TERMINAL, TRANSITIONS, State, check_move

PROTOCOL = {
    "CREATED": "VALIDATED FAILED CANCELLED",
    "VALIDATED": "QUEUED FAILED CANCELLED",
    "QUEUED": "ASSIGNED FAILED CANCELLED",
    "ASSIGNED": "RUNNING RETRYING FAILED CANCELLED",
    "RUNNING": "PROGRESSING COMPLETED FAILED RETRYING CANCELLED",
    "PROGRESSING": "PROGRESSING COMPLETED FAILED RETRYING CANCELLED",
    "RETRYING": "QUEUED FAILED CANCELLED",
    "COMPLETED": "",
    "FAILED": "",
    "CANCELLED": "",
}


def test_the_table_is_the_protocols() -> None:
    assert {state.value: {str(after) for after in TRANSITIONS[state]} for state in State} == {
        before: set(after.split()) for before, after in PROTOCOL.items()
    }


def test_only_completed_failed_and_cancelled_are_terminal() -> None:
    assert {state for state in State if state.terminal} == TERMINAL
    assert {str(state) for state in TERMINAL} == {"COMPLETED", "FAILED", "CANCELLED"}


def test_a_worker_holds_a_job_from_its_assignment_to_its_end() -> None:
    assert {state for state in State if state.leased} == LEASED
    assert {str(state) for state in LEASED} == {"ASSIGNED", "RUNNING", "PROGRESSING"}


@given(before=st.sampled_from(State), after=st.sampled_from(State))
def test_a_move_passes_exactly_if_the_table_has_it(before: State, after: State) -> None:
    if after in PROTOCOL[before].split():
        check_move(before, after)
        return
    with pytest.raises(IllegalTransition):
        check_move(before, after)


def test_an_illegal_move_names_both_states() -> None:
    with pytest.raises(IllegalTransition, match=r"from COMPLETED to RUNNING") as refusal:
        check_move(State.COMPLETED, State.RUNNING)
    assert refusal.value.error_code is ErrorCode.ILLEGAL_TRANSITION


@pytest.mark.parametrize("state", State)
def test_only_progressing_moves_to_itself(state: State) -> None:
    assert (state in TRANSITIONS[state]) == (state is State.PROGRESSING)


@pytest.mark.parametrize("start", CLAIM_PATHS)
def test_a_claim_walks_legal_moves_to_running(start: State) -> None:
    steps = (start, *CLAIM_PATHS[start])
    for before, after in pairwise(steps):
        check_move(before, after)
    assert steps[-1] is State.RUNNING


def test_a_claim_starts_only_where_a_job_waits_for_a_worker() -> None:
    assert set(CLAIM_PATHS) == {State.QUEUED, State.RETRYING}
