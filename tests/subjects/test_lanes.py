"""Lanes name sets of capabilities, one name for each set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects.codec import convert
from subjects.codes import InvalidSubject
from subjects.lanes import (
    ANY,
    DECLARED_NEEDS,
    MAX_PULL_PRIORITY,
    check_token,
    job_needs,
    lane_name,
    lane_needs,
)
from subjects.lanes import pull_priority as priority_of
from subjects.spec import JobSpec

CAPABILITIES = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True).filter(lambda name: name != ANY)
SETS = st.frozensets(CAPABILITIES, max_size=6)


def spec(**needs: bool) -> JobSpec:
    return convert(
        JobSpec,
        {
            "operation": "inspect",
            "image": {"path": "/a.raw"},
            "artifacts": {"output_path": "/out"},
            "audit": {"requested_by": "ann"},
            "capability_requirements": needs,
        },
    )


@given(SETS)
def test_a_lanes_name_reads_back_into_its_capabilities(needs: frozenset[str]) -> None:
    assert lane_needs(lane_name(needs)) == needs


@given(SETS)
def test_the_order_of_the_capabilities_does_not_matter(needs: frozenset[str]) -> None:
    assert lane_name(sorted(needs, reverse=True)) == lane_name(sorted(needs))


def test_lanes_are_named_as_in_the_contract() -> None:
    assert lane_name([]) == "any"
    assert lane_name(["qemu-img"]) == "qemu-img"
    assert lane_name(["qemu-img", "kvm", "guestfs", "kvm"]) == "guestfs+kvm+qemu-img"


@pytest.mark.parametrize(
    "lane", ["", "+", "kvm+", "+kvm", "kvm+guestfs", "kvm+kvm", "any+kvm", "KVM", "a.b", "a b", "a" * 33, "*"]
)
def test_a_name_that_is_not_canonical_is_refused(lane: str) -> None:
    with pytest.raises(InvalidSubject):
        lane_needs(lane)


@pytest.mark.parametrize("bad", ["", "any", "A", "a_b", "a+b", "a.b", "a\n", "é", "a" * 33])
def test_a_name_outside_the_alphabet_is_no_capability(bad: str) -> None:
    with pytest.raises(InvalidSubject, match="is not a capability"):
        check_token(bad)


def test_a_capability_may_have_32_characters() -> None:
    assert check_token("a" * 32) == "a" * 32


@pytest.mark.parametrize("flag", DECLARED_NEEDS)
def test_every_declared_need_adds_its_capability(flag: str) -> None:
    assert job_needs(frozenset({"qemu-img"}), spec(**{flag: True})) == {"qemu-img", DECLARED_NEEDS[flag]}


def test_a_job_without_needs_of_its_own_needs_what_its_operation_needs() -> None:
    assert job_needs(frozenset({"qemu-img"}), spec()) == {"qemu-img"}


@given(SETS, SETS)
def test_the_least_specialised_worker_is_served_first(plain: frozenset[str], more: frozenset[str]) -> None:
    needs = plain
    assert priority_of(plain, needs) == 0
    assert 0 <= priority_of(plain | more, needs) < MAX_PULL_PRIORITY


def test_the_pull_priority_stays_within_what_jetstream_takes() -> None:
    assert MAX_PULL_PRIORITY == 9
    assert priority_of(frozenset(f"c{number}" for number in range(30)), frozenset()) == 8
