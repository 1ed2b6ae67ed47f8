"""Every channel of the contract: which subject carries what, who sends it and who reads it."""

from collections.abc import Iterable
from typing import Final

import msgspec

from subjects.commands import Verb
from subjects.topology import Topology

STOP_HINT: Final = "StopHint"
"""The one message that is no struct: a job's id, as it is."""


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of subject: what it carries, who sends and who receives it, and what keeps it."""

    name: str
    address: str
    message: str
    summary: str
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    stream: str | None = None


def channels(topology: Topology) -> tuple[Channel, ...]:
    """All channels under the topology's root."""
    return (
        *_command_channels(topology),
        *_job_channels(topology),
        *_bucket_channels(topology),
        *_limit_channels(topology),
    )


def _command_channels(topology: Topology) -> Iterable[Channel]:
    summaries = {
        Verb.SUBMIT: ("JobSpec", "A new job. Its id is the one in the subject."),
        Verb.CANCEL: ("CancelCommand", "Stop a job, wherever it is. An empty payload will do."),
        Verb.RETRY: ("RetryCommand", "Run a finished job again as a new job."),
    }
    for verb, (message, summary) in summaries.items():
        yield Channel(
            name=verb.value,
            address=topology.grammar.command("{submitter}", verb, "{job_id}"),
            message=message,
            summary=summary,
            senders=("client",),
            receivers=("scheduler",),
            stream=topology.commands_stream,
        )


def _job_channels(topology: Topology) -> tuple[Channel, ...]:
    grammar = topology.grammar
    return (
        Channel(
            name="jobs",
            address=address_of(grammar.job("pool", "lane", 1, "id"), "pool", "lane", "priority", "job_id"),
            message="LaneMessage",
            summary="Jobs waiting for a worker. Workers pull from one durable consumer for each lane.",
            senders=("scheduler",),
            receivers=("worker",),
            stream=topology.jobs_stream,
        ),
        Channel(
            name="progress",
            address=grammar.progress("{job_id}"),
            message="ProgressEvent",
            summary="What happens to a job, up to the event that carries its terminal state.",
            senders=("scheduler", "worker"),
            receivers=("client",),
            stream=topology.progress_stream,
        ),
        Channel(
            name="dead",
            address=grammar.dead("{reason}", "{job_id}"),
            message="DeadLetter",
            summary="Messages that nobody could handle, kept for a person to look at.",
            senders=("scheduler", "worker"),
            receivers=("client",),
            stream=topology.dead_stream,
        ),
        Channel(
            name="control",
            address=grammar.control("{worker_id}"),
            message=STOP_HINT,
            summary="A hint that a job's record has changed; not stored, and never the truth.",
            senders=("scheduler",),
            receivers=("worker",),
        ),
    )


def _bucket_channels(topology: Topology) -> tuple[Channel, ...]:
    return (
        Channel(
            name="records",
            address=topology.record_subject("{job_id}"),
            message="JobRecord",
            summary="The whole truth about a job, changed by compare-and-set only.",
            senders=("scheduler", "worker"),
            receivers=("client", "scheduler", "worker"),
            stream=topology.bucket_stream(topology.jobs_bucket),
        ),
        Channel(
            name="workers",
            address=topology.worker_subject("{worker_id}"),
            message="WorkerCapabilities",
            summary="Heartbeats. An entry that is not renewed expires; one with no payload has left.",
            senders=("worker",),
            receivers=("client", "scheduler"),
            stream=topology.bucket_stream(topology.workers_bucket),
        ),
        Channel(
            name="lanes",
            address=address_of(topology.lane_subject("pool", "lane", 1), "pool", "lane_key", "priority"),
            message="LaneAnnouncement",
            summary="Lanes that have a consumer, so that workers know where to pull.",
            senders=("scheduler",),
            receivers=("client", "worker"),
            stream=topology.bucket_stream(topology.lanes_bucket),
        ),
        Channel(
            name="locks",
            address=topology.lock_subject("{lock}"),
            message="ImageLock",
            summary="Images that a job is going to write. One with no payload was given back.",
            senders=("scheduler",),
            receivers=("scheduler",),
            stream=topology.bucket_stream(topology.locks_bucket),
        ),
    )


def _limit_channels(topology: Topology) -> tuple[Channel, ...]:
    return (
        Channel(
            name="places",
            address=topology.place_subject("{label_key}", "{number}"),
            message="Place",
            summary="Places that jobs have under named limits. One with no payload was given back.",
            senders=("scheduler",),
            receivers=("client", "scheduler"),
            stream=topology.bucket_stream(topology.locks_bucket),
        ),
        Channel(
            name="ceilings",
            address=topology.ceiling_subject("{label}"),
            message="Ceiling",
            summary="The most places that operators allow under a limit.",
            senders=("client",),
            receivers=("client", "scheduler"),
            stream=topology.bucket_stream(topology.settings_bucket),
        ),
        Channel(
            name="quotas",
            address=topology.quota_subject("{submitter}"),
            message="Quota",
            summary="How much one submitter may have on the bus. One with no payload was taken back.",
            senders=("client",),
            receivers=("client", "scheduler"),
            stream=topology.bucket_stream(topology.settings_bucket),
        ),
        Channel(
            name="defaultquota",
            address=topology.default_quota_subject,
            message="Quota",
            summary="How much everybody may have who has no quota of their own.",
            senders=("client",),
            receivers=("client", "scheduler"),
            stream=topology.bucket_stream(topology.settings_bucket),
        ),
        Channel(
            name="refusals",
            address=topology.refusal_subject("{submitter}"),
            message="Refusal",
            summary="Why commands of a submitter were refused last; nothing else is written of those.",
            senders=("scheduler",),
            receivers=("client",),
            stream=topology.bucket_stream(topology.locks_bucket),
        ),
        Channel(
            name="orders",
            address=topology.order_subject("{worker_id}"),
            message="WorkerOrder",
            summary="What operators want of a worker. One with no payload was taken back.",
            senders=("client",),
            receivers=("worker",),
            stream=topology.bucket_stream(topology.settings_bucket),
        ),
    )


def address_of(subject: str, *parameters: str) -> str:
    """A sample subject, its last tokens replaced by the parameters that stand there."""
    fixed = subject.split(".")[: -len(parameters)]
    return ".".join([*fixed, *(f"{{{name}}}" for name in parameters)])
