"""Every cell of the matrix of roles, both ways: what a role may say and hear, and nothing else."""

from collections.abc import AsyncIterator

import pytest

from h2kbus.connection import Connection
from h2kbus.errors import BusTimeout, PermissionDenied
from subjects.permissions import Role, narrower
from tests.security.access.conftest import Guarded

NAMES = {
    Role.OBSERVER: "olga",
    Role.SUBMITTER: "alice",
    Role.OPERATOR: "oscar",
    Role.WORKER: "w1",
    Role.SCHEDULER: "s1",
}
"""A user of each role that is walled in. Admins are not: see test_work.py."""

EVERYBODY = frozenset(NAMES)
NOBODY: frozenset[Role] = frozenset()
CLIENTS = frozenset({Role.OBSERVER, Role.SUBMITTER, Role.OPERATOR})
SENDERS = frozenset({Role.SUBMITTER, Role.OPERATOR})
SERVICES = frozenset({Role.WORKER, Role.SCHEDULER})
READERS = CLIENTS | {Role.SCHEDULER}
OPERATOR, WORKER, SCHEDULER = (frozenset({each}) for each in (Role.OPERATOR, Role.WORKER, Role.SCHEDULER))

SAY = {
    # Commands: in one's own name only.
    "h2k.v1.commands.{name}.submit.cell": SENDERS,
    "h2k.v1.commands.{name}.cancel.cell": SENDERS,
    "h2k.v1.commands.{name}.retry.cell": SENDERS,
    "h2k.v1.commands.{name}.frobnicate.cell": NOBODY,
    "h2k.v1.commands.bob.submit.cell": NOBODY,
    "h2k.v1.commands.bob.cancel.cell": NOBODY,
    # What the fleet says.
    "h2k.v1.jobs.default.any.5.cell": SCHEDULER,
    "h2k.v1.progress.cell": SERVICES,
    "h2k.v1.dead.invalid-job.cell": SERVICES,
    "h2k.v1.dead.invalid-command.cell": SCHEDULER,
    "h2k.v1.control.w2": SCHEDULER,
    # Buckets.
    "$KV.h2k_jobs.cell": SERVICES,
    "$KV.h2k_workers.w1": WORKER,
    "$KV.h2k_workers.w2": NOBODY,
    "$KV.h2k_lanes.default.any.5": SCHEDULER,
    "$KV.h2k_locks.cell": SCHEDULER,
    "$KV.h2k_locks.place.cell.0": SCHEDULER,
    "$KV.h2k_settings.worker.w1": OPERATOR,
    "$KV.h2k_settings.limit.source-host/esx-07": OPERATOR,
    "$KV.h2k_settings.quota.of.bob": OPERATOR,
    "$KV.h2k_settings.quota.default": OPERATOR,
    "$KV.h2k_locks.refused.bob": SCHEDULER,
    # The object store of logs.
    "$O.h2k_artifacts.C.cell": WORKER,
    "$O.h2k_artifacts.M.cell": WORKER,
    # Reading by name.
    "$JS.API.DIRECT.GET.KV_h2k_jobs.$KV.h2k_jobs.cell": EVERYBODY,
    "$JS.API.DIRECT.GET.H2K_PROGRESS.h2k.v1.progress.cell": SERVICES,
    "$JS.API.DIRECT.GET.H2K_JOBS.h2k.v1.jobs.default.any.5.cell": SCHEDULER,
    "$JS.API.DIRECT.GET.KV_h2k_locks.$KV.h2k_locks.cell": SCHEDULER,
    "$JS.API.DIRECT.GET.KV_h2k_locks.$KV.h2k_locks.place.cell.0": SCHEDULER,
    "$JS.API.DIRECT.GET.KV_h2k_settings.$KV.h2k_settings.worker.w1": WORKER,
    "$JS.API.DIRECT.GET.KV_h2k_settings.$KV.h2k_settings.worker.w2": NOBODY,
    "$JS.API.DIRECT.GET.H2K_COMMANDS.h2k.v1.commands.bob.submit.cell": NOBODY,
    # Reading whole streams.
    "$JS.API.DIRECT.GET.KV_h2k_jobs": READERS,
    "$JS.API.DIRECT.GET.KV_h2k_workers": READERS,
    "$JS.API.DIRECT.GET.KV_h2k_lanes": EVERYBODY,
    "$JS.API.DIRECT.GET.KV_h2k_locks": READERS,
    "$JS.API.DIRECT.GET.KV_h2k_settings": READERS,
    "$JS.API.DIRECT.GET.H2K_JOBS": READERS,
    "$JS.API.DIRECT.GET.H2K_PROGRESS": CLIENTS,
    "$JS.API.DIRECT.GET.H2K_DEAD": CLIENTS,
    "$JS.API.DIRECT.GET.H2K_COMMANDS": NOBODY,
    "$JS.API.DIRECT.GET.OBJ_h2k_artifacts": CLIENTS,
    "$JS.API.DIRECT.GET.OBJ_h2k_artifacts.$O.h2k_artifacts.M.cell": CLIENTS,
    "$JS.API.DIRECT.GET.KV_h2k_locks.$KV.h2k_locks.refused.{name}": SENDERS | {Role.SCHEDULER},
    "$JS.API.DIRECT.GET.KV_h2k_locks.$KV.h2k_locks.refused.bob": SCHEDULER,
    # Consumers.
    "$JS.API.CONSUMER.MSG.NEXT.H2K_JOBS.default_any_5": WORKER,
    "$JS.API.CONSUMER.MSG.NEXT.H2K_COMMANDS.scheduler": SCHEDULER,
    "$JS.API.CONSUMER.CREATE.H2K_COMMANDS.scheduler.h2k.v1.commands.*.*.*": SCHEDULER,
    "$JS.API.CONSUMER.CREATE.H2K_COMMANDS.spy.h2k.v1.commands.*.*.*": NOBODY,
    "$JS.API.CONSUMER.CREATE.H2K_JOBS.default_any_5.h2k.v1.jobs.default.any.5.*": SCHEDULER,
    "$JS.API.CONSUMER.CREATE.H2K_PROGRESS.spy.h2k.v1.progress.*": NOBODY,
    "$JS.API.CONSUMER.CREATE.H2K_PROGRESS": NOBODY,
    "$JS.API.CONSUMER.CREATE.KV_h2k_jobs.follower": SCHEDULER,
    "$JS.API.CONSUMER.CREATE.KV_h2k_jobs": NOBODY,
    "$JS.API.CONSUMER.CREATE.KV_h2k_locks.spy": NOBODY,
    "$JS.API.CONSUMER.MSG.NEXT.KV_h2k_jobs.follower": SCHEDULER,
    "$JS.API.CONSUMER.DURABLE.CREATE.H2K_JOBS.spy": NOBODY,
    "$JS.API.CONSUMER.DELETE.H2K_JOBS.default_any_5": NOBODY,
    "$JS.API.CONSUMER.DELETE.H2K_COMMANDS.scheduler": NOBODY,
    "$JS.API.CONSUMER.PAUSE.H2K_COMMANDS.scheduler": NOBODY,
    "$JS.API.CONSUMER.INFO.H2K_COMMANDS.scheduler": CLIENTS,
    "$JS.API.CONSUMER.LIST.H2K_JOBS": READERS,
    "$JS.API.CONSUMER.NAMES.H2K_JOBS": SCHEDULER,
    "$JS.ACK.H2K_JOBS.default_any_5.1.1.1.1.0": WORKER,
    "$JS.ACK.H2K_COMMANDS.scheduler.1.1.1.1.0": SCHEDULER,
    # Streams: looked at by those who ask whether they are there, made and emptied by admins only.
    "$JS.API.STREAM.INFO.H2K_COMMANDS": READERS,
    "$JS.API.STREAM.INFO.KV_h2k_jobs": READERS,
    "$JS.API.STREAM.INFO.OBJ_h2k_artifacts": READERS,
    "$JS.API.STREAM.INFO.SOMEBODY_ELSES": NOBODY,
    "$JS.API.STREAM.CREATE.H2K_MINE": NOBODY,
    "$JS.API.STREAM.UPDATE.KV_h2k_jobs": NOBODY,
    "$JS.API.STREAM.PURGE.H2K_JOBS": NOBODY,
    "$JS.API.STREAM.PURGE.KV_h2k_jobs": NOBODY,
    "$JS.API.STREAM.DELETE.H2K_COMMANDS": NOBODY,
    "$JS.API.STREAM.DELETE.KV_h2k_jobs": NOBODY,
    "$JS.API.STREAM.MSG.DELETE.H2K_DEAD": NOBODY,
    "$JS.API.STREAM.MSG.DELETE.H2K_JOBS": NOBODY,
    "$JS.API.STREAM.MSG.GET.KV_h2k_jobs": NOBODY,
    "$JS.API.STREAM.SNAPSHOT.KV_h2k_jobs": NOBODY,
    "$JS.API.STREAM.RESTORE.KV_h2k_jobs": NOBODY,
    "$JS.API.STREAM.NAMES": NOBODY,
    "$JS.API.STREAM.LIST": NOBODY,
    "$JS.API.STREAM.LEADER.STEPDOWN.H2K_JOBS": NOBODY,
    "$JS.API.INFO": NOBODY,
    # Other people's things, and the server's.
    "_INBOX_bob.guess.1": NOBODY,
    "_INBOX.guess.1": NOBODY,
    "$SYS.REQ.SERVER.PING": NOBODY,
    "anything.else": NOBODY,
    # The same under another root.
    "other.v1.jobs.default.any.5.cell": NOBODY,
    "$KV.other_jobs.cell": NOBODY,
}
"""Who may publish what; `{name}` is the user's own."""

