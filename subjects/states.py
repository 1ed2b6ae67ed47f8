"""The ten states of a job and the only table of moves between them."""

import enum
from collections.abc import Mapping

from subjects.codes import IllegalTransition


class State(enum.StrEnum):
    """Where a job is on its way."""

    CREATED = "CREATED"
    VALIDATED = "VALIDATED"
    QUEUED = "QUEUED"
    ASSIGNED = "ASSIGNED"
    RUNNING = "RUNNING"
    PROGRESSING = "PROGRESSING"
    RETRYING = "RETRYING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        return not TRANSITIONS[self]

    @property
    def leased(self) -> bool:
        """Whether a worker holds the job in this state."""
        return self in LEASED


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.CREATED: frozenset({State.VALIDATED, State.FAILED, State.CANCELLED}),
    State.VALIDATED: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.QUEUED: frozenset({State.ASSIGNED, State.FAILED, State.CANCELLED}),
    State.ASSIGNED: frozenset({State.RUNNING, State.RETRYING, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset(
        {State.PROGRESSING, State.COMPLETED, State.FAILED, State.RETRYING, State.CANCELLED}
    ),
    State.PROGRESSING: frozenset(
        {State.PROGRESSING, State.COMPLETED, State.FAILED, State.RETRYING, State.CANCELLED}
    ),
    State.RETRYING: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

TERMINAL = frozenset(state for state, after in TRANSITIONS.items() if not after)
LEASED = frozenset({State.ASSIGNED, State.RUNNING, State.PROGRESSING})

CLAIM_PATHS: Mapping[State, tuple[State, ...]] = {
    State.QUEUED: (State.ASSIGNED, State.RUNNING),
    State.RETRYING: (State.QUEUED, State.ASSIGNED, State.RUNNING),
}
"""The states that one claim passes through, written in one compare-and-set."""


def check_move(before: State, after: State) -> None:
    """Raise IllegalTransition unless the table has this move."""
    if after not in TRANSITIONS[before]:
        raise IllegalTransition(f"a job cannot move from {before} to {after}")
