"""How many jobs with one label may run at once, and which labels there may be."""

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects.codec import convert, decode, encode
from subjects.codes import InvalidMessage
from subjects.limits import Ceiling, allowed, label_key
from subjects.spec import JobSpec, LimitLabel
from tests.conftest import rehearsal

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
LABELS = ("source-host/esx-07", "esx-07.example.com", "datastore=nvme_1", "a")


def ceiling(at_most: int) -> Ceiling:
    return Ceiling(at_most=at_most, by="ann", at=NOW)


@pytest.mark.parametrize("label", LABELS)
def test_label_names_hosts_and_datastores(label: str) -> None:
    assert convert(LimitLabel, label) == label


@pytest.mark.parametrize("label", ["", ".", "a.", ".a", "a..b", "a b", "a*", "a>", "a\n", "x" * 129])
def test_label_that_could_not_be_a_key_is_refused(label: str) -> None:
    with pytest.raises(InvalidMessage):
        convert(LimitLabel, label)


@pytest.mark.parametrize("number", [0, -1, 1001, 1.5, "4"])
def test_number_of_places_is_within_reason(number: object) -> None:
    text = encode({**msgspec.to_builtins(rehearsal()), "limit": {"esx-07": number}})
    with pytest.raises(InvalidMessage, match=r"\$\.limit"):
        decode(JobSpec, text)


def test_job_has_no_more_than_eight_limits() -> None:
    text = encode({**msgspec.to_builtins(rehearsal()), "limit": {f"l{n}": 1 for n in range(9)}})
    with pytest.raises(InvalidMessage, match=r"\$\.limit"):
        decode(JobSpec, text)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_lower_of_what_the_job_asks_for_and_the_ceiling_counts(asked: int, most: int) -> None:
    assert allowed("esx-07", asked, {"esx-07": ceiling(most)}) == min(asked, most)
    assert allowed("esx-07", asked, {"esx-08": ceiling(most)}) == asked


def test_keys_of_different_labels_are_different() -> None:
    assert len({label_key(label) for label in LABELS}) == len(LABELS)
