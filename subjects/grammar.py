"""The subject grammar: the only place where subjects are put together and taken apart."""

import re
from typing import Final

import msgspec

from subjects.codes import InvalidSubject
from subjects.commands import Verb
from subjects.lanes import lane_needs

DEFAULT_ROOT: Final = "h2k.v1"
# Lower case and no `_`, so that different roots never give one name to a stream or bucket.
_ROOT = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*\.v1")
_UNSAFE = re.compile(r"[.*>\s\x00-\x1f\x7f]")
MAX_TOKEN: Final = 128
MAX_LANE: Final = 256
"""Room for seven capabilities of the longest kind."""
_LONGEST: Final = {
    "commands": (MAX_TOKEN, MAX_TOKEN, MAX_TOKEN),
    "jobs": (MAX_TOKEN, MAX_LANE, MAX_TOKEN, MAX_TOKEN),
    "progress": (MAX_TOKEN,),
}
"""How long each token may be that follows a kind of subject's name."""
_VERBS = {verb.value: verb for verb in Verb}
_PRIORITIES = {str(number): number for number in range(1, 11)}


class CommandSubject(msgspec.Struct, frozen=True):
    """What a command's subject says."""

    submitter: str
    verb: Verb
    job_id: str


class JobSubject(msgspec.Struct, frozen=True):
    """What the subject of a job in its lane says."""

    pool: str
    lane: str
    priority: int
    job_id: str


def token(value: str, longest: int = MAX_TOKEN) -> str:
    """Return one subject token, or raise InvalidSubject if NATS would read it as something else."""
    if len(value) > longest:
        raise InvalidSubject(f"{value[:40]!r}... has {len(value)} characters; at most {longest} are allowed")
    if not value or _UNSAFE.search(value) or not value.isprintable():
        raise InvalidSubject(f"{value[:40]!r} cannot stand in a subject: no dots, wildcards or spaces")
    return value


class Grammar(msgspec.Struct, frozen=True):
    """All subjects under one root. Several fleets can share an account, each under a root of its own."""

    root: str = DEFAULT_ROOT

    def __post_init__(self) -> None:
        if not _ROOT.fullmatch(self.root):
            raise InvalidSubject(f"{self.root!r} is not a root: use name.v1, as in {DEFAULT_ROOT}")

    @property
    def fleet(self) -> str:
        """The root without its version, as one token: the prefix of stream and bucket names."""
        return self.root.removesuffix(".v1").replace(".", "_")

    def command(self, submitter: str, verb: Verb, job_id: str) -> str:
        return f"{self.root}.commands.{token(submitter)}.{verb.value}.{token(job_id)}"

    def commands(self, submitter: str = "*", verb: str = "*", job_id: str = "*") -> str:
        return f"{self.root}.commands.{submitter}.{verb}.{job_id}"

    def parse_command(self, subject: str) -> CommandSubject:
        """Read a command's subject; raises InvalidSubject for anything else, unknown verbs included."""
        submitter, verb, job_id = self._tail(subject, "commands")
        known = _VERBS.get(verb)
        if known is None:
            raise InvalidSubject(f"unknown verb {verb!r}; known: {', '.join(_VERBS)}")
        return CommandSubject(submitter, known, job_id)

    def job(self, pool: str, lane: str, priority: int, job_id: str) -> str:
        return f"{self.lane(pool, lane, priority)}.{token(job_id)}"

    def lane(self, pool: str, lane: str, priority: int) -> str:
        """The subject prefix of one lane at one priority."""
        if str(priority) not in _PRIORITIES:
            raise InvalidSubject(f"priority {priority} is not within 1-10")
        lane_needs(lane)
        return f"{self.root}.jobs.{token(pool)}.{token(lane, MAX_LANE)}.{priority}"

    def parse_job(self, subject: str) -> JobSubject:
        pool, lane, priority, job_id = self._tail(subject, "jobs")
        lane_needs(lane)
        if priority not in _PRIORITIES:
            raise InvalidSubject(f"priority {priority!r} is not within 1-10")
        return JobSubject(pool, lane, _PRIORITIES[priority], job_id)

    def progress(self, job_id: str) -> str:
        return f"{self.root}.progress.{token(job_id)}"

    def progress_of_all(self) -> str:
        return f"{self.root}.progress.*"

    def parse_progress(self, subject: str) -> str:
        return self._tail(subject, "progress")[0]

    def dead(self, reason: str, job_id: str) -> str:
        return f"{self.root}.dead.{token(reason)}.{token(job_id)}"

    def control(self, worker_id: str) -> str:
        return f"{self.root}.control.{token(worker_id)}"

    def _tail(self, subject: str, kind: str) -> list[str]:
        longest = _LONGEST[kind]
        prefix = f"{self.root}.{kind}."
        parts = subject.removeprefix(prefix).split(".")
        if not subject.startswith(prefix) or len(parts) != len(longest):
            raise InvalidSubject(f"{subject[:200]!r} is not a {kind} subject under {self.root}")
        return [token(*each) for each in zip(parts, longest, strict=True)]
