"""Who may do what on the bus: for each role exactly the subjects that its work uses.

The lists are data for a NATS server. On their own they are no wall: a server sends its answer to whatever
reply subject a request names, and does not hold that one against the sender's permissions. So each user but
an admin also gets an account of its own, into which these same subjects are imported and nothing else.
"""

import enum
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from subjects.codes import InvalidSubject
from subjects.commands import Verb
from subjects.topology import Topology

INBOX: Final = "_INBOX_"
"""What a user's private inbox begins with; the user's name follows."""
INVALID_JOB: Final = "invalid-job"
"""The reason of the dead letters that workers write."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_READ_BY_NAME: Final = re.compile(r"\$JS\.API\.DIRECT\.GET\.[^.]+\..+")
_READ_OR_PULL: Final = ("$JS.API.DIRECT.GET.", "$JS.API.CONSUMER.MSG.NEXT.")


class Role(enum.StrEnum):
    """What a user is on the bus."""

    OBSERVER = "observer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    ADMIN = "admin"


class Grants(msgspec.Struct, frozen=True):
    """The subjects that a user may publish to and subscribe to, and nothing else."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def user_name(name: str) -> str:
    """A user's name, which stands in subjects. Raises InvalidSubject."""
    if not _NAME.fullmatch(name):
        raise InvalidSubject(f"{name[:40]!r} is no user's name: letters, digits, - and _, at most 64")
    return name


def inbox_prefix(name: str) -> str:
    """Where a user's answers arrive, and nobody else's."""
    return INBOX + user_name(name)


def user_of(prefix: str | None) -> str | None:
    """The user that a private inbox belongs to, None for any other one."""
    name = (prefix or "").removeprefix(INBOX)
    return name if prefix != name and _NAME.fullmatch(name) else None


def grants(topology: Topology, role: Role, name: str, worker_id: str | None = None) -> Grants:
    """What a user of this role may do. A worker speaks for `worker_id`, by default the one of its name.

    `worker_id` `*` is for workers that share a user and choose their ids themselves. Raises InvalidSubject.
    """
    inbox = f"{inbox_prefix(name)}.>"
    rights = _ROLES[role](topology, name, worker_id or name)
    return Grants(tuple(dict.fromkeys(rights.publish)), (inbox, *dict.fromkeys(rights.subscribe)))


def answers_many(subject: str) -> bool:
    """Whether one request on this subject brings several messages: batches of reads, and pulls."""
    return subject.startswith(_READ_OR_PULL) and not _READ_BY_NAME.fullmatch(subject)


def narrower(first: str, second: str) -> str | None:
    """Of two subject patterns the one that lies within the other; None if neither does."""
    if _covers(first.split("."), second.split(".")):
        return second
    return first if _covers(second.split("."), first.split(".")) else None


def _covers(pattern: list[str], other: list[str]) -> bool:
    """Whether every subject that fits `other` fits `pattern` too."""
    if not pattern or not other:
        return pattern == other
    if pattern[0] == ">":
        return True
    if other[0] == ">" or (pattern[0] != "*" and pattern[0] != other[0]):
        return False
    return _covers(pattern[1:], other[1:])


def _observer(topology: Topology, _name: str, _worker_id: str) -> Grants:
    buckets = (
        topology.jobs_bucket,
        topology.workers_bucket,
        topology.lanes_bucket,
        topology.locks_bucket,
        topology.settings_bucket,
    )
    streams = (topology.jobs_stream, topology.progress_stream, topology.dead_stream)
    artifacts = f"OBJ_{topology.artifacts_store}"
    return Grants(
        (
            # `doctor` asks whether all are there, and `watch` whether a command waits.
            *(f"$JS.API.STREAM.INFO.{stream.name}" for stream in topology.streams()),
            f"$JS.API.CONSUMER.INFO.{topology.commands_stream}.{topology.scheduler_consumer}",
            f"$JS.API.CONSUMER.LIST.{topology.jobs_stream}",
            _read_one(topology.bucket_stream(topology.jobs_bucket), topology.record_subject("*")),
            *map(_read, (*map(topology.bucket_stream, buckets), *streams)),
            # Logs and reports: their description by name, then their chunks.
            _read(artifacts),
            _read_one(artifacts, f"$O.{topology.artifacts_store}.M.*"),
        ),
        (topology.grammar.progress_of_all(),),
    )


def _submitter(topology: Topology, name: str, worker_id: str) -> Grants:
    reading = _observer(topology, name, worker_id)
    commands = tuple(topology.grammar.commands(name, verb) for verb in Verb)
    locks = topology.bucket_stream(topology.locks_bucket)
    refusals = (_read_one(locks, topology.refusal_subject(name)),)
    return Grants(commands + refusals + reading.publish, reading.subscribe)


