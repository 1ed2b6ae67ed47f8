"""The invariants, held against everything that a campaign left behind. Pure: evidence in, violations out."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec

from subjects.events import ProgressEvent
from subjects.record import JobRecord
from subjects.spec import JobSpec
from subjects.states import TRANSITIONS, State
from tests.chaos.ledger import Line


class Violation(msgspec.Struct, frozen=True, order=True):
    """A promise that was broken."""

    promise: str
    job_id: str
    detail: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that a campaign left. `accepted` are the jobs whose submission was confirmed, by id.

    `files` is what lies in the output directories; `left_over` names processes, messages, locks and
    scratch directories that should be gone.
    """

    accepted: dict[str, JobSpec]
    records: dict[str, JobRecord]
    events: dict[str, list[ProgressEvent]] = {}
    ledger: list[Line] = []
    files: dict[str, bytes] = {}
    left_over: list[str] = []


def check(evidence: Evidence) -> list[Violation]:
    """Every broken promise."""
    lines: defaultdict[str, list[Line]] = defaultdict(list)
    for line in evidence.ledger:
        lines[line.job_id].append(line)
    found = [Violation("nothing is left over", "", each) for each in evidence.left_over]
    for job_id, spec in evidence.accepted.items():
        record = evidence.records.get(job_id)
        if record is None:
            found.append(Violation("no accepted job is lost", job_id, "it has no record"))
            continue
        found += _ending(record)
        found += _trail(record)
        found += _executions(record, spec, lines[job_id])
        found += _events(record, evidence.events.get(job_id, []))
        found += _outputs(record, spec, lines[job_id], evidence.files)
    found += _limits(evidence)
    return sorted(set(found))


def _ending(record: JobRecord) -> Iterator[Violation]:
    if not record.state.terminal:
        yield Violation("every job ends", record.job_id, f"it is {record.state}: {record.pending_reason}")
    elif record.result is None or record.result.status is not record.state:
        yield Violation("every job ends", record.job_id, f"{record.state} without a result that says so")


def _trail(record: JobRecord) -> Iterator[Violation]:
    promise = "every move is in the table"
    for line in record.transitions:
        if line.before is not None and line.to not in TRANSITIONS[line.before]:
            yield Violation(promise, record.job_id, f"{line.before} to {line.to}")
    for earlier, later in pairwise(record.transitions):
        if later.before is not earlier.to:
            yield Violation(promise, record.job_id, f"{earlier.to} is followed by a move from {later.before}")
    ends = [line.to for line in record.transitions if line.to.terminal]
    if len(ends) > 1:
        yield Violation("one terminal state", record.job_id, f"it ended {', '.join(ends)}")


def _executions(record: JobRecord, spec: JobSpec, lines: list[Line]) -> Iterator[Violation]:
    starts = [line for line in lines if line.event == "start"]
    policy = spec.execution_policy
    tokens = [line.token for line in starts]
    if len(set(tokens)) != len(tokens):
        yield Violation("a claim executes once", record.job_id, f"tokens {tokens}")
    if tokens != sorted(tokens):
        yield Violation("tokens grow", record.job_id, f"tokens {tokens}")
    if not policy.idempotent and len(starts) > 1:
        yield Violation("what is not idempotent starts once", record.job_id, f"tokens {tokens}")
    returned = sum("DRAINED" in (line.reason or "") for line in record.transitions)
    if len(starts) > policy.retry_count + 1 + returned:
        yield Violation("executions are granted", record.job_id, f"{len(starts)} of {policy.retry_count + 1}")
    if record.state is State.COMPLETED and not starts:
        yield Violation("what completes has run", record.job_id, "no execution left evidence")


def _events(record: JobRecord, events: list[ProgressEvent]) -> Iterator[Violation]:
    """As a reader sees them who ignores what is not above the highest number seen."""
    seen: list[ProgressEvent] = []
    for event in events:
        if not seen or event.seq > seen[-1].seq:
            seen.append(event)
    if record.state.terminal and (not seen or seen[-1].state is not record.state):
        last = seen[-1].state if seen else "nothing"
        yield Violation("the last event tells the end", record.job_id, f"{record.state}, told {last}")
    for earlier, later in pairwise(seen):
        same = (earlier.attempt, earlier.worker_id) == (later.attempt, later.worker_id)
        if same and later.state.leased and later.progress_percent < earlier.progress_percent:
            words = f"{earlier.progress_percent} then {later.progress_percent}"
            yield Violation("progress never falls", record.job_id, words)
        if earlier.state.terminal:
            yield Violation("nothing follows the end", record.job_id, f"{earlier.state}, then {later.state}")


def _limits(evidence: Evidence) -> Iterator[Violation]:
    """Among the executions that counted; a fenced one may go on for a moment while its place is another's."""
    ends = {(line.job_id, line.token): line.at for line in evidence.ledger if line.event == "end"}
    moments: defaultdict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for line in evidence.ledger:
        spec, record = evidence.accepted.get(line.job_id), evidence.records.get(line.job_id)
        if line.event != "start" or spec is None or record is None or record.result is None:
            continue
        end = ends.get((line.job_id, line.token))
        if end is None or record.result.summary.get("fence") != line.token:
            continue
        for label in spec.limit:
            moments[label] += [(line.at, 1, line.job_id), (end, -1, line.job_id)]
    for label, changes in moments.items():
        running = 0
        for _, change, job_id in sorted(changes):
            running += change
            if running > (most := evidence.accepted[job_id].limit[label]):
                yield Violation("named limits hold", job_id, f"{running} of {most} at once with {label}")


def _outputs(
    record: JobRecord, spec: JobSpec, lines: list[Line], files: dict[str, bytes]
) -> Iterator[Violation]:
    name = spec.parameters.get("name")
    if name is None:
        return
    path = str(Path(spec.artifacts.output_path) / name)
    content = files.get(path)
    mine = content is not None and content.split(b" ", 1)[0].decode() == record.job_id
    if record.state is not State.COMPLETED:
        if mine:
            yield Violation("no output without completion", record.job_id, f"{path} of a {record.state} job")
        return
    summary = record.result.summary if record.result else {}
    if content is None or not mine:
        yield Violation("what completed has its output", record.job_id, f"{path} is not there")
    elif hashlib.sha256(content).hexdigest() != summary.get("sha256"):
        yield Violation("outputs are those recorded", record.job_id, f"{path} differs from its checksum")
    elif summary.get("fence") not in {line.token for line in lines}:
        yield Violation("outputs are those recorded", record.job_id, "no execution had that token")
