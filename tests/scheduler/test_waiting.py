"""The jobs that wait are remembered by their revisions, in the order in which they were seen."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.waiting import Waiting


def filled(*seen: float) -> Waiting:
    waiting = Waiting()
    for revision, now in enumerate(seen):
        waiting.add(revision, now)
    return waiting


def test_only_what_was_seen_before_is_due() -> None:
    assert filled(1.0, 2.0, 3.0).due(3.0, 10) == [0, 1]


def test_no_more_are_due_than_one_round_looks_at() -> None:
    waiting = filled(1.0, 1.0, 1.0)
    assert [waiting.due(9.0, 2), waiting.due(9.0, 2), waiting.due(9.0, 2)] == [[0, 1], [2], []]


def test_what_is_remembered_again_comes_after_the_others() -> None:
    waiting = filled(1.0, 2.0)
    [first] = waiting.due(9.0, 1)
    waiting.add(first, 3.0)
    assert waiting.due(9.0, 10) == [1, 0]


def test_all_of_them_can_be_forgotten() -> None:
    waiting = filled(1.0, 2.0)
    waiting.clear()
    assert (len(waiting), waiting.due(9.0, 10)) == (0, [])


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 20))
def test_each_is_given_once_and_in_order_whatever_the_rounds(batches: list[int], at_most: int) -> None:
    waiting, added, given_out = Waiting(), 0, []
    for now, batch in enumerate(batches):
        for _ in range(batch):
            waiting.add(added, float(now))
            added += 1
        given_out += waiting.due(float(now), at_most)
    while found := waiting.due(1e9, at_most):
        given_out += found
    assert given_out == list(range(added))
    assert len(waiting) == 0
