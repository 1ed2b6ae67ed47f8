"""The accounts of a NATS server: one for the bus, and one around each user but its admins.

A server answers a request on whatever reply subject it names, without holding that subject against the
sender's permissions: whoever may read a record could have it written over another one. An answer never
leaves the account of the request, so a user alone in an account reaches only what that account imports.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from subjects.grammar import DEFAULT_ROOT, Grammar
from subjects.permissions import Grants, Role, answers_many, grants, narrower
from subjects.topology import Topology

BUS_ACCOUNT: Final = "H2KBUS"
USER_ACCOUNT: Final = "user-"
API_PREFIX: Final = "H2KBUS.API"
"""Under this prefix users reach the JetStream of the bus; under its own name it would be their account's."""
_OWN_API: Final = "$JS.API"

READ_SECONDS: Final = 15
"""How long the server remembers where the answers of one batch of reads go."""
PULL_SECONDS: Final = 60
"""The same for a pull, which is parked for 30 seconds at the most."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one user may use of the server: connections and subscriptions at once, and bytes of a message."""

    max_connections: int = 256
    max_subscriptions: int = 10_000
    max_payload: int = 1024 * 1024


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Who may connect, by the public key `nkey`. A worker's id is its user's name, or else `worker_id`."""

    name: str
    role: Role
    nkey: str
    root: str = DEFAULT_ROOT
    worker_id: str | None = None

    @property
    def grants(self) -> Grants:
        return grants(Topology(Grammar(self.root)), self.role, self.name, self.worker_id)

    @property
    def account(self) -> str:
        return BUS_ACCOUNT if self.role is Role.ADMIN else USER_ACCOUNT + self.name

    @property
    def api_prefix(self) -> str:
        return _OWN_API if self.role is Role.ADMIN else API_PREFIX


def accounts(users: Sequence[User], *, max_file: int | None = None) -> dict[str, Any]:
    """The `accounts` of a server's configuration. `max_file` is what streams may take on disk, in bytes."""
    walled = [user for user in users if user.role is not Role.ADMIN]
    bus = {
        "jetstream": {"max_file": max_file} if max_file else "enabled",
        "users": [{"nkey": user.nkey} for user in users if user.role is Role.ADMIN],
        "exports": [*_services(walled), *_streams((user, user.grants.subscribe[1:]) for user in walled)],
    }
    return {BUS_ACCOUNT: bus, **{user.account: _account(user, walled) for user in walled}}


def _account(user: User, walled: Sequence[User]) -> dict[str, Any]:
    others = [each for each in walled if each is not user]
    heard = [(BUS_ACCOUNT, user.grants.subscribe[1:])]
    heard += [(each.account, _live(each, user)) for each in others]
    return {
        "users": [{"nkey": user.nkey, "permissions": _permissions(user.grants)}],
        "limits": msgspec.to_builtins(Limits()),
        "imports": [
            *map(_service_import, user.grants.publish),
            *(
                {"stream": {"account": account, "subject": each}}
                for account, found in heard
                for each in found
            ),
        ],
        "exports": _streams((each, _live(user, each)) for each in others),
    }


def _permissions(given: Grants) -> dict[str, Any]:
    """What the account does not import reaches nobody anyway; this makes the server say so."""
    return {
        "publish": {"allow": [_local(subject) for subject in given.publish]},
        "subscribe": {"allow": list(given.subscribe)},
    }


def _live(speaker: User, listener: User) -> tuple[str, ...]:
    """What one user says that another one hears at once.

    What came into the account of the bus from another one does not go out to a third, so that listeners
    import it from those who say it.
    """
    found = (
        narrower(said, heard) for said in speaker.grants.publish for heard in listener.grants.subscribe[1:]
    )
    return tuple(sorted({each for each in found if each}))


def _services(walled: Iterable[User]) -> list[dict[str, Any]]:
    allowed: defaultdict[str, list[str]] = defaultdict(list)
    for user in walled:
        for subject in user.grants.publish:
            allowed[subject].append(user.account)
    return [
        {"service": subject, "accounts": names, **_answers(subject)} for subject, names in allowed.items()
    ]


def _answers(subject: str) -> dict[str, str]:
    if not answers_many(subject):
        return {}
    seconds = PULL_SECONDS if ".MSG.NEXT." in subject else READ_SECONDS
    return {"response": "stream", "threshold": f"{seconds}s"}


def _streams(heard: Iterable[tuple[User, Iterable[str]]]) -> list[dict[str, Any]]:
    allowed: defaultdict[str, list[str]] = defaultdict(list)
    for listener, subjects in heard:
        for subject in subjects:
            allowed[subject].append(listener.account)
    return [{"stream": subject, "accounts": names} for subject, names in allowed.items()]


def _service_import(subject: str) -> dict[str, Any]:
    local = _local(subject)
    source = {"service": {"account": BUS_ACCOUNT, "subject": subject}}
    return source if local == subject else {**source, "to": local}


def _local(subject: str) -> str:
    """The subject as it is in a user's account."""
    return API_PREFIX + subject.removeprefix(_OWN_API) if subject.startswith(f"{_OWN_API}.") else subject
