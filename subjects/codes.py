"""The closed list of error codes, and the root of every error that carries one.

Codes are part of the wire contract: they stand in job results, in progress events and in the CLI's
messages, so that a program can act on them. Each says whether trying again can help and what a person
should do. `h2kbus.errors` builds the exception tree on top of the root defined here.
"""

import enum
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec


class ErrorCode(enum.StrEnum):
    """Every code that h2kbus ever shows. Codes are never renamed and never reused."""

    # The job as it was written
    INVALID_SPEC = "INVALID_SPEC"
    INVALID_SUBJECT = "INVALID_SUBJECT"
    DUPLICATE_JOB = "DUPLICATE_JOB"
    SIGNATURE_MISSING = "SIGNATURE_MISSING"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_FINISHED = "JOB_FINISHED"
    WORKER_NOT_FOUND = "WORKER_NOT_FOUND"
    # The image and the output
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"
    IMAGE_UNREADABLE = "IMAGE_UNREADABLE"
    IMAGE_UNSAFE = "IMAGE_UNSAFE"
    IMAGE_CORRUPT = "IMAGE_CORRUPT"
    FORMAT_MISMATCH = "FORMAT_MISMATCH"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    CONTENT_MISMATCH = "CONTENT_MISMATCH"
    OUTPUT_EXISTS = "OUTPUT_EXISTS"
    OUTPUT_UNWRITABLE = "OUTPUT_UNWRITABLE"
    NO_SPACE = "NO_SPACE"
    FS_CORRUPTION_UNRECOVERABLE = "FS_CORRUPTION_UNRECOVERABLE"
    # The guest inside the image
    NO_OS_FOUND = "NO_OS_FOUND"
    MULTIPLE_OS = "MULTIPLE_OS"
    GUEST_UNSUPPORTED = "GUEST_UNSUPPORTED"
    GUEST_ENCRYPTED = "GUEST_ENCRYPTED"
    GUEST_DISK_FULL = "GUEST_DISK_FULL"
    REPAIR_FAILED = "REPAIR_FAILED"
    BOOT_FAILED = "BOOT_FAILED"
    # The execution
    TOOL_FAILED = "TOOL_FAILED"
    TOOL_MISSING = "TOOL_MISSING"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    WORKER_LOST = "WORKER_LOST"
    LEASE_LOST = "LEASE_LOST"
    DRAINED = "DRAINED"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"
    # The bus
    BUS_UNREACHABLE = "BUS_UNREACHABLE"
    BUS_TIMEOUT = "BUS_TIMEOUT"
    BUS_FULL = "BUS_FULL"
    CONTRACT_CONFLICT = "CONTRACT_CONFLICT"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    TLS_FAILED = "TLS_FAILED"
    JETSTREAM_MISSING = "JETSTREAM_MISSING"
    NOT_PROVISIONED = "NOT_PROVISIONED"
    SERVER_TOO_OLD = "SERVER_TOO_OLD"
    EMBEDDED_SERVER = "EMBEDDED_SERVER"
    REVISION_CONFLICT = "REVISION_CONFLICT"
    ILLEGAL_TRANSITION = "ILLEGAL_TRANSITION"
    BAD_SETTINGS = "BAD_SETTINGS"


class CodeInfo(msgspec.Struct, frozen=True):
    """What a code means to a program (`retryable`) and to a person (`advice`)."""

    retryable: bool
    advice: str


