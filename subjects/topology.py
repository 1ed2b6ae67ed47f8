"""Every stream, bucket and consumer of one fleet, declared once as data.

The structs carry JetStream's own field names, so that they are sent as they are. Durations are in
nanoseconds, as JetStream wants them.
"""

import hashlib
from typing import Any, Final, Literal

import msgspec

from subjects.grammar import Grammar
from subjects.lease import LEASE_SECONDS

SECOND: Final = 1_000_000_000
DAY: Final = 86_400 * SECOND

COMMAND_WAIT_SECONDS: Final = 10.0
"""A command that its scheduler does not answer for, because it died, goes to another one after this long."""

HEARTBEAT_SECONDS: Final = 10.0
REPROBE_SECONDS: Final = 300.0
"""How often a running worker looks again at what its machine can do."""
WORKER_TTL_SECONDS: Final = 35.0
"""A worker's entry expires when three heartbeats are missing."""
RECORD_AGE_SECONDS: Final = 30 * 86_400
"""Finished jobs stay readable for this long. Nothing in a bucket grows older than this."""
REFRESH_SECONDS: Final = 7 * 86_400
"""What has to live on, a job that waits for instance, is written anew after this long."""

MAX_CONSUMER_NAME: Final = 254
"""A consumer's name is a file's name on the server, which takes no more than 255 bytes."""

PULL_GROUP: Final = "workers"
"""The one priority group of every lane's consumer."""


