"""Ids that the bus makes."""

import time

from h2kbus.ids import new_job_id
from subjects.codec import convert
from subjects.grammar import token
from subjects.spec import JobId


def test_new_id_is_legal_in_a_job_and_in_a_subject() -> None:
    made = new_job_id()
    assert convert(JobId, made) == token(made)


def test_new_ids_never_repeat() -> None:
    assert len({new_job_id() for _ in range(20_000)}) == 20_000


def test_later_id_sorts_after_an_earlier_one() -> None:
    made = []
    for _ in range(5):
        made.append(new_job_id())
        time.sleep(0.002)
    assert made == sorted(made)


def test_all_ids_have_the_same_length() -> None:
    assert {len(new_job_id()) for _ in range(100)} == {20}
