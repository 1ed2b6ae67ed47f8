"""The stages of a lease follow one upon the other, with room between them, whatever its length."""

from hypothesis import given
from hypothesis import strategies as st

from subjects.lease import MIN_LEASE_SECONDS, Lease

LEASES = st.floats(MIN_LEASE_SECONDS, 3600).map(
    lambda seconds: Lease(worker_id="w", token=1, seconds=seconds)
)


@given(LEASES)
def test_a_holder_has_stopped_before_anyone_may_act(lease: Lease) -> None:
    assert lease.hold_for + 0.15 * lease.seconds < lease.lost_after < lease.seconds


@given(LEASES)
def test_one_renewal_may_be_lost(lease: Lease) -> None:
    assert 2 * lease.renew_after < lease.hold_for