class Stream(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A JetStream stream's configuration; fields left at their defaults are the server's to choose."""

    name: str
    subjects: tuple[str, ...]
    description: str = ""
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    max_msgs_per_subject: int = 0
    max_age: int = 0
    allow_direct: bool = False
    allow_rollup_hdrs: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    duplicate_window: int = 0
    storage: Literal["file", "memory"] = msgspec.field(default="file")
    num_replicas: int = 1

    def settings(self) -> dict[str, Any]:
        """The configuration as JetStream wants it, with what must never be left to a default."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return {"retention": self.retention, "discard": self.discard, "storage": self.storage, **given}


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """A durable pull consumer's configuration."""

    durable_name: str
    filter_subject: str
    ack_wait: int
    priority_groups: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    priority_policy: Literal["prioritized"] | msgspec.UnsetType = msgspec.UNSET
    ack_policy: Literal["explicit"] = "explicit"
    deliver_policy: Literal["all"] = "all"
    # Attempts are counted in the job's record, where policy is; the server never gives a message up.
    max_deliver: int = -1
    # The server's defaults (1,000 and 512) stop a busy fleet silently.
    max_ack_pending: int = 20_000
    max_waiting: int = 20_000


class Topology:
    """The names and configurations that follow from one root.

    `lease_seconds` matters to schedulers only: workers are told by each job's message.
    """

    def __init__(self, grammar: Grammar, replicas: int = 1, lease_seconds: float = LEASE_SECONDS) -> None:
        self.grammar = grammar
        self.replicas = replicas
        self.lease_seconds = lease_seconds
        upper, lower = grammar.fleet.upper(), grammar.fleet
        self.commands_stream = f"{upper}_COMMANDS"
        self.jobs_stream = f"{upper}_JOBS"
        self.progress_stream = f"{upper}_PROGRESS"
        self.dead_stream = f"{upper}_DEAD"
        self.jobs_bucket = f"{lower}_jobs"
        self.workers_bucket = f"{lower}_workers"
        self.lanes_bucket = f"{lower}_lanes"
        self.locks_bucket = f"{lower}_locks"
        self.settings_bucket = f"{lower}_settings"
        self.artifacts_store = f"{lower}_artifacts"
        self.scheduler_consumer = "scheduler"

    def streams(self) -> tuple[Stream, ...]:
        """Everything that must exist before the first job, buckets and object store included.

        Records and locks expire by the age of all, never one by one: a server that is killed after it
        removed a key's last value brings an older one back.
        """
        kept = RECORD_AGE_SECONDS * SECOND
        return (
            self._queue(self.commands_stream, "commands.*.*.*", "What clients ask of the scheduler"),
            self._queue(self.jobs_stream, "jobs.*.*.*.*", "Jobs waiting for a worker, by lane and priority"),
            self._history(
                self.progress_stream, "progress.*", "Progress of every job", days=7, per_subject=1000
            ),
            self._history(self.dead_stream, "dead.*.*", "Messages that nobody could handle", days=30),
            self._bucket(self.jobs_bucket, "The state of every job", max_age=kept, deny_purge=True),
            self._bucket(self.workers_bucket, "Heartbeats", max_age=int(WORKER_TTL_SECONDS * SECOND)),
            self._bucket(self.lanes_bucket, "Lanes that have a consumer"),
            self._bucket(self.locks_bucket, "Images and places that jobs have", max_age=kept),
            self._bucket(self.settings_bucket, "What operators have set"),
            self._artifacts(),
        )

    @property
    def fencing_streams(self) -> frozenset[str]:
        """Streams whose sequences are fencing tokens: they must never count the same numbers again."""
        return frozenset(map(self.bucket_stream, (self.jobs_bucket, self.locks_bucket)))

    def commands_consumer(self) -> Consumer:
        return Consumer(
            durable_name=self.scheduler_consumer,
            filter_subject=self.grammar.commands(),
            ack_wait=int(COMMAND_WAIT_SECONDS * SECOND),
        )

    def lane_consumer(self, pool: str, lane: str, priority: int) -> Consumer:
        return Consumer(
            durable_name=_consumer_name(pool, lane, priority),
            filter_subject=f"{self.grammar.lane(pool, lane, priority)}.*",
            # A holder that is declared lost has its job given out again at about the same time.
            ack_wait=int(self.lease_seconds * SECOND),
            priority_groups=(PULL_GROUP,),
            priority_policy="prioritized",
        )

    def record_subject(self, job_id: str) -> str:
        return f"$KV.{self.jobs_bucket}.{job_id}"

    def worker_subject(self, worker_id: str) -> str:
        return f"$KV.{self.workers_bucket}.{worker_id}"

    def lock_subject(self, key: str) -> str:
        return f"$KV.{self.locks_bucket}.{key}"

    def place_subject(self, label_key: str, number: int | str) -> str:
        return f"$KV.{self.locks_bucket}.place.{label_key}.{number}"

    def ceiling_subject(self, label: str) -> str:
        return f"$KV.{self.settings_bucket}.limit.{label}"

    def quota_subject(self, submitter: str) -> str:
        return f"$KV.{self.settings_bucket}.quota.of.{submitter}"

    @property
    def default_quota_subject(self) -> str:
        return f"$KV.{self.settings_bucket}.quota.default"

    def refusal_subject(self, submitter: str) -> str:
        return f"$KV.{self.locks_bucket}.refused.{submitter}"

    def order_subject(self, worker_id: str) -> str:
        return f"$KV.{self.settings_bucket}.worker.{worker_id}"

    def lane_subject(self, pool: str, lane: str, priority: int) -> str:
        """Key-value clients refuse `+` in a key: there a lane's tokens are joined with `_` instead."""
        return f"$KV.{self.lanes_bucket}.{pool}.{lane.replace('+', '_')}.{priority}"

    def bucket_stream(self, bucket: str) -> str:
        return f"KV_{bucket}"

    def _queue(self, name: str, shape: str, description: str) -> Stream:
        """One message per subject, and a second one refused: nothing is queued twice, ever.

        A subject of another shape is refused, since no consumer would ever hand it out.
        """
        return Stream(
            name=name,
            subjects=(f"{self.grammar.root}.{shape}",),
            description=description,
            retention="workqueue",
            discard="new",
            discard_new_per_subject=True,
            max_msgs_per_subject=1,
            allow_direct=True,
            num_replicas=self.replicas,
        )

    def _history(self, name: str, shape: str, description: str, *, days: int, per_subject: int = 0) -> Stream:
        return Stream(
            name=name,
            subjects=(f"{self.grammar.root}.{shape}",),
            description=description,
            max_age=days * DAY,
            max_msgs_per_subject=per_subject,
            allow_direct=True,
            num_replicas=self.replicas,
        )

    def _bucket(self, bucket: str, description: str, **changes: Any) -> Stream:
        """A key-value bucket without rollups: one rollup header could empty it."""
        return Stream(
            name=self.bucket_stream(bucket),
            subjects=(f"$KV.{bucket}.>",),
            description=description,
            discard="new",
            max_msgs_per_subject=1,
            allow_direct=True,
            deny_delete=True,
            num_replicas=self.replicas,
            **changes,
        )

    def _artifacts(self) -> Stream:
        """An object store without rollups: its objects are never replaced, and one header could empty it."""
        store = self.artifacts_store
        return Stream(
            name=f"OBJ_{store}",
            subjects=(f"$O.{store}.C.>", f"$O.{store}.M.>"),
            description="Logs, reports and evidence",
            discard="new",
            max_age=30 * DAY,
            allow_direct=True,
            num_replicas=self.replicas,
        )


def _consumer_name(pool: str, lane: str, priority: int) -> str:
    """A long one ends in a hash, after a `=`: no lane's own name has one."""
    name = f"{pool}_{lane}_{priority}"
    if len(name) <= MAX_CONSUMER_NAME:
        return name
    return f"{name[:200]}={hashlib.sha256(name.encode()).hexdigest()[:32]}"
