"""The directory from which a fleet's access is run: its users, their keys, and its servers' configuration.

    authority.json          who there is; no secrets
    ca/                     the authority that signs certificates: keep it off the servers and the hosts
    server/                 what every NATS server gets: nats.conf, access.conf, cluster.conf, its certificate
    users/<name>/           what one user gets: <name>.json is a NATS context, the rest is what it names

What exists already is kept: no key is ever overwritten. Only certificates that end soon are made anew.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import nkeys

from h2kbus.accounts import User, accounts
from h2kbus.certificates import Issued, is_due, issue, new_authority
from h2kbus.errors import SettingsError
from h2kbus.private_files import create, replace
from subjects.grammar import DEFAULT_ROOT, Grammar
from subjects.permissions import Role, inbox_prefix, user_name

DEFAULT_HOSTS: Final = ("127.0.0.1",)
DEFAULT_PORT: Final = 4222
CLUSTER_PORT: Final = 6222
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_ROUTE_USER: Final = "route"
_TLS: Final = {"timeout": 5, "verify": True, "min_version": "1.3"}


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What the authority knows: its users, and where its servers are. `max_file` is in bytes."""

    hosts: tuple[str, ...] = DEFAULT_HOSTS
    port: int = DEFAULT_PORT
    max_file: int | None = None
    users: tuple[User, ...] = ()


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user that there should be. `any_id` is for workers that share a user and choose ids themselves."""

    role: Role
    name: str
    root: str = DEFAULT_ROOT
    any_id: bool = False

    def __post_init__(self) -> None:
        if self.any_id and self.role is not Role.WORKER:
            raise ValueError("any_id is for workers")


class Authority:
    """The directory. Every call leaves it whole: keys first, then the ledger, then the servers' files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.server = self.directory / "server"

    def user_directory(self, name: str) -> Path:
        return self.directory / "users" / user_name(name)

    def ledger(self) -> Ledger:
        """Raises SettingsError for a directory that is none of ours."""
        try:
            return msgspec.json.decode(self._ledger_file.read_bytes(), type=Ledger)
        except FileNotFoundError:
            words = f"{self.directory} has no authority.json: `h2kbus auth init` makes one"
            raise SettingsError(words) from None
        except (OSError, msgspec.DecodeError) as error:
            raise SettingsError(f"{self._ledger_file} cannot be read: {error}") from None

    def init(
        self,
        hosts: Sequence[str] = (),
        port: int | None = None,
        max_file: int | None = None,
        users: Sequence[Wanted] = (),
    ) -> list[User]:
        """Make what is missing, renew certificates that end soon; returns the users that were made.

        What is not given stays as it is. Raises SettingsError.
        """
        with self._alone():
            ledger = self.ledger() if self._ledger_file.exists() else Ledger()
            ledger = msgspec.structs.replace(
                ledger,
                hosts=tuple(hosts) or ledger.hosts,
                port=port or ledger.port,
                max_file=max_file or ledger.max_file,
            )
            return self._apply(ledger, users)

    def add(self, wanted: Wanted) -> list[User]:
        """Make a user; none is made when it exists as wanted. Raises SettingsError."""
        with self._alone():
            return self._apply(self.ledger(), [wanted])

    def remove(self, name: str) -> None:
        """Forget a user and its key; servers refuse it from their next reload. Raises SettingsError."""
        with self._alone():
            ledger = self.ledger()
            left = tuple(user for user in ledger.users if user.name != name)
            if left == ledger.users:
                raise SettingsError(f"{self.directory} has no user {name}")
            self._keep(msgspec.structs.replace(ledger, users=left))
            shutil.rmtree(self.user_directory(name), ignore_errors=True)

    @property
    def _ledger_file(self) -> Path:
        return self.directory / "authority.json"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self.directory / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise SettingsError(f"{error.filename or self.directory}: {error.strerror}") from None

    def _apply(self, ledger: Ledger, wanted: Sequence[Wanted]) -> list[User]:
        for each in wanted:
            user_name(each.name)
            Grammar(each.root)
            _exists(ledger.users, each)
        authority = self._certificate_authority()
        self._server_certificate(authority, ledger)
        made: list[User] = []
        for each in wanted:
            if not _exists((*ledger.users, *made), each):
                made.append(self._make(each))
        ledger = msgspec.structs.replace(ledger, users=(*ledger.users, *made))
        for user in ledger.users:
            # Keys may have been moved to where they are used; then there is nothing to renew here.
            if self._seed_file(user.name).exists():
                self._equip(authority, ledger, user)
        self._keep(ledger)
        return made

    def _keep(self, ledger: Ledger) -> None:
        replace(self._ledger_file, msgspec.json.format(msgspec.json.encode(ledger)))
        self._configure_servers(ledger)

    def _seed_file(self, name: str) -> Path:
        return self.user_directory(name) / f"{name}.nk"

    def _make(self, wanted: Wanted) -> User:
        """A user's key is the user: one that lies there already, from a call that was cut off, is kept."""
        seed_file = self._seed_file(wanted.name)
        if not seed_file.exists():
            create(seed_file, nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER))
        try:
            public: str = nkeys.from_seed(bytearray(seed_file.read_bytes().strip())).public_key.decode()
        except (nkeys.NkeysError, ValueError):
            raise SettingsError(f"{seed_file} is no seed of a key") from None
        worker_id = "*" if wanted.any_id else None
        return User(name=wanted.name, role=wanted.role, nkey=public, root=wanted.root, worker_id=worker_id)

    def _equip(self, authority: Issued, ledger: Ledger, user: User) -> None:
        """The user's certificate and context, and what it trusts."""
        place = self.user_directory(user.name)
        _certificate(authority, user.name, place, ())
        replace(place / "ca.pem", authority.certificate)
        context = {
            "description": f"h2kbus {user.role} {user.name}",
            "url": ",".join(f"tls://{_bracketed(host)}:{ledger.port}" for host in ledger.hosts),
            "nkey": f"{user.name}.nk",
            "ca": "ca.pem",
            "cert": "cert.pem",
            "key": "key.pem",
            "inbox_prefix": inbox_prefix(user.name),
            "jetstream_api_prefix": user.api_prefix,
            "h2kbus_root": user.root,
        }
        replace(place / f"{user.name}.json", json.dumps(context, indent=2).encode())

    def _certificate_authority(self) -> Issued:
        place = self.directory / "ca"
        certificate, key = place / "ca.pem", place / "ca.key"
        if not key.exists():
            made = new_authority(f"h2kbus {self.directory.name}")
            # The key comes last: where it is, there is a certificate.
            replace(certificate, made.certificate)
            create(key, made.key)
        return Issued(certificate.read_bytes(), key.read_bytes())

    def _server_certificate(self, authority: Issued, ledger: Ledger) -> None:
        hosts = tuple(dict.fromkeys((*ledger.hosts, *_LOCAL)))
        _certificate(authority, ledger.hosts[0], self.server, hosts)
        replace(self.server / "ca.pem", authority.certificate)

    def _configure_servers(self, ledger: Ledger) -> None:
        access = {
            "tls": {**self._tls_files(), **_TLS},
            "accounts": accounts(ledger.users, max_file=ledger.max_file),
        }
        replace(self.server / "access.conf", json.dumps(access, indent=1).encode())
        replace(self.server / "cluster.conf", json.dumps(self._cluster(ledger), indent=1).encode())
        if not (self.server / "nats.conf").exists():
            create(self.server / "nats.conf", _SERVER.format(port=ledger.port, store=self.directory).encode())

    def _cluster(self, ledger: Ledger) -> dict[str, Any]:
        """Users have certificates too, so that nodes also need a password of their own."""
        password = self._route_password()
        routes = [
            f"nats://{_ROUTE_USER}:{password}@{_bracketed(each)}:{CLUSTER_PORT}" for each in ledger.hosts
        ]
        return {
            "authorization": {"user": _ROUTE_USER, "password": password, "timeout": 5},
            "tls": {**self._tls_files(), **_TLS},
            "routes": routes,
        }

    def _route_password(self) -> str:
        try:
            known = json.loads((self.server / "cluster.conf").read_bytes())
            return str(known["authorization"]["password"])
        except (OSError, ValueError, LookupError):
            return secrets.token_urlsafe(32)

    def _tls_files(self) -> dict[str, str]:
        names = {"cert_file": "cert.pem", "key_file": "key.pem", "ca_file": "ca.pem"}
        return {field: str(self.server / name) for field, name in names.items()}


