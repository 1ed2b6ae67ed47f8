"""Attacks by users with valid keys, tried for real; where the door is open the same is seen to work."""

import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.accounts import BUS_ACCOUNT, User
from h2kbus.connection import Connection, connect
from h2kbus.errors import BusError, PermissionDenied, SubjectTaken
from h2kbus.provision import ensure_consumer, provision
from h2kbus.pull import PullInbox, PullRequest
from h2kbus.settings import ConnectionSettings
from subjects.codec import encode
from subjects.commands import Verb
from subjects.fleet import WorkerOrder
from tests.security.access.conftest import TOPOLOGY, USERS, Guarded
from tests.servers import start_server, wheel_server
from workers.orders import Orders

RECORDS = TOPOLOGY.bucket_stream(TOPOLOGY.jobs_bucket)
READ = f"DIRECT.GET.{RECORDS}"


def one_account(users: tuple[User, ...]) -> dict[str, Any]:
    """The open door: the same users with the same permissions, but no accounts around them."""
    listed: list[dict[str, Any]] = []
    for user in users:
        given = user.grants
        permissions = {"publish": {"allow": given.publish}, "subscribe": {"allow": given.subscribe}}
        listed.append({"nkey": user.nkey, "permissions": permissions})
    return {BUS_ACCOUNT: {"jetstream": "enabled", "users": listed}}


