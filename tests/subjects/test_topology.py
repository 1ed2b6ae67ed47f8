"""Streams, buckets and consumers are declared as the contract says, and never step on each other."""

import re
from itertools import combinations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects.commands import Verb
from subjects.grammar import Grammar
from subjects.lanes import ANY, lane_name
from subjects.lease import LEASE_SECONDS
from subjects.topology import (
    DAY,
    HEARTBEAT_SECONDS,
    RECORD_AGE_SECONDS,
    REFRESH_SECONDS,
    SECOND,
    WORKER_TTL_SECONDS,
    Stream,
    Topology,
)

TOPOLOGY = Topology(Grammar())
STREAMS = {stream.name: stream for stream in TOPOLOGY.streams()}
CAPABILITIES = st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True).filter(lambda name: name != ANY)
LANES = st.tuples(
    st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True),
    st.sets(CAPABILITIES, max_size=4).map(lane_name),
    st.integers(1, 10),
)


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    left, right = one.split("."), other.split(".")
    for first, second in zip(left, right, strict=False):
        if ">" in {first, second}:
            return True
        if "*" not in {first, second} and first != second:
            return False
    return len(left) == len(right)


def names(topology: Topology) -> set[str]:
    return {stream.name for stream in topology.streams()}


def test_every_store_of_the_contract_is_there_and_no_other() -> None:
    assert set(STREAMS) == {
        "H2K_COMMANDS",
        "H2K_JOBS",
        "H2K_PROGRESS",
        "H2K_DEAD",
        "KV_h2k_jobs",
        "KV_h2k_workers",
        "KV_h2k_lanes",
        "KV_h2k_locks",
        "KV_h2k_settings",
        "OBJ_h2k_artifacts",
    }


def test_no_two_streams_share_a_subject() -> None:
    subjects = [subject for stream in STREAMS.values() for subject in stream.subjects]
    assert not [pair for pair in combinations(subjects, 2) if overlap(*pair)]


@pytest.mark.parametrize("name", ["H2K_COMMANDS", "H2K_JOBS"])
def test_a_queue_refuses_a_second_message_on_a_subject(name: str) -> None:
    stream = STREAMS[name]
    assert stream.retention == "workqueue"
    assert (stream.max_msgs_per_subject, stream.discard, stream.discard_new_per_subject) == (1, "new", True)
    assert stream.max_age == 0


@pytest.mark.parametrize(("name", "days"), [("H2K_PROGRESS", 7), ("H2K_DEAD", 30)])
def test_history_is_kept_by_age(name: str, days: int) -> None:
    stream = STREAMS[name]
    assert (stream.retention, stream.discard, stream.max_age) == ("limits", "old", days * DAY)


def test_progress_is_bounded_for_each_job() -> None:
    assert STREAMS["H2K_PROGRESS"].max_msgs_per_subject == 1000


@pytest.mark.parametrize("name", ["KV_h2k_jobs", "KV_h2k_workers", "KV_h2k_lanes"])
def test_a_bucket_is_one_that_every_client_can_open(name: str) -> None:
    stream = STREAMS[name]
    assert stream.subjects == (f"$KV.{name.removeprefix('KV_')}.>",)
    assert (stream.max_msgs_per_subject, stream.discard, stream.retention) == (1, "new", "limits")
    assert stream.allow_direct
    assert stream.deny_delete
    assert not stream.allow_rollup_hdrs


def test_records_expire_by_age_and_cannot_be_purged() -> None:
    stream = STREAMS["KV_h2k_jobs"]
    assert (stream.max_age, stream.deny_purge) == (RECORD_AGE_SECONDS * SECOND, True)


def test_what_lives_on_is_written_anew_long_before_it_would_expire() -> None:
    assert 4 * REFRESH_SECONDS < RECORD_AGE_SECONDS


def test_lanes_are_kept_and_heartbeats_expire() -> None:
    assert STREAMS["KV_h2k_lanes"].max_age == 0
    assert STREAMS["KV_h2k_workers"].max_age == int(WORKER_TTL_SECONDS * SECOND)


def test_artifacts_are_an_object_store_of_limited_age() -> None:
    stream = STREAMS["OBJ_h2k_artifacts"]
    assert stream.subjects == ("$O.h2k_artifacts.C.>", "$O.h2k_artifacts.M.>")
    assert stream.max_age == 30 * DAY


def test_no_header_can_empty_a_stream() -> None:
    assert not any(stream.allow_rollup_hdrs for stream in STREAMS.values())


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_what_must_not_be_left_to_a_default_is_always_sent(stream: Stream) -> None:
    sent = stream.settings()
    assert {"name", "subjects", "retention", "discard", "storage"} <= set(sent)
    assert sent["storage"] == "file"
    assert msgspec.json.encode(sent)


@pytest.mark.parametrize("replicas", [1, 3])
def test_replicas_apply_to_every_store(replicas: int) -> None:
    assert {stream.num_replicas for stream in Topology(Grammar(), replicas).streams()} == {replicas}


@pytest.mark.parametrize("replicas", [3, 5])
def test_replicas_are_sent(replicas: int) -> None:
    assert {each.settings()["num_replicas"] for each in Topology(Grammar(), replicas).streams()} == {replicas}