HEAR = {
    "_INBOX_{name}.>": EVERYBODY,
    "_INBOX_bob.>": NOBODY,
    "_INBOX_*.>": NOBODY,
    "_INBOX.>": NOBODY,
    "h2k.v1.progress.*": CLIENTS,
    "h2k.v1.progress.cell": CLIENTS,
    "h2k.v1.control.w1": WORKER,
    "h2k.v1.control.w2": NOBODY,
    "h2k.v1.control.*": NOBODY,
    "h2k.v1.commands.>": NOBODY,
    "h2k.v1.commands.{name}.>": NOBODY,
    "h2k.v1.jobs.>": NOBODY,
    "h2k.v1.dead.>": NOBODY,
    "h2k.v1.>": NOBODY,
    "$KV.h2k_jobs.>": NOBODY,
    "$KV.h2k_workers.>": NOBODY,
    "$KV.h2k_lanes.>": WORKER,
    "$KV.h2k_settings.worker.w1": WORKER,
    "$KV.h2k_settings.worker.w2": NOBODY,
    "$KV.h2k_settings.>": NOBODY,
    "$O.h2k_artifacts.>": NOBODY,
    "$JS.API.>": NOBODY,
    "$JS.EVENT.ADVISORY.>": NOBODY,
    "$JS.ACK.>": NOBODY,
    "$SYS.>": NOBODY,
    ">": NOBODY,
}
"""Who may subscribe to what."""


