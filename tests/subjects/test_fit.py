"""Which worker fits a job, and the words for what the others lack."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects.fit import Demand, lacks, preferred
from subjects.lanes import lane_needs
from subjects.spec import CapabilityRequirements, JobSpec
from tests.conftest import rehearsal, worker_profile

TOKENS = ("kvm", "lvm", "nbd", "qemu-img")
WORKER = worker_profile(
    "w1", tokens=("qemu-img", "nbd"), memory_gb=8.0, disk_space_gb=50.0, max_disk_size_tb=2.0
)
DEMAND = Demand(pool="default", needs=frozenset({"qemu-img"}))


def test_worker_with_more_than_is_asked_for_fits() -> None:
    assert lacks(WORKER, DEMAND) == ()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"pool": "site-b"}, "is in the pool default, not in site-b"),
        ({"needs": frozenset({"qemu-img", "lvm", "kvm"})}, "lacks kvm, lvm"),
        ({"memory_gb": 32.0}, "has 8 GB of memory, not 32"),
        ({"disk_space_gb": 51.0}, "has 50 GB of disk space, not 51"),
        ({"image_bytes": 3 * 10**12}, "takes disks of 2 TB at most, not of 3"),
    ],
)
def test_what_is_missing_is_named(asked: dict[str, Any], words: str) -> None:
    assert lacks(WORKER, msgspec.structs.replace(DEMAND, **asked)) == (words,)


def test_draining_worker_takes_nothing() -> None:
    assert lacks(msgspec.structs.replace(WORKER, draining=True), DEMAND) == ("is draining",)


def test_everything_that_is_missing_is_told_at_once() -> None:
    demand = msgspec.structs.replace(DEMAND, pool="site-b", needs=frozenset({"kvm"}), memory_gb=99.0)
    assert len(lacks(WORKER, demand)) == 3


@given(st.sets(st.sampled_from(TOKENS)), st.sets(st.sampled_from(TOKENS)))
def test_worker_fits_exactly_the_lanes_whose_tokens_it_has(has: set[str], needs: set[str]) -> None:
    worker = worker_profile("w", tokens=sorted(has))
    demand = Demand(pool="default", needs=frozenset(needs))
    assert (lacks(worker, demand) == ()) == (needs <= has)
    assert lane_needs(demand.lane) == needs


def test_token_that_was_probed_and_not_proven_does_not_count() -> None:
    worker = msgspec.structs.replace(WORKER, capabilities={"qemu-img": False})
    assert lacks(worker, DEMAND) == ("lacks qemu-img",)


def test_demand_of_a_job_is_what_it_declares() -> None:
    spec: JobSpec = msgspec.structs.replace(
        rehearsal(), pool="site-b", capability_requirements=CapabilityRequirements(min_memory_gb=4.0)
    )
    expected = Demand(pool="site-b", needs=frozenset({"nbd"}), memory_gb=4.0)
    assert Demand.of(spec, frozenset({"nbd"})) == expected


def test_preferred_capabilities_count_while_somebody_who_takes_jobs_has_them() -> None:
    wanted = frozenset({"nbd"})
    assert preferred(DEMAND, wanted, [WORKER]).needs == {"qemu-img", "nbd"}
    assert preferred(DEMAND, wanted, [msgspec.structs.replace(WORKER, draining=True)]) == DEMAND
    assert preferred(DEMAND, wanted, []) == DEMAND
