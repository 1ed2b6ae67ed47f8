"""`h2kbus auth`: what it makes works as it is, is for its owner only, and is never overwritten."""

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from h2kbus.authority import Authority, Wanted
from h2kbus.certificates import CERTIFICATE_DAYS, RENEW_DAYS
from h2kbus.errors import SettingsError
from subjects.permissions import Role
from tests.conftest import Program, environment
from tests.security.access.conftest import Guarded, free_port
from tests.servers import wheel_server

pytestmark = pytest.mark.slow


@pytest.fixture
def admin(tmp_path: Path) -> Program:
    return Program(environment(HOME=str(tmp_path), USER="tester"), tmp_path)


def contents(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_two_commands_make_a_server_and_a_user_that_reaches_it(admin: Program, tmp_path: Path) -> None:
    place, port = tmp_path / "auth", free_port()
    assert admin("auth", "init", place, "--port", port).returncode == 0
    assert admin("auth", "add-user", place, "admin", "root").returncode == 0
    with running(place):
        done = admin("setup", "--json", "--context", place / "users" / "root" / "root.json")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) > 5


class running:  # noqa: N801 - reads as a verb
    def __init__(self, place: Path) -> None:
        self.guarded = Guarded(place)

    def __enter__(self) -> Guarded:
        self.guarded.start()
        return self.guarded

    def __exit__(self, *_: object) -> None:
        self.guarded.stop()


def test_user_connects_from_wherever_its_directory_was_copied_to(admin: Program, tmp_path: Path) -> None:
    place, copied = tmp_path / "auth", tmp_path / "elsewhere"
    admin("auth", "init", place, "--port", free_port())
    admin("auth", "add-user", place, "admin", "root")
    (place / "users" / "root").rename(copied)
    with running(place):
        assert admin("setup", "--context", copied / "root.json").returncode == 0


def test_commands_over_tls_say_no_more_than_others(guarded: Guarded, tmp_path: Path) -> None:
    done = guarded.program("alice", tmp_path)("ls")
    assert (done.returncode, done.stderr) == (0, "")


def test_server_knows_a_new_user_after_reloading_twice(guarded: Guarded, tmp_path: Path) -> None:
    program = guarded.program("alice", tmp_path)
    assert program("ls").returncode == 0
    assert program("auth", "add-user", guarded.authority.directory, "observer", "new").returncode == 0
    newcomer = guarded.program("new", tmp_path)
    refused = newcomer("ls")
    assert refused.returncode == 3
    assert "PERMISSION_DENIED" in refused.stderr
    guarded.reload()
    assert newcomer("ls").returncode == 0
    assert program("ls").returncode == 0


def test_user_that_was_removed_is_refused_after_a_reload(guarded: Guarded, tmp_path: Path) -> None:
    copied = tmp_path / "stolen"
    shutil.copytree(guarded.authority.user_directory("bob"), copied)
    thief = Program(environment(HOME=str(tmp_path), H2KBUS_CONTEXT=str(copied / "bob.json")), tmp_path)
    assert thief("ls").returncode == 0
    assert thief("auth", "remove-user", guarded.authority.directory, "bob").returncode == 0
    guarded.reload()
    done = thief("ls")
    assert done.returncode == 3
    assert "PERMISSION_DENIED" in done.stderr
    assert guarded.program("alice", tmp_path)("ls").returncode == 0


def test_key_of_a_removed_user_is_not_used_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "auth")
    wanted = Wanted(role=Role.SUBMITTER, name="bob")
    [before] = authority.init(users=[wanted])
    authority.remove("bob")
    [after] = authority.add(wanted)
    assert before.nkey != after.nkey
    with pytest.raises(SettingsError, match="has no user nobody"):
        authority.remove("nobody")


def test_name_that_is_listed_twice_is_refused_or_made_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "auth")
    bob = Wanted(role=Role.SUBMITTER, name="bob")
    assert len(authority.init(users=[bob, bob])) == 1
    with pytest.raises(SettingsError, match="exists as observer"):
        authority.init(users=[Wanted(role=Role.OBSERVER, name="olga"), Wanted(role=Role.ADMIN, name="olga")])


def test_keys_that_were_moved_away_are_not_made_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "auth")
    authority.init(users=[Wanted(role=Role.SUBMITTER, name="bob")])
    shutil.rmtree(authority.user_directory("bob"))
    authority.add(Wanted(role=Role.SUBMITTER, name="alice"))
    assert not authority.user_directory("bob").exists()
    assert [user.name for user in authority.ledger().users] == ["bob", "alice"]


def test_nothing_that_is_there_is_changed_by_doing_it_again(admin: Program, tmp_path: Path) -> None:
    place = tmp_path / "auth"
    words = ("--host", "nats-1", "--host", "10.1.2.3", "--port", 4333)
    admin("auth", "init", place, *words)
    admin("auth", "add-user", place, "submitter", "alice")
    before = contents(place)
    assert admin("auth", "init", place).returncode == 0
    again = admin("auth", "add-user", place, "submitter", "alice")
    assert again.returncode == 0
    assert "exists already" in again.stderr
    assert contents(place) == before


def test_name_of_another_user_is_refused_and_its_key_kept(admin: Program, tmp_path: Path) -> None:
    place = tmp_path / "auth"
    admin("auth", "init", place)
    admin("auth", "add-user", place, "submitter", "alice")
    before = contents(place)
    done = admin("auth", "add-user", place, "admin", "alice")
    assert done.returncode == 2
    assert "user alice exists as submitter" in done.stderr
    assert contents(place) == before


