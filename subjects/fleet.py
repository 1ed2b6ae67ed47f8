"""What workers and lanes say of themselves: heartbeats and lane announcements."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from subjects.spec import DEFAULT_POOL, JobId, PoolName, Priority, Timestamp, keep_utc

ExecutionMode = Literal["host", "safe_container", "privileged_container"]
WorkerId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,128}$(?!\n)")]

CONFINED: Final = "confined"
"""The capability of a worker whose tools run in sandboxes. A job may ask for it as for any other."""


class WorkerSecurity(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is guarded, as it says itself; `h2kbus doctor --security` tells what is off.

    `confined` says that its tools run in sandboxes, `unprivileged` that it is neither root nor has a
    capability of the kernel, `verifies_signatures` that it executes signed jobs only.
    """

    confined: bool = False
    unprivileged: bool = False
    verifies_signatures: bool = False


class WorkerCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's heartbeat: what it can do, proven by `evidence`, and what it is doing.

    `advice` says for each capability that is not proven what mends that, where anything does.

    One that is `draining` ends when its jobs have; one that is `cordoned` takes no new ones until told to.
    `max_disk_size_tb` is 0 where no limit was set. Gigabytes and terabytes are powers of ten.
    `capability_level` is a summary for people: 1 userspace only, 2 partition tables readable over NBD,
    3 mount and change; routing uses the capability set. `image_roots` and `output_roots` are the
    directories below which its jobs may read images and write results; none for any path. `security` is
    missing from older workers.
    """

    worker_id: WorkerId
    hostname: str
    last_heartbeat: Timestamp
    capabilities: dict[str, bool] = {}
    evidence: dict[str, str] = {}
    advice: dict[str, str] = {}
    pool: PoolName = DEFAULT_POOL
    version: str = ""
    execution_mode: ExecutionMode = "host"
    capability_level: Annotated[int, Meta(ge=1, le=3)] = 1
    max_disk_size_tb: Annotated[float, Meta(ge=0)] = 0.0
    max_concurrent_jobs: Annotated[int, Meta(ge=1, le=10)] = 1
    free_slots: Annotated[int, Meta(ge=0, le=10)] = 0
    running_jobs: tuple[JobId, ...] = ()
    draining: bool = False
    cordoned: bool = False
    memory_gb: Annotated[float, Meta(ge=0)] = 0.0
    disk_space_gb: Annotated[float, Meta(ge=0)] = 0.0
    os_info: str = ""
    kernel_version: str = ""
    security: WorkerSecurity | None = None
    image_roots: tuple[str, ...] = ()
    output_roots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        keep_utc(self, "last_heartbeat")

    @property
    def open_doors(self) -> tuple[str, ...]:
        """Which of its paths are not confined, in words; empty for a worker that has roots for both."""
        doors = {
            "reads images of any path": self.image_roots,
            "writes results to any path": self.output_roots,
        }
        return tuple(words for words, roots in doors.items() if not roots)


class WorkerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants of a worker: to take no new jobs, or also to end when its jobs have ended.

    A drain concerns the worker that runs when it is ordered, not one that takes its name later.
    """

    order: Literal["cordon", "drain"]
    by: str
    at: Timestamp
    reason: str = ""

    def __post_init__(self) -> None:
        keep_utc(self, "at")


class LaneAnnouncement(msgspec.Struct, frozen=True, kw_only=True):
    """A combination of pool, lane and priority that has a consumer, so that workers can pull from it.

    `consumer` is the durable consumer's name. Take it from here: a long lane's is shortened.
    """

    pool: PoolName
    lane: str
    priority: Priority
    consumer: str
