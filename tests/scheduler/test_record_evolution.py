"""One record, written by everybody who may write it, in any order, each from what it read some time ago."""

import datetime as dt
import itertools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import ClassVar

import hypothesis
import msgspec
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from h2kbus.connection import connect
from h2kbus.errors import IllegalTransition, RevisionConflict
from h2kbus.provision import provision
from h2kbus.settings import ConnectionSettings
from h2kbus.store import Entry, JobStore
from subjects import lifecycle
from subjects.codec import encode
from subjects.codes import ErrorCode
from subjects.grammar import Grammar
from subjects.record import JobRecord, ProgressSummary
from subjects.result import JobError, JobResult
from subjects.spec import ExecutionPolicy
from subjects.states import TRANSITIONS, State
from subjects.topology import Topology
from tests.conftest import rehearsal
from workers.claim import Decision, decide

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
FAILURE = JobError(code=ErrorCode.TOOL_FAILED, message="made up")
LOST = JobError(code=ErrorCode.WORKER_LOST, message="went silent")
CLAIMANTS = st.sampled_from(["claimant-a", "claimant-b"])
ACTORS = st.sampled_from(["claimant-a", "claimant-b", "canceller", "rescuer"])
POLICIES = st.builds(ExecutionPolicy, retry_count=st.integers(0, 3), idempotent=st.booleans())

Build = Callable[[JobRecord], JobRecord]