def test_own_server_configuration_is_kept(admin: Program, tmp_path: Path) -> None:
    place = tmp_path / "auth"
    admin("auth", "init", place)
    (place / "server" / "nats.conf").write_text("mine")
    admin("auth", "add-user", place, "submitter", "alice")
    assert (place / "server" / "nats.conf").read_text() == "mine"


def test_only_the_owner_reads_what_was_made(admin: Program, tmp_path: Path) -> None:
    place = tmp_path / "auth"
    admin("auth", "init", place)
    admin("auth", "add-user", place, "worker", "w1")
    made = [each for each in place.rglob("*") if each.is_file() and each.name != "lock"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in made} == {0o600}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_no_secret_is_ever_printed(admin: Program, tmp_path: Path) -> None:
    place = tmp_path / "auth"
    said = [
        admin("auth", "init", place),
        admin("auth", "add-user", place, "worker", "w1"),
        admin("auth", "add-user", place, "admin", "root", "--json"),
        *(admin("auth", "show", place, *more) for more in ([], ["--json"], ["w1"], ["w1", "--json"])),
    ]
    told = "".join(done.stdout + done.stderr for done in said)
    seeds = [file.read_text().strip() for file in place.rglob("*.nk")]
    password = json.loads((place / "server" / "cluster.conf").read_bytes())["authorization"]["password"]
    assert len(seeds) == 2
    assert [secret for secret in (*seeds, password, "PRIVATE KEY") if secret in told] == []
    shown = (place / "authority.json").read_text() + (place / "server" / "access.conf").read_text()
    assert [secret for secret in seeds if secret in shown] == []


def test_users_of_a_list_are_made_at_once(admin: Program, tmp_path: Path) -> None:
    place, listed = tmp_path / "auth", tmp_path / "users.yaml"
    users = [{"role": "scheduler", "name": "s1"}, {"role": "worker", "name": "many", "any_id": True}]
    listed.write_text(yaml.safe_dump(users))
    assert admin("auth", "init", place, "--users", listed).returncode == 0
    shown = admin("auth", "show", place, "--json").stdout.splitlines()
    assert [(each["name"], each["role"], each["worker_id"]) for each in map(json.loads, shown)] == [
        ("s1", "scheduler", None),
        ("many", "worker", "*"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add-user", "{}", "king", "alice"), "king"),
        (("add-user", "{}", "submitter", "a.b"), "no user's name"),
        (("add-user", "{}", "submitter", "../a"), "no user's name"),
        (("add-user", "{}", "submitter", "alice", "--any-id"), "any_id is for workers"),
        (("add-user", "{}", "submitter", "alice", "--root", "NO"), "is not a root"),
        (("show", "{}", "nobody"), "has no user nobody"),
        (("show", "/nowhere"), "`h2kbus auth init` makes one"),
        (("init", "{}", "--users", "/nowhere/users.yaml"), "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused_on_one_line(
    admin: Program, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    place = tmp_path / "auth"
    admin("auth", "init", place)
    done = admin("auth", *(word.format(place) for word in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert list((place / "users").glob("*")) == []


def test_role_shows_the_subjects_that_it_may_use(admin: Program, tmp_path: Path) -> None:
    place = tmp_path / "auth"
    admin("auth", "init", place)
    admin("auth", "add-user", place, "submitter", "alice", "--root", "gold.v1")
    lines = admin("auth", "show", place, "alice").stdout.splitlines()
    assert "publish    gold.v1.commands.alice.submit.*" in lines
    assert "subscribe  _INBOX_alice.>" in lines


def test_root_is_found_with_the_users_context(admin: Program, tmp_path: Path) -> None:
    place = tmp_path / "auth"
    admin("auth", "init", place, "--port", free_port())
    admin("auth", "add-user", place, "admin", "root", "--root", "gold.v1")
    with running(place):
        done = admin("setup", "--context", place / "users" / "root" / "root.json", "--json")
        assert json.loads(done.stdout.splitlines()[0])["stream"] == "GOLD_COMMANDS"


def test_certificates_that_end_soon_are_renewed_over_the_same_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "auth")
    monkeypatch.setattr("h2kbus.certificates.CERTIFICATE_DAYS", RENEW_DAYS - 1)
    authority.init()
    before = contents(authority.directory)
    monkeypatch.setattr("h2kbus.certificates.CERTIFICATE_DAYS", CERTIFICATE_DAYS)
    authority.init()
    after = contents(authority.directory)
    assert {name for name in after if after[name] != before[name]} == {"server/cert.pem"}


def test_server_is_certified_for_a_host_that_is_added_later(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "auth")
    authority.init(hosts=["nats-1"])
    before = contents(authority.directory)
    authority.init(hosts=["nats-1", "nats-2"])
    after = contents(authority.directory)
    assert before["server/key.pem"] == after["server/key.pem"]
    assert before["server/cert.pem"] != after["server/cert.pem"]
    assert b"nats-2" in after["server/cluster.conf"]


def test_configuration_is_valid_in_the_servers_own_eyes(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "auth")
    authority.init(max_file=1 << 30)
    words = [str(each) for each in (wheel_server(), "-t", "-c", authority.server / "nats.conf")]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0


def test_missing_package_is_told_with_what_installs_it(admin: Program, tmp_path: Path) -> None:
    (tmp_path / "cryptography.py").write_text("raise ModuleNotFoundError('none', name='cryptography')\n")
    admin.environment["PYTHONPATH"] = f"{tmp_path}:{admin.environment['PYTHONPATH']}"
    done = admin("auth", "init", tmp_path / "auth")
    assert done.returncode == 2
    assert "pip install 'h2kbus[auth]'" in done.stderr