@pytest.fixture(scope="module")
def unwalled(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that has the permissions only."""
    place = tmp_path_factory.mktemp("unwalled")
    accounts = one_account(guarded.authority.ledger().users)
    config = {"jetstream": {"store_dir": str(place / "js")}, "accounts": accounts}
    process, url = start_server(wheel_server(), place, config)

    async def set_up() -> None:
        async with connect(open_settings(guarded, url, "root")) as admin:
            await provision(admin, TOPOLOGY)

    anyio.run(set_up)
    yield url
    process.kill()
    process.wait()


def open_settings(guarded: Guarded, url: str, name: str) -> ConnectionSettings:
    given = guarded.settings(name)
    return ConnectionSettings(url=url, nkey=given.nkey, inbox_prefix=given.inbox_prefix)


@pytest.fixture
async def admin(guarded: Guarded) -> AsyncIterator[Connection]:
    async with guarded.connection("root") as opened:
        yield opened


async def read(connection: Connection, stream: str, subject: str) -> bytes | None:
    stored = await connection.get_last(stream, subject)
    return stored.data if stored else None


async def steer_an_answer(admin: Connection, attacker: Connection, target: str) -> None:
    """Have the server itself write what the attacker may not: it answers wherever a request says."""
    await admin.publish(TOPOLOGY.record_subject("mine"), b"written by the attacker")
    request = f"{attacker.api_prefix}.{READ}.{TOPOLOGY.record_subject('mine')}"
    await attacker.publish_unconfirmed(request, b"", target)
    await attacker.publish_unconfirmed(f"{attacker.api_prefix}.STREAM.INFO.{RECORDS}", b"", target)
    await attacker.flush()
    await anyio.sleep(0.3)


FORGED = {
    "a record": (RECORDS, TOPOLOGY.record_subject("victims-job")),
    "a command in another's name": (
        TOPOLOGY.commands_stream,
        TOPOLOGY.grammar.command("bob", Verb.CANCEL, "victims-job"),
    ),
    "a job in a lane": (TOPOLOGY.jobs_stream, TOPOLOGY.grammar.job("default", "any", 5, "forged")),
}
OWN_WORK = {("w1", "a record"), ("s1", "a record"), ("s1", "a job in a lane")}
"""What workers and schedulers write anyway."""
ATTACKS = [
    (name, forged)
    for name in ("olga", "alice", "oscar", "w1", "s1")
    for forged in FORGED
    if (name, forged) not in OWN_WORK
]


@pytest.mark.parametrize(("name", "forged"), ATTACKS)
async def test_server_writes_nothing_for_those_who_may_not(
    guarded: Guarded, admin: Connection, name: str, forged: str
) -> None:
    stream, target = FORGED[forged]
    async with guarded.connection(name) as attacker:
        await steer_an_answer(admin, attacker, target)
    assert await read(admin, stream, target) is None


@pytest.mark.parametrize("forged", FORGED)
async def test_without_accounts_permissions_alone_would_let_it_through(
    guarded: Guarded, unwalled: str, forged: str
) -> None:
    """The attack is real: this is why users have accounts of their own."""
    stream, target = FORGED[forged]
    async with (
        connect(open_settings(guarded, unwalled, "root")) as admin,
        connect(open_settings(guarded, unwalled, "olga")) as attacker,
    ):
        assert await read(admin, stream, target) is None
        await steer_an_answer(admin, attacker, target)
        assert await read(admin, stream, target) is not None


async def test_pull_does_not_carry_jobs_to_where_the_worker_may_not_write(
    guarded: Guarded, admin: Connection
) -> None:
    target = TOPOLOGY.grammar.command("bob", Verb.SUBMIT, "steered")
    consumer = TOPOLOGY.lane_consumer("default", "steered", 5)
    async with guarded.connection("s1") as scheduler:
        await ensure_consumer(scheduler, TOPOLOGY.jobs_stream, consumer)
        await scheduler.publish(TOPOLOGY.grammar.job("default", "steered", 5, "steered"), b"{}")
    async with guarded.connection("w1") as attacker:
        body = json.dumps({"batch": 1, "no_wait": True, "group": "workers"}).encode()
        pull = f"{attacker.api_prefix}.CONSUMER.MSG.NEXT.{TOPOLOGY.jobs_stream}.{consumer.durable_name}"
        await attacker.publish_unconfirmed(pull, body, target)
        await attacker.flush()
        await anyio.sleep(0.3)
    assert await read(admin, TOPOLOGY.commands_stream, target) is None


async def test_worker_takes_no_order_that_a_scheduler_has_a_consumer_push(
    guarded: Guarded, admin: Connection
) -> None:
    """Permissions hold a consumer's name and its filter, and not where its messages are to be delivered."""
    name, jobs = TOPOLOGY.lane_consumer("default", "pushed", 5).durable_name, TOPOLOGY.jobs_stream
    config = {
        "durable_name": name,
        "filter_subject": f"{TOPOLOGY.grammar.lane('default', 'pushed', 5)}.*",
        "deliver_subject": TOPOLOGY.order_subject("w1"),
        "ack_policy": "explicit",
    }
    taken: list[WorkerOrder | None] = []
    async with (
        guarded.connection("w1") as worker,
        guarded.connection("s1") as attacker,
        anyio.create_task_group() as group,
    ):
        group.start_soon(Orders(worker, TOPOLOGY, "w1", taken.append).run)
        made = {"stream_name": jobs, "action": "create", "config": config}
        await attacker.api(f"CONSUMER.CREATE.{jobs}.{name}.{config['filter_subject']}", made)
        order = encode(WorkerOrder(order="drain", by="mallory", at=dt.datetime.now(dt.UTC)))
        await attacker.publish(TOPOLOGY.grammar.job("default", "pushed", 5, "order"), order)
        with anyio.fail_after(10):
            while not (await admin.api(f"CONSUMER.INFO.{jobs}.{name}"))["delivered"]["consumer_seq"]:
                await anyio.sleep(0.02)
        await worker.flush()
        group.cancel_scope.cancel()
    assert taken == []


WIPE = {"Nats-Rollup": "all"}


@pytest.mark.parametrize(
    ("name", "stream", "kept", "sent"),
    [
        ("w1", RECORDS, TOPOLOGY.record_subject("kept"), TOPOLOGY.record_subject("sent")),
        ("s1", RECORDS, TOPOLOGY.record_subject("kept"), TOPOLOGY.record_subject("sent")),
        ("w1", "KV_h2k_workers", "$KV.h2k_workers.kept", "$KV.h2k_workers.w1"),
        ("oscar", "KV_h2k_settings", "$KV.h2k_settings.limit.kept", "$KV.h2k_settings.limit.sent"),
        ("s1", "KV_h2k_locks", "$KV.h2k_locks.kept", "$KV.h2k_locks.sent"),
        ("w1", "OBJ_h2k_artifacts", "$O.h2k_artifacts.M.kept", "$O.h2k_artifacts.M.sent"),
        ("w1", "H2K_PROGRESS", "h2k.v1.progress.kept", "h2k.v1.progress.sent"),
        ("alice", "H2K_COMMANDS", "h2k.v1.commands.bob.submit.kept", "h2k.v1.commands.alice.submit.sent"),
    ],
)
async def test_header_that_would_empty_a_stream_is_refused(
    guarded: Guarded, admin: Connection, name: str, stream: str, kept: str, sent: str
) -> None:
    await store(admin, kept)
    async with guarded.connection(name) as attacker:
        with pytest.raises(BusError, match="rollup"):
            await attacker.publish(sent, b"x", WIPE)
    assert await read(admin, stream, kept) == b"kept"


async def store(admin: Connection, subject: str) -> None:
    # A command stays where the case before has put it.
    with contextlib.suppress(SubjectTaken):
        await admin.publish(subject, b"kept")


async def test_that_header_would_empty_a_stream_that_allows_it(guarded: Guarded, unwalled: str) -> None:
    """The attack is real: this is why no stream of ours allows rollups."""
    async with (
        connect(open_settings(guarded, unwalled, "root")) as admin,
        connect(open_settings(guarded, unwalled, "w1")) as attacker,
    ):
        info = await admin.api("STREAM.INFO.KV_h2k_workers")
        await admin.api("STREAM.UPDATE.KV_h2k_workers", {**info["config"], "allow_rollup_hdrs": True})
        await admin.publish("$KV.h2k_workers.kept", b"kept")
        await attacker.publish("$KV.h2k_workers.w1", b"x", WIPE)
        assert await read(admin, "KV_h2k_workers", "$KV.h2k_workers.kept") is None


async def test_command_in_anothers_name_is_refused_and_not_stored(
    guarded: Guarded, admin: Connection
) -> None:
    subject = TOPOLOGY.grammar.command("bob", Verb.SUBMIT, "forged")
    async with guarded.connection("alice") as attacker:
        with pytest.raises(PermissionDenied, match=r"commands\.bob\.submit\.forged"):
            await attacker.publish(subject, b"{}")
    assert await read(admin, TOPOLOGY.commands_stream, subject) is None


async def test_nobody_else_hears_a_users_answers(guarded: Guarded, admin: Connection) -> None:
    """An admin shares the account of the bus, but not those of the users."""
    heard: list[str] = []
    await admin.listen("_INBOX_alice.>", lambda message: heard.append(message.subject))
    async with guarded.connection("alice") as alice:
        await alice.api(f"STREAM.INFO.{RECORDS}")
    await admin.flush()
    assert heard == []


@pytest.mark.parametrize("name", ["alice", "olga", "oscar", "stranger", "s1"])
async def test_delivery_of_a_worker_is_answered_by_nobody_else(
    guarded: Guarded, admin: Connection, name: str
) -> None:
    consumer = TOPOLOGY.lane_consumer("default", name, 5)
    await ensure_consumer(admin, TOPOLOGY.jobs_stream, consumer)
    subject = TOPOLOGY.grammar.job("default", name, 5, f"held-{name}")
    await admin.publish(subject, b"{}")
    async with guarded.connection("w1") as worker, guarded.connection(name) as attacker:
        reply = await delivered(worker, consumer.durable_name)
        with pytest.raises(PermissionDenied):
            await attacker.ask(reply, b"+TERM")
    assert await read(admin, TOPOLOGY.jobs_stream, subject) == b"{}"


async def delivered(worker: Connection, consumer: str) -> str:
    """Pull one message; the subject that answers for it."""
    replies: list[str] = []
    inbox = PullInbox(worker, TOPOLOGY.jobs_stream, lambda delivery: replies.append(delivery.reply))
    await inbox.open()
    pull = await inbox.send(consumer, PullRequest(batch=1, expires=2 * 10**9, group="workers"))
    await pull.wait()
    await inbox.close()
    [reply] = replies
    return reply


async def test_heartbeat_in_another_workers_name_is_refused(guarded: Guarded, admin: Connection) -> None:
    async with guarded.connection("w2") as attacker:
        with pytest.raises(PermissionDenied):
            await attacker.publish(TOPOLOGY.worker_subject("victim"), b"", {"KV-Operation": "DEL"})


async def test_workers_that_share_a_user_choose_their_ids(guarded: Guarded) -> None:
    async with guarded.connection("many") as worker:
        assert await worker.publish(TOPOLOGY.worker_subject("many-1"), b"{}") > 0
        assert await worker.publish(TOPOLOGY.worker_subject("many-2"), b"{}") > 0


@pytest.mark.parametrize("name", ["alice", "w1", "s1"])
def test_roots_share_no_subject(guarded: Guarded, name: str) -> None:
    """A root is a wall between fleets; a pool is none."""
    users = {user.name: user for user in guarded.authority.ledger().users}
    here = users[name].grants
    there = msgspec.structs.replace(users[name], root="other.v1").grants
    assert set(here.publish) & set(there.publish) == set()
    assert set(here.subscribe) & set(there.subscribe) == {f"_INBOX_{name}.>"}


def test_files_of_the_fleet_are_for_their_owner_only(guarded: Guarded) -> None:
    """Whoever may read a key is its user."""
    files = [each for each in guarded.authority.directory.rglob("*") if each.is_file()]
    secret = [each for each in files if each.suffix in (".nk", ".key", ".conf") or each.name == "key.pem"]
    assert len(secret) > 2 * len(USERS)
    open_to_others = [each for each in secret if Path(each).stat().st_mode & 0o077]
    assert open_to_others == []
