"""The lease: who may work on a job, and how long without a sign of life.

All its times are durations on one host's monotonic clock. No decision compares the clocks of two hosts:
the holder measures from before it asked for a renewal, everybody else from after they saw the record,
so the holder has always stopped before anyone may act.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

LEASE_SECONDS: Final = 60.0
"""How long a lease lasts unless a fleet's schedulers are told otherwise."""
MIN_LEASE_SECONDS: Final = 3.0
"""Below this the stages of a lease come closer to each other than tools need to be stopped."""

_RENEW: Final = 1 / 3
_HOLD: Final = 0.7
_LOST: Final = 0.9


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who may work on the job now.

    `token` is the revision of the record that the claim replaced. A compare-and-set on one revision
    succeeds once, so tokens are unique and grow with every claim: they fence out stale workers.
    `seconds` is the lease's length; its stages follow from it.
    """

    worker_id: str
    token: Annotated[int, Meta(ge=0)]
    seconds: Annotated[float, Meta(ge=MIN_LEASE_SECONDS, le=3600)] = LEASE_SECONDS

    @property
    def renew_after(self) -> float:
        """The holder renews this often; one renewal may be lost before it has to stop."""
        return self.seconds * _RENEW

    @property
    def hold_for(self) -> float:
        """Without a confirmed renewal for this long the holder stops and writes nothing more."""
        return self.seconds * _HOLD

    @property
    def lost_after(self) -> float:
        """A record that did not change for this long has no holder any more."""
        return self.seconds * _LOST