class RecordEvolution(RuleBasedStateMachine):
    """Each actor keeps the entry that it read last, however old, and writes on it by compare-and-set."""

    portal: ClassVar[BlockingPortal]
    store: ClassVar[JobStore]
    numbers: ClassVar[Iterator[int]]

    @initialize(policy=POLICIES)
    def submit(self, policy: ExecutionPolicy) -> None:
        self.job_id = f"j{next(self.numbers)}"
        spec = msgspec.structs.replace(rehearsal(job_id=self.job_id), execution_policy=policy)
        record = lifecycle.created(
            spec, job_id=self.job_id, submitter="ann", lane="any", now=NOW, by="scheduler"
        )
        first = self.portal.call(self.store.create, record)
        self.read_by: dict[str, Entry] = dict.fromkeys(
            ("claimant-a", "claimant-b", "canceller", "rescuer"), first
        )
        self.held: dict[str, int] = {}
        self.history = [first]
        self.granted: list[int] = []

    @rule(actor=ACTORS)
    def read(self, actor: str) -> None:
        found = self.portal.call(self.store.get, self.job_id)
        self.read_by[actor] = msgspec.structs.replace(found, written="")

    @rule(actor=CLAIMANTS)
    def claim(self, actor: str) -> None:
        entry = self.read_by[actor]
        if decide(entry.record) is not Decision.CLAIM:
            return

        def build(record: JobRecord) -> JobRecord:
            return lifecycle.claimed(record, worker_id=actor, revision=entry.revision, now=NOW)

        if self.write(actor, build):
            self.held[actor] = entry.revision
            if lifecycle.is_granted(self.history[-1].record):
                self.granted.append(entry.revision)

    @rule(actor=CLAIMANTS, percent=st.integers(0, 100), publishes=st.booleans())
    def renew(self, actor: str, percent: int, publishes: bool) -> None:
        def build(record: JobRecord) -> JobRecord:
            summary = ProgressSummary(phase="work", progress_percent=percent)
            renewed = lifecycle.renewed(record, summary, now=NOW)
            return lifecycle.publishing(renewed) if publishes else renewed

        self.write_as_holder(actor, build)

    @rule(actor=CLAIMANTS)
    def complete(self, actor: str) -> None:
        def build(record: JobRecord) -> JobRecord:
            result = JobResult(job_id=self.job_id, status=State.COMPLETED, completed_at=NOW, worker_id=actor)
            return lifecycle.completed(record, result, now=NOW)

        self.write_as_holder(actor, build)

    @rule(actor=CLAIMANTS)
    def fail(self, actor: str) -> None:
        def build(record: JobRecord) -> JobRecord:
            if lifecycle.may_run_again(record):
                return lifecycle.retrying(record, FAILURE, now=NOW, by=actor, next_attempt_at=NOW)
            return lifecycle.failed(record, FAILURE, now=NOW, by=actor)

        self.write_as_holder(actor, build)

    @rule()
    def cancel(self) -> None:
        def build(record: JobRecord) -> JobRecord:
            if record.state.leased or record.publishing:
                return lifecycle.stop_requested(record, ErrorCode.CANCELLED, now=NOW)
            cause = JobError(code=ErrorCode.CANCELLED, message="not needed")
            return lifecycle.stopped(record, cause, now=NOW, by="scheduler")

        self.write("canceller", build)

    @rule()
    def take_back(self) -> None:
        """It may be wrong about the holder's death; then the holder is what has to stop."""
        if self.read_by["rescuer"].record.state.leased:
            self.write("rescuer", lambda record: lifecycle.taken_back(record, LOST, now=NOW, by="scheduler"))

    def write_as_holder(self, actor: str, build: Build) -> None:
        """A holder goes by the lease in what it read, as a worker's renewal does."""
        lease = self.read_by[actor].record.lease
        if lease is not None and lease.worker_id == actor and self.held.get(actor) == lease.token:
            self.write(actor, build)

    def write(self, actor: str, build: Build) -> bool:
        entry = self.read_by[actor]
        try:
            following = build(entry.record)
        except IllegalTransition:
            return False
        try:
            written = self.portal.call(self.store.swap, following, entry.revision)
        except RevisionConflict:
            assert entry.revision != self.history[-1].revision
            return False
        assert entry == self.history[-1]
        self.read_by[actor] = written
        self.history.append(written)
        return True

    @invariant()
    def the_bucket_holds_what_was_written_last(self) -> None:
        if hasattr(self, "history"):
            found, written = self.portal.call(self.store.get, self.job_id), self.history[-1]
            assert (found.record, found.revision) == (written.record, written.revision)

    def teardown(self) -> None:
        if not hasattr(self, "history"):
            return
        records = [entry.record for entry in self.history]
        for earlier, later in pairwise(records):
            trail, known = later.transitions, earlier.transitions
            assert trail[: len(known)] == known
            assert not earlier.state.terminal or later == earlier
        last = records[-1].transitions
        assert all(one.to is other.before for one, other in pairwise(last))
        assert all(line.before is None or line.to in TRANSITIONS[line.before] for line in last)
        tokens = [each.lease.token for each in records if each.lease]
        assert tokens == sorted(tokens)
        assert sum(line.to.terminal for line in last) <= 1
        policy = records[0].spec.execution_policy if records[0].spec else ExecutionPolicy()
        assert len(self.granted) <= (policy.retry_count + 1 if policy.idempotent else 1)


class BlindStore(JobStore):
    """Puts records without comparing, as a broken store would."""

    async def swap(self, record: JobRecord, revision: int) -> Entry:
        subject = self.topology.record_subject(record.job_id)
        return Entry(record, await self._connection.publish(subject, encode(record)))


def explore(settings: ConnectionSettings, store: type[JobStore]) -> None:
    """Run many random interleavings against a bucket of the real server."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(connect(settings)) as connection,
    ):
        topology = Topology(Grammar(settings.root))
        portal.call(provision, connection, topology)
        names = {"portal": portal, "store": store(connection, topology), "numbers": itertools.count()}
        run_state_machine_as_test(
            type("Bound", (RecordEvolution,), names),
            settings=hypothesis.settings(
                max_examples=150,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.slow
def test_record_keeps_to_the_table_whoever_writes_it_and_when(settings: ConnectionSettings) -> None:
    explore(settings, JobStore)


@pytest.mark.slow
def test_store_that_does_not_compare_is_found_out(settings: ConnectionSettings) -> None:
    with pytest.raises(AssertionError):
        explore(settings, BlindStore)