@pytest.fixture(params=NAMES, ids=str)
async def speaker(request: pytest.FixtureRequest, guarded: Guarded) -> AsyncIterator[tuple[Role, Connection]]:
    async with guarded.connection(NAMES[request.param]) as connection:
        yield request.param, connection


async def is_taken(connection: Connection, subject: str) -> bool:
    """Whether the server lets the user say this. What comes of it does not matter here."""
    local = subject.replace("$JS.API", connection.api_prefix)
    try:
        await connection.ask(local, b"{}", timeout=0.3)
    except PermissionDenied:
        return False
    except BusTimeout:
        return True
    return True


@pytest.mark.parametrize("subject", SAY)
async def test_role_may_say_this_or_not(speaker: tuple[Role, Connection], subject: str) -> None:
    role, connection = speaker
    assert await is_taken(connection, subject.format(name=NAMES[role])) == (role in SAY[subject])


@pytest.mark.parametrize("subject", HEAR)
async def test_role_may_hear_this_or_not(speaker: tuple[Role, Connection], subject: str) -> None:
    role, connection = speaker
    try:
        await connection.listen(subject.format(name=NAMES[role]), lambda message: None)
    except PermissionDenied:
        assert role not in HEAR[subject]
    else:
        assert role in HEAR[subject]


async def test_api_under_its_own_name_is_another_accounts(speaker: tuple[Role, Connection]) -> None:
    """There the server would serve the user's own account, which has no streams."""
    _, connection = speaker
    with pytest.raises(PermissionDenied):
        await connection.ask("$JS.API.STREAM.INFO.H2K_JOBS")


def test_every_subject_that_a_role_is_granted_is_in_the_table(guarded: Guarded) -> None:
    """So that a grant which is added later has to be thought about here."""
    users = {user.name: user for user in guarded.authority.ledger().users}
    for role, name in NAMES.items():
        sayings = [each.format(name=name) for each, roles in SAY.items() if role in roles]
        hearings = [each.format(name=name) for each, roles in HEAR.items() if role in roles]
        given = users[name].grants
        missing = [each for each in given.publish if not any(narrower(each, one) == one for one in sayings)]
        missing += [
            each for each in given.subscribe if not any(narrower(each, one) == one for one in hearings)
        ]
        assert [each for each in missing if ".STREAM.INFO." not in each] == []