CODES: Mapping[ErrorCode, CodeInfo] = {
    ErrorCode.INVALID_SPEC: CodeInfo(False, "Correct the named field and submit the job again."),
    ErrorCode.INVALID_SUBJECT: CodeInfo(False, "Use only the characters that the message allows."),
    ErrorCode.DUPLICATE_JOB: CodeInfo(False, "Choose another job_id, or leave it out to get a new one."),
    ErrorCode.SIGNATURE_MISSING: CodeInfo(False, "Submit it with --sign-key and a trusted key."),
    ErrorCode.SIGNATURE_INVALID: CodeInfo(False, "Sign it anew, with a key that the workers trust."),
    ErrorCode.QUOTA_EXCEEDED: CodeInfo(True, "Submit it again later; `h2kbus quotas` shows what is allowed."),
    ErrorCode.JOB_NOT_FOUND: CodeInfo(False, "Check the id with `h2kbus ls`; finished jobs expire."),
    ErrorCode.JOB_FINISHED: CodeInfo(False, "Run it again as a new job with `h2kbus retry`."),
    ErrorCode.WORKER_NOT_FOUND: CodeInfo(False, "List the live workers with `h2kbus workers`."),
    ErrorCode.IMAGE_NOT_FOUND: CodeInfo(False, "Give a path that exists on the worker's host."),
    ErrorCode.IMAGE_UNREADABLE: CodeInfo(False, "Let the worker's user read the image."),
    ErrorCode.IMAGE_UNSAFE: CodeInfo(
        False, "Give a self-contained, regular image file, below one of the worker's image roots."
    ),
    ErrorCode.IMAGE_CORRUPT: CodeInfo(False, "Fetch the image again from its source, or repair it first."),
    ErrorCode.FORMAT_MISMATCH: CodeInfo(False, "Declare the image's real format, or leave it out."),
    ErrorCode.SIZE_MISMATCH: CodeInfo(False, "The file is not the one described: check image.size_bytes."),
    ErrorCode.CHECKSUM_MISMATCH: CodeInfo(False, "The file is not the one described: fetch it again."),
    ErrorCode.CONTENT_MISMATCH: CodeInfo(True, "The result differed from its source and was thrown away."),
    ErrorCode.OUTPUT_EXISTS: CodeInfo(False, "Move the existing file away or choose another output_path."),
    ErrorCode.OUTPUT_UNWRITABLE: CodeInfo(
        False, "Let the worker's user write to output_path, below one of its output roots."
    ),
    ErrorCode.NO_SPACE: CodeInfo(True, "Free space where output_path points, then retry."),
    ErrorCode.FS_CORRUPTION_UNRECOVERABLE: CodeInfo(False, "Restore the guest from a backup."),
    ErrorCode.NO_OS_FOUND: CodeInfo(
        False, "Give a disk that holds a system; `h2kbus inspect` shows what it holds."
    ),
    ErrorCode.MULTIPLE_OS: CodeInfo(False, "Choose one of the named devices with parameters.root."),
    ErrorCode.GUEST_UNSUPPORTED: CodeInfo(False, "Repair this guest by hand, or leave out the named action."),
    ErrorCode.GUEST_ENCRYPTED: CodeInfo(False, "Decrypt the guest's disk first, or repair it from inside."),
    ErrorCode.GUEST_DISK_FULL: CodeInfo(
        False, "Free space inside the guest, or enlarge its filesystem first."
    ),
    ErrorCode.REPAIR_FAILED: CodeInfo(False, "Read in the error's details what was done and what was not."),
    ErrorCode.BOOT_FAILED: CodeInfo(False, "Read the console log, or repair the guest with offline_fix."),
    ErrorCode.TOOL_FAILED: CodeInfo(True, "Read the job's log for the tool's own words."),
    ErrorCode.TOOL_MISSING: CodeInfo(True, "Install the named tool; `h2kbus doctor` gives the command."),
    ErrorCode.TIMEOUT: CodeInfo(True, "Raise execution_policy.timeout_seconds or use a faster host."),
    ErrorCode.CANCELLED: CodeInfo(False, "Run it again as a new job with `h2kbus retry`."),
    ErrorCode.WORKER_LOST: CodeInfo(True, "The worker vanished; look at its host."),
    ErrorCode.LEASE_LOST: CodeInfo(True, "The worker lost touch with the bus; look at the network."),
    ErrorCode.DRAINED: CodeInfo(True, "The worker was stopped; another one takes the job."),
    ErrorCode.CAPABILITY_MISSING: CodeInfo(False, "Start a worker that has it; see `h2kbus capabilities`."),
    ErrorCode.DEADLINE_EXCEEDED: CodeInfo(False, "Submit it again with a later deadline."),
    ErrorCode.INTERNAL: CodeInfo(True, "This is a defect in h2kbus: report it with the job's log."),
    ErrorCode.BUS_UNREACHABLE: CodeInfo(True, "Start a bus with `h2kbus up`, or point --url at one."),
    ErrorCode.BUS_TIMEOUT: CodeInfo(True, "Try again; look at the server with `h2kbus doctor`."),
    ErrorCode.BUS_FULL: CodeInfo(True, "The server has no room left: free its disk or raise its limits."),
    ErrorCode.CONTRACT_CONFLICT: CodeInfo(False, "Another system owns that name: use another --root."),
    ErrorCode.PERMISSION_DENIED: CodeInfo(False, "Ask the bus's administrator for the role that this needs."),
    ErrorCode.TLS_FAILED: CodeInfo(
        False, "Give --tls-ca, --tls-cert and --tls-key as `h2kbus auth` made them, and a name from --host."
    ),
    ErrorCode.JETSTREAM_MISSING: CodeInfo(False, "Start nats-server with JetStream: `nats-server -js`."),
    ErrorCode.NOT_PROVISIONED: CodeInfo(True, "Start `h2kbus scheduler` once: it creates the streams."),
    ErrorCode.SERVER_TOO_OLD: CodeInfo(False, "Upgrade nats-server to 2.12.12, 2.14.3 or newer."),
    ErrorCode.EMBEDDED_SERVER: CodeInfo(
        False, "Read the server's log; `h2kbus doctor` says what is missing."
    ),
    ErrorCode.REVISION_CONFLICT: CodeInfo(True, "Somebody else changed the record first; read it again."),
    ErrorCode.ILLEGAL_TRANSITION: CodeInfo(False, "This move is not in the state table; report it."),
    ErrorCode.BAD_SETTINGS: CodeInfo(False, "Correct the named setting."),
}


