"""Every error that h2kbus raises on purpose, as one tree.

    H2KBusError
    ├── InvalidMessage          a job, command or message does not fit; `path` names the field
    ├── InvalidSubject          a name cannot stand in a subject
    ├── IllegalTransition       a move that the state table does not have
    ├── BusError                the bus itself
    │   ├── BusUnreachable      no server answers at the address
    │   ├── BusTimeout          the server did not answer in time
    │   ├── BusFull             the server has no room left
    │   ├── PermissionDenied    the server refused a subject, or who we are
    │   ├── TlsFailed           no TLS connection with the server came about
    │   ├── ServerUnfit         the server is too old or runs without JetStream
    │   ├── SubjectTaken        a stream that holds one message per subject has one
    │   ├── NotProvisioned      the server has no streams of ours yet
    │   ├── ContractConflict    a stream of ours exists with another shape
    │   ├── RevisionConflict    a compare-and-set lost its race
    │   ├── QuotaExceeded       the submitter has as much on the bus as it may
    │   └── EmbeddedServerError the embedded nats-server cannot start
    ├── SettingsError           a setting is missing or makes no sense
    ├── JobNotFound             no record under this id
    ├── DuplicateJob            the id is taken by another job
    ├── JobFinished             the job has ended, so it cannot be cancelled
    ├── WorkerNotFound          no worker lives under this id
    ├── OperationFailed         an attempt ended without success; carries the code of the result
    └── AttemptStopped          an attempt was stopped from outside: cancelled, timed out, lease lost

Codes, advice and retryability stand in `subjects.codes`. No error type of the NATS client leaves
h2kbus: `h2kbus.client_errors` maps them.
"""

from typing import Any

from subjects.codes import (
    CODES,
    CodeInfo,
    ErrorCode,
    H2KBusError,
    IllegalTransition,
    InvalidMessage,
    InvalidSubject,
)

__all__ = [
    "CODES",
    "AttemptStopped",
    "BusError",
    "BusFull",
    "BusTimeout",
    "BusUnreachable",
    "CodeInfo",
    "ContractConflict",
    "DuplicateJob",
    "EmbeddedServerError",
    "ErrorCode",
    "H2KBusError",
    "IllegalTransition",
    "InvalidMessage",
    "InvalidSubject",
    "JobFinished",
    "JobNotFound",
    "NotProvisioned",
    "OperationFailed",
    "PermissionDenied",
    "QuotaExceeded",
    "RevisionConflict",
    "ServerUnfit",
    "SettingsError",
    "SubjectTaken",
    "TlsFailed",
    "WorkerNotFound",
]


class BusError(H2KBusError):
    """Something about the bus rather than about a job."""

    code = ErrorCode.BUS_TIMEOUT


class BusUnreachable(BusError):
    """No server answered at the address within the deadline."""

    code = ErrorCode.BUS_UNREACHABLE


class BusTimeout(BusError):
    """The server took a request and did not answer it in time."""

    code = ErrorCode.BUS_TIMEOUT


class BusFull(BusError):
    """A stream or the server's disk is full."""

    code = ErrorCode.BUS_FULL


class PermissionDenied(BusError):
    """The server refused a publish or a subscription for this user."""

    code = ErrorCode.PERMISSION_DENIED


class TlsFailed(BusError):
    """We do not trust the server's certificate, or it does not trust ours."""

    code = ErrorCode.TLS_FAILED


class ServerUnfit(BusError):
    """The server is older than our floor, or runs without JetStream."""

    code = ErrorCode.SERVER_TOO_OLD


class NotProvisioned(BusError):
    """The server has no stream for a subject: no scheduler has been started against it yet."""

    code = ErrorCode.NOT_PROVISIONED


class SubjectTaken(BusError):
    """A stream that holds one message per subject has one already."""

    code = ErrorCode.DUPLICATE_JOB


class ContractConflict(BusError):
    """A stream or bucket of ours exists with a shape that we may not change."""

    code = ErrorCode.CONTRACT_CONFLICT


class RevisionConflict(BusError):
    """Somebody else wrote the record after it was read."""

    code = ErrorCode.REVISION_CONFLICT


class QuotaExceeded(BusError):
    """A scheduler refused a command because of its submitter's quota; nothing of it is on the bus."""

    code = ErrorCode.QUOTA_EXCEEDED


class EmbeddedServerError(BusError):
    """The embedded nats-server is missing, or did not start."""

    code = ErrorCode.EMBEDDED_SERVER


class SettingsError(H2KBusError):
    """A setting is missing, contradicts another, or names a file that cannot be read."""

    code = ErrorCode.BAD_SETTINGS


class JobNotFound(H2KBusError):
    """No record exists under this id."""

    code = ErrorCode.JOB_NOT_FOUND


class DuplicateJob(H2KBusError):
    """The id is taken by a job with another specification."""

    code = ErrorCode.DUPLICATE_JOB


class JobFinished(H2KBusError):
    """The job is in a terminal state."""

    code = ErrorCode.JOB_FINISHED


class WorkerNotFound(H2KBusError):
    """No worker lives under this id."""

    code = ErrorCode.WORKER_NOT_FOUND


class OperationFailed(H2KBusError):
    """Raised by an operation whose work failed; becomes the job's `result.error`."""

    def __init__(self, code: ErrorCode, message: str, **details: Any) -> None:
        super().__init__(message, code=code, **details)


class AttemptStopped(H2KBusError):
    """The cause with which an attempt was stopped from outside: CANCELLED, TIMEOUT, LEASE_LOST, DRAINED."""

    def __init__(self, code: ErrorCode, message: str, **details: Any) -> None:
        super().__init__(message, code=code, **details)
