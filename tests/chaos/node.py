"""Runs a worker or a scheduler for the campaign: as it is, broken on purpose, or dying at a point.

    python -m tests.chaos.node VARIANT POINT worker ...

VARIANT is `sound` or one of `BROKEN`; POINT is `-`, or `name:n`: the process kills itself by SIGKILL when
it comes there for the n-th time. The product has no hook for either: its functions are replaced here.
"""

import datetime as dt
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h2kbus.pull
import h2kbus.store
import scheduler.dispatch
import scheduler.duties
import scheduler.locks
import scheduler.sweep
import workers.capabilities
import workers.claim
import workers.complete
import workers.execute
import workers.lease
import workers.outputs
import workers.publication
import workers.service
import workers.site
from subjects.codec import encode
from subjects.fleet import WorkerCapabilities
from subjects.operations import plugin_token

POINTS: dict[str, tuple[Any, str, str]] = {
    "after-claim": (workers.claim.Claims, "_take", "after"),
    "before-guard": (workers.lease.HeldLease, "guard", "before"),
    "before-place": (workers.publication, "_place_all", "before"),
    "after-place": (workers.publication, "_place_all", "after"),
    "before-final": (workers.complete.Settlement, "_write", "before"),
    "after-final": (workers.complete.Settlement, "_write", "after"),
    "before-ack": (h2kbus.pull.Delivery, "ack_unconfirmed", "before"),
    "after-create": (h2kbus.store.JobStore, "create", "after"),
    "after-taking-back": (scheduler.dispatch.Dispatch, "deliver", "before"),
}
"""Where a process may be made to die: a function, and whether before or after it."""
SCHEDULER_POINTS = ("after-create", "after-taking-back")


def arm(point: str) -> None:
    name, _, nth = point.partition(":")
    owner, attribute, side = POINTS[name]
    original = getattr(owner, attribute)
    left = int(nth)

    def passes() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    async def awaited(*args: Any, **more: Any) -> Any:
        if side == "before":
            passes()
        result = await original(*args, **more)
        if side == "after":
            passes()
        return result

    @functools.wraps(original)
    def called(*args: Any, **more: Any) -> Any:
        if side == "before":
            passes()
        result = original(*args, **more)
        if side == "after":
            passes()
        return result

    in_thread = attribute == "_place_all"
    setattr(owner, attribute, called if in_thread else awaited)


# Broken on purpose


def without_fencing() -> None:
    """A worker that believes in its lease for ever, and whose outputs replace what is there."""

    async def guard(_: Any) -> None:
        """Nobody is asked."""

    def place(output: workers.site.OpenDirectory, file: workers.outputs.StagedFile) -> None:
        file.source.replace(output.inside / file.target.name)

    publication = workers.publication
    replace(workers.lease.HeldLease, guard=guard, stop=lambda *_: None)
    replace(publication, place_file=place, _revoke=lambda *_: None)
    replace(publication.Publication, withdraw=publication.Publication.keep)


def with_blind_writes() -> None:
    """Records are put, not compared and set."""

    async def swap(self: Any, record: Any, _: int) -> Any:
        subject = self.topology.record_subject(record.job_id)
        written = await self._connection.publish(subject, encode(record))
        return h2kbus.store.Entry(record, written)

    replace(h2kbus.store.JobStore, swap=swap)


def with_early_acks() -> None:
    """A worker that acknowledges before it executes, in a fleet where the message is all there is.

    With schedulers that look after the records an early acknowledgement alone loses nothing.
    """
    claim = workers.claim.Claims.claim

    async def early(self: Any, delivery: Any) -> Any:
        lease = await claim(self, delivery)
        await delivery.ack()
        return lease

    replace(workers.claim.Claims, claim=early)
    without_rescue()


def without_rescue() -> None:
    """A scheduler that leaves every job to its worker, dead or alive."""
    duty_of, duties = scheduler.duties.duty_of, scheduler.duties.Duty

    def blind(*args: Any, **more: Any) -> Any:
        duty = duty_of(*args, **more)
        return duty if duty in (duties.ADMIT, duties.EXPIRE) else None

    async def put_back(*_: Any) -> None:
        """What has vanished from its lane stays away."""

    replace(scheduler.duties, duty_of=blind)
    replace(scheduler.sweep.Sweep, _put_back=put_back)


def without_image_locks() -> None:
    """A scheduler that lets two jobs write one image, and workers that replace what is there."""

    async def take(*_: Any) -> None:
        """Every lock is free."""

    def place(output: workers.site.OpenDirectory, file: workers.outputs.StagedFile) -> None:
        file.source.replace(output.inside / file.target.name)

    replace(scheduler.locks.ImageLocks, take=take)
    replace(workers.publication, place_file=place)


def replace(owner: Any, **functions: Any) -> None:
    for name, function in functions.items():
        setattr(owner, name, function)


BROKEN: dict[str, Callable[[], None]] = {
    "sound": lambda: None,
    "no-fencing": without_fencing,
    "blind-writes": with_blind_writes,
    "early-acks": with_early_acks,
    "no-image-locks": without_image_locks,
}


def probe_nothing() -> None:
    """What the host can do is not in question here, and a node has to come back quickly."""

    async def detect(
        *, worker_id: str, pool: str, slots: int, work_dir: Path, **_: object
    ) -> WorkerCapabilities:
        return WorkerCapabilities(
            worker_id=worker_id,
            hostname="chaos",
            last_heartbeat=dt.datetime.now(dt.UTC),
            capabilities={plugin_token("chaos"): True},
            pool=pool,
            max_concurrent_jobs=slots,
            memory_gb=8.0,
        )

    replace(workers.capabilities, detect=detect)


if __name__ == "__main__":
    variant, point, *command = sys.argv[1:]
    probe_nothing()
    BROKEN[variant]()
    if point != "-":
        arm(point)
    sys.argv = ["h2kbus", *command]
    from h2kbus.cli.app import main

    main()
