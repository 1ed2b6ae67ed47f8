"""The declared streams come into being, grow, and are never harmed."""

from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.connection import Connection
from h2kbus.errors import ContractConflict
from h2kbus.provision import ensure_consumer, provision
from subjects.grammar import Grammar
from subjects.topology import DAY, SECOND, Stream, Topology


async def config_of(connection: Connection, stream: str) -> dict[str, Any]:
    info: dict[str, Any] = (await connection.api(f"STREAM.INFO.{stream}"))["config"]
    return info


async def change(connection: Connection, stream: str, **changes: object) -> None:
    config = await config_of(connection, stream)
    await connection.api(f"STREAM.UPDATE.{stream}", {**config, **changes})


async def make_instead(connection: Connection, stream: Stream, **changes: object) -> None:
    """Somebody else's stream under a name of ours."""
    await connection.api(f"STREAM.CREATE.{stream.name}", {**stream.settings(), **changes})


async def test_first_run_makes_every_stream(connection: Connection, topology: Topology) -> None:
    assert await provision(connection, topology) == [each.name for each in topology.streams()]


async def test_second_run_changes_nothing(provisioned: Connection, topology: Topology) -> None:
    assert await provision(provisioned, topology) == []


async def test_streams_are_as_declared(provisioned: Connection, topology: Topology) -> None:
    for stream in topology.streams():
        config = await config_of(provisioned, stream.name)
        wanted = msgspec.json.decode(msgspec.json.encode(stream.settings()))
        assert {field: config.get(field) for field in wanted} == wanted


async def test_many_may_run_at_once(connection: Connection, topology: Topology) -> None:
    made: list[list[str]] = []

    async def run() -> None:
        made.append(await provision(connection, topology))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(run)
    assert await provision(connection, topology) == []
    assert len(made) == 4


async def test_two_fleets_share_a_server(provisioned: Connection, topology: Topology) -> None:
    other = Topology(Grammar(f"other{topology.grammar.root}"))
    assert len(await provision(provisioned, other)) == len(other.streams())
    assert await provision(provisioned, topology) == []


async def test_stream_with_smaller_limits_grows(provisioned: Connection, topology: Topology) -> None:
    await change(provisioned, topology.progress_stream, max_age=DAY, max_msgs_per_subject=10)
    assert await provision(provisioned, topology) == [topology.progress_stream]
    config = await config_of(provisioned, topology.progress_stream)
    assert (config["max_age"], config["max_msgs_per_subject"]) == (7 * DAY, 1000)


async def test_growing_leaves_alone_what_is_not_declared(provisioned: Connection, topology: Topology) -> None:
    await change(provisioned, topology.progress_stream, max_age=DAY, max_bytes=10_000_000)
    await provision(provisioned, topology)
    assert (await config_of(provisioned, topology.progress_stream))["max_bytes"] == 10_000_000


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_age", 30 * DAY), ("max_age", 0), ("max_msgs_per_subject", 5000), ("max_msgs_per_subject", -1)],
)
async def test_stream_with_larger_limits_is_never_shrunk(
    provisioned: Connection, topology: Topology, field: str, value: int
) -> None:
    await change(provisioned, topology.progress_stream, **{field: value})
    with pytest.raises(ContractConflict, match=f"{topology.progress_stream} has {field}=.* would shrink it"):
        await provision(provisioned, topology)
    assert (await config_of(provisioned, topology.progress_stream))[field] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [("retention", "limits"), ("storage", "memory"), ("discard_new_per_subject", False)],
)
async def test_stream_of_another_shape_is_left_alone(
    connection: Connection, topology: Topology, field: str, value: object
) -> None:
    jobs = next(each for each in topology.streams() if each.name == topology.jobs_stream)
    await make_instead(connection, jobs, **{field: value})
    with pytest.raises(ContractConflict, match=f"{jobs.name} has {field}="):
        await provision(connection, topology)
    assert (await config_of(connection, jobs.name)).get(field, False) == value


async def test_no_message_is_lost_by_a_second_run(provisioned: Connection, topology: Topology) -> None:
    await provisioned.publish(topology.grammar.job("default", "any", 5, "j1"), b"x")
    await provision(provisioned, topology)
    info = await provisioned.api(f"STREAM.INFO.{topology.jobs_stream}")
    assert info["state"]["messages"] == 1


async def test_consumer_of_commands_is_as_declared(provisioned: Connection, topology: Topology) -> None:
    wanted = topology.commands_consumer()
    info = await provisioned.api(f"CONSUMER.INFO.{topology.commands_stream}.{wanted.durable_name}")
    declared = msgspec.to_builtins(wanted)
    assert {field: info["config"].get(field) for field in declared} == declared


async def test_existing_consumer_learns_another_ack_wait(provisioned: Connection, topology: Topology) -> None:
    changed = msgspec.structs.replace(topology.commands_consumer(), ack_wait=77 * SECOND)
    await ensure_consumer(provisioned, topology.commands_stream, changed)
    info = await provisioned.api(f"CONSUMER.INFO.{topology.commands_stream}.{changed.durable_name}")
    assert info["config"]["ack_wait"] == 77 * SECOND


async def test_bucket_made_anew_never_counts_the_same_numbers_again(
    provisioned: Connection, topology: Topology
) -> None:
    """Revisions are fencing tokens: one from before must not beat those that come after."""
    before = await provisioned.publish(topology.record_subject("j1"), b"x")
    await provisioned.api(f"STREAM.DELETE.{topology.bucket_stream(topology.jobs_bucket)}")
    await provision(provisioned, topology)
    assert await provisioned.publish(topology.record_subject("j1"), b"x") > before


async def test_sealed_stream_is_named(provisioned: Connection, topology: Topology) -> None:
    await change(provisioned, topology.dead_stream, sealed=True)
    with pytest.raises(ContractConflict, match=f"{topology.dead_stream} is sealed"):
        await provision(provisioned, topology)


async def test_consumer_for_no_stream_is_an_error(connection: Connection, topology: Topology) -> None:
    with pytest.raises(KeyError):
        await ensure_consumer(connection, topology.jobs_stream, topology.lane_consumer("default", "any", 5))