class H2KBusError(Exception):
    """Root of every error raised on purpose by h2kbus.

    `code` is stable, `str(error)` is one sentence about what happened, `advice` is one sentence about
    what to do, `retryable` says whether the same call can succeed later, and `details` holds facts.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(self, message: str, *, code: ErrorCode | None = None, **details: Any) -> None:
        super().__init__(message)
        self.error_code = code or self.code
        self.details = details

    @property
    def advice(self) -> str:
        return CODES[self.error_code].advice

    @property
    def retryable(self) -> bool:
        return CODES[self.error_code].retryable


# From the right: the words before may quote what somebody wrote, the place itself never does.
_PLACE: Final = re.compile(r"(?P<reason>.*) - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`", re.DOTALL)


class InvalidMessage(H2KBusError):
    """A message or document does not fit its type; `path` is the JSON path of the offending field."""

    code = ErrorCode.INVALID_SPEC

    def __init__(self, reason: str, path: str = "$") -> None:
        super().__init__(f"{path}: {reason}", path=path, reason=reason)
        self.path = path
        self.reason = reason

    @classmethod
    def under(cls, base: str, words: str) -> "InvalidMessage":
        """Read msgspec's own words (`reason - at $.path`) into a reason and a path below `base`."""
        place = _PLACE.fullmatch(words)
        if place is None:
            return cls(words, base)
        return cls(place["reason"] + (" as a key" if place["key"] else ""), base + place["path"])


class InvalidSubject(H2KBusError):
    """A name cannot stand in a NATS subject, or a subject is not one of ours."""

    code = ErrorCode.INVALID_SUBJECT


class IllegalTransition(H2KBusError):
    """A move that the state table does not have; the message names both states."""

    code = ErrorCode.ILLEGAL_TRANSITION