def give_to(directory: Path, owner: int) -> None:
    """Let another user of the machine have the files of a directory. Raises SettingsError."""
    try:
        for each in (directory, *directory.rglob("*")):
            os.chown(each, owner, -1, follow_symlinks=False)
    except OSError as error:
        raise SettingsError(f"{error.filename or directory}: {error.strerror}") from None


def _exists(users: Sequence[User], wanted: Wanted) -> bool:
    """Raises SettingsError for a user of that name who is somebody else."""
    found = next((each for each in users if each.name == wanted.name), None)
    if found is None:
        return False
    same = Wanted(role=found.role, name=found.name, root=found.root, any_id=found.worker_id == "*")
    if same != wanted:
        raise SettingsError(f"user {found.name} exists as {found.role} of {found.root}; choose another name")
    return True


def _certificate(authority: Issued, name: str, place: Path, hosts: Sequence[str]) -> None:
    """Make a certificate and its key, or renew the certificate; the key stays."""
    certificate, key = place / "cert.pem", place / "key.pem"
    known = key.read_bytes() if key.exists() else None
    if known and certificate.exists() and not is_due(certificate.read_bytes(), hosts):
        return
    made = issue(authority, name, hosts, known)
    if known is None:
        create(key, made.key)
    replace(certificate, made.certificate)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_SERVER: Final = """\
# A NATS server of this fleet: nats-server -c nats.conf. Yours to change; h2kbus writes access.conf anew.
port: {port}

jetstream {{
  store_dir: "{store}/jetstream"
  # An acknowledged write is on the disk. The server's default syncs every two minutes.
  sync_interval: always
}}

include access.conf

# A cluster: give each node a server_name of its own, and the block below.
# cluster {{
#   name: h2kbus
#   port: 6222
#   include cluster.conf
# }}
"""
