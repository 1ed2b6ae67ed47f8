"""Whose jobs a worker executes: anybody's, or those alone that a trusted key has signed."""

import datetime as dt
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode
from h2kbus.signing import Signer, is_genuine
from subjects.record import JobRecord
from subjects.result import JobError
from subjects.signature import AHEAD_DAYS, SIGNATURE_DAYS
from subjects.spec import JobSpec


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The public keys whose jobs a worker executes, None for everybody's, and what it signs with itself."""

    trusted: frozenset[str] | None = None
    signer: Signer | None = None


NO_KEYS: Final = Keys()
"""Of a worker that executes everybody's jobs and signs nothing."""


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that a worker of one pool trusts, in the fleet under a root."""

    keys: frozenset[str]
    root: str
    pool: str

    def objection(self, record: JobRecord, stored_at: float) -> JobError | None:
        """Why the job must not be executed, or None.

        Everything that an attempt acts on is held against the signature. `stored_at` is the server's time
        of when the job was put in its lane, in seconds since 1970: no other clock is asked.
        """
        spec = record.spec
        if spec is None or spec.signature is None:
            words = "the job is not signed, and this worker executes signed jobs only"
            return JobError(code=ErrorCode.SIGNATURE_MISSING, message=words)
        flaw = self._flaw(record.job_id, spec, dt.datetime.fromtimestamp(stored_at, dt.UTC))
        if flaw is None:
            return None
        return JobError(code=ErrorCode.SIGNATURE_INVALID, message=flaw, details={"key": spec.signature.key})

    def _flaw(self, job_id: str, spec: JobSpec, queued: dt.datetime) -> str | None:
        if spec.signature is None or spec.signature.key not in self.keys:
            return "the job is signed with a key that this worker does not trust"
        if not is_genuine(spec, self.root):
            return "the signature is not over this job: something was changed after it was signed"
        if spec.job_id != job_id:
            return f"the signature is for job {spec.job_id}"
        if spec.pool != self.pool:
            return f"the signature is for pool {spec.pool}"
        return _flaw_of_age(spec.created_at, queued)


def _flaw_of_age(created: dt.datetime | None, queued: dt.datetime) -> str | None:
    """A signature may not outlive the record that makes its replay a no-op."""
    if created is None or queued - created > dt.timedelta(days=SIGNATURE_DAYS):
        return f"the signature was more than {SIGNATURE_DAYS} days old when the job went to its lane"
    if created - queued > dt.timedelta(days=AHEAD_DAYS):
        return "the signature is from the future: look at the clock of the signer's host"
    return None
