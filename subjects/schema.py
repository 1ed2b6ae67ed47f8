"""The contract for other languages: a JSON Schema for every message, and one AsyncAPI document.

Everything is generated from the structs, the grammar and the topology; nothing is described twice.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from subjects.builtin import BUILT_IN
from subjects.channels import STOP_HINT, Channel, address_of, channels
from subjects.commands import CancelCommand, RetryCommand
from subjects.events import ProgressEvent
from subjects.fleet import LaneAnnouncement, WorkerCapabilities, WorkerOrder
from subjects.grammar import DEFAULT_ROOT, MAX_LANE, Grammar
from subjects.limits import Ceiling, Place
from subjects.locks import ImageLock
from subjects.manifest import Manifest
from subjects.meanings import explained, meanings
from subjects.parameter_meanings import Meaning
from subjects.permissions import INVALID_JOB, Role, grants, narrower
from subjects.quota import Quota, Refusal
from subjects.record import DeadLetter, JobRecord, LaneMessage
from subjects.result import JobResult
from subjects.spec import JobSpec
from subjects.topology import PULL_GROUP, RECORD_AGE_SECONDS, Topology

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
CONTRACT_VERSION: Final = "1.1.0"

MESSAGES: Final[tuple[type[msgspec.Struct], ...]] = (
    JobSpec,
    CancelCommand,
    RetryCommand,
    LaneMessage,
    ProgressEvent,
    DeadLetter,
    JobRecord,
    JobResult,
    Manifest,
    WorkerCapabilities,
    LaneAnnouncement,
    WorkerOrder,
    ImageLock,
    Place,
    Ceiling,
    Quota,
    Refusal,
    *(operation.parameters for operation in BUILT_IN),
)
"""Every message on the wire, what the object store holds, and the parameters of the built-in operations."""

_PRINTABLE: Final = r"^[^.*>\s]{1,128}$"
_ID: Final = r"^[A-Za-z0-9_-]{1,128}$"
_POOL: Final = r"^[a-z0-9-]{1,32}$"

_SOMEBODY: Final = "somebody"
_TRACED: Final = frozenset({"JobSpec", "RetryCommand"})
"""The messages that begin a job, and may come with the trace that it belongs to."""
_TRACE_HEADERS: Final = {
    "type": "object",
    "properties": {
        "traceparent": {
            "type": "string",
            "description": "W3C Trace Context; what is none is ignored.",
            "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        }
    },
}

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
    "label": {
        "description": "The limit's label; its dots are those of the subject.",
        "x-pattern": r"^[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*$",
    },
    "label_key": {"description": "A hash of the limit's label.", "x-pattern": r"^[0-9a-f]{40}$"},
    "lock": {"description": "A hash of the pool and the image's path.", "x-pattern": r"^[0-9a-f]{40}$"},
    "number": {"description": "The number of the place; 0 is the first.", "x-pattern": r"^[0-9]{1,3}$"},
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


def json_schema(message: type[msgspec.Struct]) -> dict[str, Any]:
    """One message's JSON Schema (2020-12), complete in itself."""
    definitions = _definitions([message], "#/$defs/{name}")
    body = definitions.pop(message.__name__)
    head = {"$schema": DIALECT, "$id": f"urn:h2kbus:v1:{file_stem(message.__name__)}"}
    return {**head, **body, **({"$defs": definitions} if definitions else {})}


def asyncapi(root: str = DEFAULT_ROOT) -> dict[str, Any]:
    """All channels, operations and messages under one root as an AsyncAPI 3.0.0 document."""
    topology = Topology(Grammar(root))
    told = channels(topology)
    return {
        "asyncapi": "3.0.0",
        "id": f"urn:h2kbus:v1:{root}",
        "info": {
            "title": "h2kbus",
            "version": CONTRACT_VERSION,
            "description": "Virtual-machine disk jobs over NATS JetStream. Every payload is JSON; times are "
            "RFC 3339; one without an offset is UTC. Readers ignore fields that they do not know.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel, topology) for channel in told},
        "operations": _operations(told),
        "components": {
            "messages": _messages({channel.message for channel in told}),
            "parameters": _PARAMETERS,
            "schemas": _definitions(MESSAGES, "#/components/schemas/{name}"),
        },
        "x-jetstream": _jetstream(topology),
    }


def _channel(channel: Channel, topology: Topology) -> dict[str, Any]:
    names = sorted(re.findall(r"\{(\w+)\}", channel.address))
    return {
        "address": channel.address,
        "summary": channel.summary,
        "messages": {channel.message: _ref("components", "messages", channel.message)},
        "parameters": {name: _ref("components", "parameters", name) for name in names},
        "bindings": {"nats": {}},
        **({"x-jetstream-stream": channel.stream} if channel.stream else {}),
        "x-publishing-roles": _publishing_roles(channel, topology),
    }


def _publishing_roles(channel: Channel, topology: Topology) -> list[str]:
    """The roles whose rights let a user of that name publish here."""
    subject = re.sub(r"\{\w+\}", _SOMEBODY, channel.address.replace("{reason}", INVALID_JOB))
    return [
        role.value
        for role in Role
        if any(narrower(each, subject) == subject for each in grants(topology, role, _SOMEBODY).publish)
    ]


def _operations(told: Iterable[Channel]) -> dict[str, Any]:
    """One operation for each party of each channel, named after both."""
    return {
        f"{party}{verb}{channel.name.capitalize()}": {
            "action": action,
            "channel": _ref("channels", channel.name),
            "summary": channel.summary,
            "tags": [{"name": party}],
            "messages": [_ref("channels", channel.name, "messages", channel.message)],
        }
        for channel in told
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
            **({"headers": _TRACE_HEADERS} if name in _TRACED else {}),
        }
        for name, summary in summaries.items()
        if name in used
    }
    described[STOP_HINT] = {
        "name": STOP_HINT,
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
        "filter_subject": address_of(lane.filter_subject, "pool", "lane", "priority", "*").replace(
            "{*}", "*"
        ),
    }
    return {
        "streams": [stream.settings() for stream in topology.streams()],
        "consumers": [
            {"stream": topology.commands_stream, **msgspec.to_builtins(topology.commands_consumer())},
            {"stream": topology.jobs_stream, **msgspec.to_builtins(lane), **template},
        ],
        "buckets": [
            topology.jobs_bucket,
            topology.lanes_bucket,
            topology.locks_bucket,
            topology.workers_bucket,
        ],
        "object_stores": [topology.artifacts_store],
        "pull_group": PULL_GROUP,
        "lease_seconds": topology.lease_seconds,
        "finished_record_age_seconds": RECORD_AGE_SECONDS,
    }


def _definitions(messages: Iterable[type[msgspec.Struct]], ref_template: str) -> dict[str, Any]:
    """The schemas of some messages and of all that they refer to, by name."""
    _, found = msgspec.json.schema_components(messages, ref_template=ref_template)
    for kind in (*explained(), *MESSAGES):
        _explain(found.get(kind.__name__, {}), meanings(kind))
    return {name: _portable(found[name]) for name in sorted(found)}


def _explain(schema: dict[str, Any], meant: Mapping[str, Meaning]) -> None:
    """Give each field its meaning and its example."""
    for name, (words, *examples) in meant.items():
        if name in schema.get("properties", {}):
            schema["properties"][name] |= {
                "description": words,
                **({"examples": examples} if examples else {}),
            }


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


def file_stem(name: str) -> str:
    """A message's name as that of its file: `job-spec` for JobSpec."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