def test_every_subject_of_the_grammar_is_stored_where_it_belongs() -> None:
    grammar = TOPOLOGY.grammar
    homes = {
        grammar.command("ann", Verb.SUBMIT, "j"): "H2K_COMMANDS",
        grammar.job("default", "kvm", 5, "j"): "H2K_JOBS",
        grammar.progress("j"): "H2K_PROGRESS",
        grammar.dead("why", "j"): "H2K_DEAD",
        TOPOLOGY.record_subject("j"): "KV_h2k_jobs",
        TOPOLOGY.worker_subject("w"): "KV_h2k_workers",
        TOPOLOGY.lane_subject("default", "kvm", 5): "KV_h2k_lanes",
    }
    found = {
        subject: [
            name
            for name, stream in STREAMS.items()
            if any(overlap(subject, each) for each in stream.subjects)
        ]
        for subject in homes
    }
    assert found == {subject: [name] for subject, name in homes.items()}


def test_control_hints_are_not_stored() -> None:
    hint = TOPOLOGY.grammar.control("w")
    assert not any(overlap(hint, subject) for stream in STREAMS.values() for subject in stream.subjects)


def test_schedulers_share_one_durable_consumer_of_all_commands() -> None:
    consumer = TOPOLOGY.commands_consumer()
    assert (consumer.durable_name, consumer.filter_subject) == ("scheduler", "h2k.v1.commands.*.*.*")
    assert (consumer.ack_policy, consumer.max_deliver) == ("explicit", -1)
    assert {"priority_groups", "priority_policy"}.isdisjoint(msgspec.to_builtins(consumer))


def test_a_lanes_consumer_is_prioritized_patient_and_wide() -> None:
    consumer = TOPOLOGY.lane_consumer("default", "guestfs+kvm", 2)
    assert consumer.filter_subject == "h2k.v1.jobs.default.guestfs+kvm.2.*"
    assert (consumer.priority_policy, consumer.priority_groups) == ("prioritized", ("workers",))
    assert (consumer.ack_policy, consumer.max_deliver) == ("explicit", -1)
    assert consumer.ack_wait == int(LEASE_SECONDS * SECOND)
    assert (consumer.max_ack_pending, consumer.max_waiting) == (20_000, 20_000)


@given(LANES, LANES)
def test_consumers_of_different_lanes_never_meet(
    one: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    first, second = TOPOLOGY.lane_consumer(*one), TOPOLOGY.lane_consumer(*other)
    assert overlap(first.filter_subject, second.filter_subject) == (one == other)
    assert (first.durable_name == second.durable_name) == (one == other)


@given(LANES)
def test_a_lanes_consumer_has_a_name_that_jetstream_takes(lane: tuple[str, str, int]) -> None:
    assert re.fullmatch(r"[^\s.*>/\\]{1,255}", TOPOLOGY.lane_consumer(*lane).durable_name)


@given(LANES, LANES)
def test_a_lanes_key_is_legal_for_every_client_and_its_own(
    one: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    prefix = "$KV.h2k_lanes."
    key, another = (TOPOLOGY.lane_subject(*lane).removeprefix(prefix) for lane in (one, other))
    assert re.fullmatch(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*", key)
    assert (key == another) == (one == other)


@pytest.mark.parametrize("last", ["h", "i"])
def test_the_longest_lane_still_has_a_consumer_of_its_own(last: str) -> None:
    shared = [letter * 32 for letter in "abcdefg"]
    name = TOPOLOGY.lane_consumer("p" * 32, lane_name([*shared, last * 25]), 10).durable_name
    other = TOPOLOGY.lane_consumer("p" * 32, lane_name([*shared, "z" * 25]), 10).durable_name
    assert re.fullmatch(r"[^\s.*>/\\]{1,254}", name)
    assert name != other


def test_the_consumer_of_an_ordinary_lane_is_named_after_it() -> None:
    assert TOPOLOGY.lane_consumer("default", "guestfs+kvm", 2).durable_name == "default_guestfs+kvm_2"


def test_a_worker_is_listed_until_three_heartbeats_are_missing() -> None:
    assert WORKER_TTL_SECONDS > 3 * HEARTBEAT_SECONDS


@pytest.mark.parametrize("root", ["site-a.v1", "acme.h2k.v1", "h2k2.v1"])
def test_fleets_share_an_account_under_roots_of_their_own(root: str) -> None:
    other = Topology(Grammar(root))
    assert names(TOPOLOGY).isdisjoint(names(other))
    ours, theirs = (
        [each for stream in fleet.streams() for each in stream.subjects] for fleet in (TOPOLOGY, other)
    )
    assert not [(one, two) for one in ours for two in theirs if overlap(one, two)]


@pytest.mark.parametrize("root", ["h2k.v1", "site-a.v1", "acme.h2k.v1"])
def test_every_name_is_one_that_jetstream_takes(root: str) -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,255}", name) for name in names(Topology(Grammar(root))))


@pytest.mark.parametrize(("one", "other"), [("a.b.v1", "a-b.v1"), ("ab.v1", "a.b.v1")])
def test_different_roots_never_share_a_name(one: str, other: str) -> None:
    assert names(Topology(Grammar(one))).isdisjoint(names(Topology(Grammar(other))))
