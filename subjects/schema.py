"""The contract for other languages: a JSON Schema for every message, and one AsyncAPI document.

Everything is generated from the structs, the grammar and the topology; nothing is described twice.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from subjects.commands import CancelCommand, RetryCommand, Verb
from subjects.events import ProgressEvent
from subjects.fleet import LaneAnnouncement, WorkerCapabilities
from subjects.grammar import DEFAULT_ROOT, MAX_LANE, Grammar
from subjects.operations import BUILT_IN
from subjects.record import DeadLetter, JobRecord, LaneMessage
from subjects.result import JobResult
from subjects.spec import JobSpec
from subjects.topology import ACK_WAIT_SECONDS, PULL_GROUP, RECORD_TTL_SECONDS, Topology

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
CONTRACT_VERSION: Final = "1.0.0"

MESSAGES: Final[tuple[type[msgspec.Struct], ...]] = (
    JobSpec,
    CancelCommand,
    RetryCommand,
    LaneMessage,
    ProgressEvent,
    DeadLetter,
    JobRecord,
    JobResult,
    WorkerCapabilities,
    LaneAnnouncement,
    *(operation.parameters for operation in BUILT_IN),
)
"""Every message on the wire, and the parameters of the built-in operations."""

_STOP_HINT: Final = "StopHint"
_PRINTABLE: Final = r"^[^.*>\s]{1,128}$"
_ID: Final = r"^[A-Za-z0-9_-]{1,128}$"
_POOL: Final = r"^[a-z0-9-]{1,32}$"

_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "job_id": {"description": "The job's id.", "x-pattern": _ID},
    "lane": {
        "description": "The capabilities that the job needs, sorted and joined with `+`; `any` for none. "
        f"At most {MAX_LANE} characters.",
        "default": "any",
        "x-pattern": r"^[a-z0-9-]{1,32}(\+[a-z0-9-]{1,32})*$",
    },
    "lane_key": {
        "description": "The lane's name as a key: joined with `_`, because keys cannot hold `+`.",
        "default": "any",
        "x-pattern": r"^[a-z0-9-]{1,32}(_[a-z0-9-]{1,32})*$",
    },
    "pool": {"description": "The pool of workers.", "default": "default", "x-pattern": _POOL},
    "priority": {
        "description": "1 is the most urgent.",
        "default": "5",
        "enum": [str(number) for number in range(1, 11)],
    },
    "reason": {"description": "Why nobody could handle the message, as one token.", "x-pattern": _PRINTABLE},
    "submitter": {
        "description": "The submitter's name; the server's permissions vouch for it.",
        "x-pattern": _PRINTABLE,
    },
    "worker_id": {"description": "The worker's id.", "x-pattern": _ID},
}
"""What the braces in an address stand for. AsyncAPI 3 has no pattern of its own for a parameter."""


class _Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of subject: what it carries, who sends and who receives it, and what keeps it."""

    name: str
    address: str
    message: str
    summary: str
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    stream: str | None = None


def json_schema(message: type[msgspec.Struct]) -> dict[str, Any]:
    """One message's JSON Schema (2020-12), complete in itself."""
    definitions = _definitions([message], "#/$defs/{name}")
    body = definitions.pop(message.__name__)
    head = {"$schema": DIALECT, "$id": f"urn:h2kbus:v1:{_kebab(message.__name__)}"}
    return {**head, **body, **({"$defs": definitions} if definitions else {})}