def _operator(topology: Topology, name: str, worker_id: str) -> Grants:
    submitting = _submitter(topology, name, worker_id)
    settings = (
        topology.order_subject("*"),
        topology.ceiling_subject(">"),
        topology.quota_subject("*"),
        topology.default_quota_subject,
    )
    return Grants(settings + submitting.publish, submitting.subscribe)


def _worker(topology: Topology, _name: str, worker_id: str) -> Grants:
    jobs, progress = topology.bucket_stream(topology.jobs_bucket), topology.grammar.progress_of_all()
    settings, order = topology.bucket_stream(topology.settings_bucket), topology.order_subject(worker_id)
    store = topology.artifacts_store
    return Grants(
        (
            f"$JS.API.CONSUMER.MSG.NEXT.{topology.jobs_stream}.*",
            f"$JS.ACK.{topology.jobs_stream}.>",
            _read_one(jobs, topology.record_subject("*")),
            topology.record_subject("*"),
            _read_one(topology.progress_stream, progress),
            progress,
            f"{topology.grammar.root}.dead.{INVALID_JOB}.*",
            _read(topology.bucket_stream(topology.lanes_bucket)),
            _read_one(settings, order),
            topology.worker_subject(worker_id),
            f"$O.{store}.C.*",
            f"$O.{store}.M.*",
        ),
        (
            f"{topology.grammar.root}.control.{worker_id}",
            order,
            f"$KV.{topology.lanes_bucket}.>",
        ),
    )


def _scheduler(topology: Topology, _name: str, _worker_id: str) -> Grants:
    root, commands, jobs = topology.grammar.root, topology.commands_stream, topology.jobs_stream
    commanding, read = topology.commands_consumer(), topology.bucket_stream
    return Grants(
        (
            *(f"$JS.API.STREAM.INFO.{stream.name}" for stream in topology.streams()),
            f"$JS.API.CONSUMER.CREATE.{commands}.{commanding.durable_name}.{commanding.filter_subject}",
            f"$JS.API.CONSUMER.MSG.NEXT.{commands}.{commanding.durable_name}",
            f"$JS.ACK.{commands}.{commanding.durable_name}.>",
            f"$JS.API.CONSUMER.CREATE.{jobs}.*.{root}.jobs.*.*.*.*",
            f"$JS.API.CONSUMER.NAMES.{jobs}",
            # It follows the records with a consumer of its own, whatever that is called.
            f"$JS.API.CONSUMER.CREATE.{read(topology.jobs_bucket)}.*",
            f"$JS.API.CONSUMER.MSG.NEXT.{read(topology.jobs_bucket)}.*",
            # Metrics tell how full each lane is, and how old its oldest job.
            f"$JS.API.CONSUMER.LIST.{jobs}",
            _read(jobs),
            f"{root}.jobs.*.*.*.*",
            f"{root}.progress.*",
            f"{root}.dead.*.*",
            f"{root}.control.*",
            topology.record_subject("*"),
            topology.lock_subject("*"),
            topology.place_subject("*", "*"),
            topology.refusal_subject("*"),
            f"$KV.{topology.lanes_bucket}.*.*.*",
            _read_one(read(topology.jobs_bucket), topology.record_subject("*")),
            _read_one(jobs, f"{root}.jobs.*.*.*.*"),
            _read_one(topology.progress_stream, f"{root}.progress.*"),
            _read_one(read(topology.locks_bucket), f"$KV.{topology.locks_bucket}.>"),
            _read(read(topology.jobs_bucket)),
            _read(read(topology.locks_bucket)),
            _read(read(topology.lanes_bucket)),
            _read(read(topology.workers_bucket)),
            _read(read(topology.settings_bucket)),
        ),
        (),
    )


def _admin(_topology: Topology, _name: str, _worker_id: str) -> Grants:
    return Grants((">",), (">",))


def _read(stream: str) -> str:
    """Reading any of a stream's messages, many at once."""
    return f"$JS.API.DIRECT.GET.{stream}"


def _read_one(stream: str, subject: str) -> str:
    """Reading the newest message under a subject, and no other."""
    return f"$JS.API.DIRECT.GET.{stream}.{subject}"


_ROLES: Final[Mapping[Role, Callable[[Topology, str, str], Grants]]] = {
    Role.OBSERVER: _observer,
    Role.SUBMITTER: _submitter,
    Role.OPERATOR: _operator,
    Role.WORKER: _worker,
    Role.SCHEDULER: _scheduler,
    Role.ADMIN: _admin,
}
