"""How large each message may be: what is larger is refused before it is read.

A submission has a bound of its own, `subjects.spec.MAX_SPEC_BYTES`. A server takes payloads of 1 MiB
unless it is told otherwise, so that nothing of ours is larger.
"""

from collections.abc import Mapping
from typing import Any, Final

from subjects.commands import CancelCommand, RetryCommand
from subjects.events import ProgressEvent
from subjects.fleet import LaneAnnouncement, WorkerCapabilities, WorkerOrder
from subjects.limits import Ceiling, Place
from subjects.locks import ImageLock
from subjects.manifest import Manifest
from subjects.quota import Quota, Refusal
from subjects.record import DeadLetter, JobGlimpse, JobRecord, LaneMessage, OwnerGlimpse
from subjects.result import JobResult

_KIB: Final = 1024
MAX_PAYLOAD_BYTES: Final = 1024 * _KIB

MAX_BYTES: Final[Mapping[Any, int]] = {
    CancelCommand: 16 * _KIB,
    RetryCommand: 4 * _KIB,
    WorkerOrder: 16 * _KIB,
    WorkerCapabilities: 64 * _KIB,
    LaneAnnouncement: 4 * _KIB,
    ImageLock: 32 * _KIB,
    Place: 4 * _KIB,
    Ceiling: 4 * _KIB,
    Quota: 4 * _KIB,
    Refusal: 4 * _KIB,
    ProgressEvent: 64 * _KIB,
    JobResult: MAX_PAYLOAD_BYTES,
    JobRecord: MAX_PAYLOAD_BYTES,
    JobGlimpse: MAX_PAYLOAD_BYTES,
    OwnerGlimpse: MAX_PAYLOAD_BYTES,
    LaneMessage: MAX_PAYLOAD_BYTES,
    DeadLetter: MAX_PAYLOAD_BYTES,
    # An object in chunks, which no payload bounds.
    Manifest: 4 * MAX_PAYLOAD_BYTES,
}
"""In bytes as they stand on the wire, by the kind of message or the part of it that is read."""