def asyncapi(root: str = DEFAULT_ROOT) -> dict[str, Any]:
    """All channels, operations and messages under one root as an AsyncAPI 3.0.0 document."""
    topology = Topology(Grammar(root))
    channels = _channels(topology)
    return {
        "asyncapi": "3.0.0",
        "id": f"urn:h2kbus:v1:{root}",
        "info": {
            "title": "h2kbus",
            "version": CONTRACT_VERSION,
            "description": "Virtual-machine disk jobs over NATS JetStream. Every payload is JSON; times are "
            "RFC 3339 with an offset. Readers ignore fields that they do not know.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel) for channel in channels},
        "operations": _operations(channels),
        "components": {
            "messages": _messages({channel.message for channel in channels}),
            "parameters": _PARAMETERS,
            "schemas": _definitions(MESSAGES, "#/components/schemas/{name}"),
        },
        "x-jetstream": _jetstream(topology),
    }


def documents() -> dict[str, str]:
    """The reference files under the default root: each name and its exact text."""
    schemas = {f"{_kebab(message.__name__)}.schema.json": json_schema(message) for message in MESSAGES}
    every = {"asyncapi.json": asyncapi(), **schemas}
    return {name: msgspec.json.format(_text(every[name]), indent=2) + "\n" for name in sorted(every)}


def _channels(topology: Topology) -> tuple[_Channel, ...]:
    return (*_command_channels(topology), *_job_channels(topology), *_bucket_channels(topology))


def _command_channels(topology: Topology) -> Iterable[_Channel]:
    summaries = {
        Verb.SUBMIT: ("JobSpec", "A new job. Its id is the one in the subject."),
        Verb.CANCEL: ("CancelCommand", "Stop a job, wherever it is. An empty payload will do."),
        Verb.RETRY: ("RetryCommand", "Run a finished job again as a new job."),
    }
    for verb, (message, summary) in summaries.items():
        yield _Channel(
            name=verb.value,
            address=topology.grammar.command("{submitter}", verb, "{job_id}"),
            message=message,
            summary=summary,
            senders=("client",),
            receivers=("scheduler",),
            stream=topology.commands_stream,
        )


def _job_channels(topology: Topology) -> tuple[_Channel, ...]:
    grammar = topology.grammar
    return (
        _Channel(
            name="jobs",
            address=_address(grammar.job("pool", "lane", 1, "id"), "pool", "lane", "priority", "job_id"),
            message="LaneMessage",
            summary="Jobs waiting for a worker. Workers pull from one durable consumer for each lane.",
            senders=("scheduler",),
            receivers=("worker",),
            stream=topology.jobs_stream,
        ),
        _Channel(
            name="progress",
            address=grammar.progress("{job_id}"),
            message="ProgressEvent",
            summary="What happens to a job, up to the event that carries its terminal state.",
            senders=("scheduler", "worker"),
            receivers=("client",),
            stream=topology.progress_stream,
        ),
        _Channel(
            name="dead",
            address=grammar.dead("{reason}", "{job_id}"),
            message="DeadLetter",
            summary="Messages that nobody could handle, kept for a person to look at.",
            senders=("scheduler", "worker"),
            receivers=("client",),
            stream=topology.dead_stream,
        ),
        _Channel(
            name="control",
            address=grammar.control("{worker_id}"),
            message=_STOP_HINT,
            summary="A hint that a job's record has changed; not stored, and never the truth.",
            senders=("scheduler",),
            receivers=("worker",),
        ),
    )


def _bucket_channels(topology: Topology) -> tuple[_Channel, ...]:
    return (
        _Channel(
            name="records",
            address=topology.record_subject("{job_id}"),
            message="JobRecord",
            summary="The whole truth about a job, changed by compare-and-set only.",
            senders=("scheduler", "worker"),
            receivers=("client", "scheduler", "worker"),
            stream=topology.bucket_stream(topology.jobs_bucket),
        ),
        _Channel(
            name="workers",
            address=topology.worker_subject("{worker_id}"),
            message="WorkerCapabilities",
            summary="Heartbeats. An entry that is not renewed expires; one with no payload has left.",
            senders=("worker",),
            receivers=("client", "scheduler"),
            stream=topology.bucket_stream(topology.workers_bucket),
        ),
        _Channel(
            name="lanes",
            address=_address(topology.lane_subject("pool", "lane", 1), "pool", "lane_key", "priority"),
            message="LaneAnnouncement",
            summary="Lanes that have a consumer, so that workers know where to pull.",
            senders=("scheduler",),
            receivers=("client", "worker"),
            stream=topology.bucket_stream(topology.lanes_bucket),
        ),
    )


def _channel(channel: _Channel) -> dict[str, Any]:
    names = sorted(re.findall(r"\{(\w+)\}", channel.address))
    return {
        "address": channel.address,
        "summary": channel.summary,
        "messages": {channel.message: _ref("components", "messages", channel.message)},
        "parameters": {name: _ref("components", "parameters", name) for name in names},
        "bindings": {"nats": {}},
        **({"x-jetstream-stream": channel.stream} if channel.stream else {}),
    }


def _operations(channels: Iterable[_Channel]) -> dict[str, Any]:
    """One operation for each party of each channel, named after both."""
    return {
        f"{party}{verb}{channel.name.capitalize()}": {
            "action": action,
            "channel": _ref("channels", channel.name),
            "summary": channel.summary,
            "tags": [{"name": party}],
            "messages": [_ref("channels", channel.name, "messages", channel.message)],
        }
        for channel in channels
        for action, verb, parties in (
            ("send", "Sends", channel.senders),
            ("receive", "Receives", channel.receivers),
        )
        for party in parties
    }


def _messages(used: set[str]) -> dict[str, Any]:
    summaries = {message.__name__: _summary(message) for message in MESSAGES}
    described: dict[str, Any] = {
        name: {
            "name": name,
            "contentType": "application/json",
            "summary": summary,
            "payload": _ref("components", "schemas", name),
        }
        for name, summary in summaries.items()
        if name in used
    }
    described[_STOP_HINT] = {
        "name": _STOP_HINT,
        "contentType": "text/plain",
        "summary": "The id of the job to look at, as plain text.",
        "payload": {"type": "string", "pattern": _ID},
    }
    return dict(sorted(described.items()))


def _jetstream(topology: Topology) -> dict[str, Any]:
    """Streams and consumers in JetStream's own words: durations are nanoseconds unless named otherwise."""
    lane = topology.lane_consumer("pool", "lane", 1)
    template = {
        "durable_name": "{pool}_{lane}_{priority}",
        "filter_subject": _address(lane.filter_subject, "pool", "lane", "priority", "*").replace("{*}", "*"),
    }
    return {
        "streams": [stream.settings() for stream in topology.streams()],
        "consumers": [
            {"stream": topology.commands_stream, **msgspec.to_builtins(topology.commands_consumer())},
            {"stream": topology.jobs_stream, **msgspec.to_builtins(lane), **template},
        ],
        "buckets": [topology.jobs_bucket, topology.lanes_bucket, topology.workers_bucket],
        "object_stores": [topology.artifacts_store],
        "pull_group": PULL_GROUP,
        "ack_wait_seconds": ACK_WAIT_SECONDS,
        "finished_record_ttl_seconds": RECORD_TTL_SECONDS,
    }


def _address(subject: str, *parameters: str) -> str:
    """A sample subject, its last tokens replaced by the parameters that stand there."""
    fixed = subject.split(".")[: -len(parameters)]
    return ".".join([*fixed, *(f"{{{name}}}" for name in parameters)])


def _definitions(messages: Iterable[type[msgspec.Struct]], ref_template: str) -> dict[str, Any]:
    """The schemas of some messages and of all that they refer to, by name."""
    _, found = msgspec.json.schema_components(messages, ref_template=ref_template)
    return {name: _portable(found[name]) for name in sorted(found)}


def _portable(node: Any) -> Any:
    """The same schema in the words that every validator knows.

    Python's `$` needs a look-ahead to refuse a trailing newline. JSON Schema's does not, it advises
    against look-aheads, and RE2 (Go, Rust) has none.
    """
    if isinstance(node, list):
        return [_portable(each) for each in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _portable(value) for key, value in node.items()}
    if isinstance(node.get("pattern"), str):
        plain["pattern"] = node["pattern"].replace(r"$(?!\n)", "$")
    if isinstance(node.get("description"), str):
        plain["description"] = inspect.cleandoc(node["description"])
    return plain


def _ref(*steps: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(steps)}


def _summary(message: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(message.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _text(document: dict[str, Any]) -> str:
    return msgspec.json.encode(document).decode()
