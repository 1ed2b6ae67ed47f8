"""Where the bus is: flags, variables and contexts in one order, and no secret in any text."""

import getpass
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from h2kbus.errors import H2KBusError, SettingsError
from h2kbus.settings import DEFAULT_URL, ConnectionSettings
from subjects.grammar import DEFAULT_ROOT

SOURCES = ("flag", "h2kbus", "context", "nats")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config/nats/context").mkdir(parents=True)
    return tmp_path


def resolve(home: Path, flags: Mapping[str, str | None] | None = None, **env: Any) -> ConnectionSettings:
    return ConnectionSettings.resolve(flags or {}, {"HOME": str(home), **env})


def select(home: Path, **fields: str) -> None:
    (home / ".config/nats/context/c.json").write_text(json.dumps(fields))
    (home / ".config/nats/context.txt").write_text("c")


def test_nothing_said_means_the_local_server(home: Path) -> None:
    settings = resolve(home)
    assert (settings.url, settings.root, settings.user) == (DEFAULT_URL, DEFAULT_ROOT, None)


@pytest.mark.parametrize("first", range(len(SOURCES)))
def test_earlier_source_beats_all_later_ones(home: Path, first: int) -> None:
    given = {source: f"nats://{source}:4222" for source in SOURCES[first:]}
    if "context" in given:
        select(home, url=given["context"])
    settings = resolve(
        home,
        {"url": given.get("flag")},
        H2KBUS_URL=given.get("h2kbus", ""),
        NATS_URL=given.get("nats", ""),
    )
    assert settings.url == f"nats://{SOURCES[first]}:4222"


def test_sources_are_mixed_field_by_field(home: Path) -> None:
    select(home, user="context-user", url="nats://context:4222")
    settings = resolve(home, {"url": "nats://flag:4222"}, NATS_PASSWORD="from-nats", H2KBUS_ROOT="lab.v1")
    assert (settings.url, settings.user, settings.password, settings.root) == (
        "nats://flag:4222", "context-user", "from-nats", "lab.v1",
    )  # fmt: skip


def test_empty_variable_counts_as_unset(home: Path) -> None:
    settings = resolve(home, {"url": ""}, H2KBUS_URL="", NATS_URL="", H2KBUS_CONTEXT="", NATS_CONTEXT="")
    assert settings.url == DEFAULT_URL


@pytest.mark.parametrize("variable", ["H2KBUS_CONTEXT", "NATS_CONTEXT"])
def test_variable_may_name_the_context(home: Path, variable: str) -> None:
    select(home, url="nats://context:4222")
    (home / ".config/nats/context.txt").unlink()
    assert resolve(home, None, **{variable: "c"}).url == "nats://context:4222"


def test_flag_may_name_the_context(home: Path) -> None:
    select(home, url="nats://context:4222")
    assert resolve(home, {"context": "c"}, H2KBUS_CONTEXT="unknown").url == "nats://context:4222"


def test_timeout_is_read_from_its_variable(home: Path) -> None:
    assert resolve(home, H2KBUS_CONNECT_TIMEOUT_SECONDS="1.5").connect_timeout_seconds == 1.5


def test_several_servers_are_separated_by_commas(home: Path) -> None:
    settings = resolve(home, {"url": "nats://a:4222, nats://b:4222,"})
    assert settings.servers == ["nats://a:4222", "nats://b:4222"]


def test_secrets_are_not_in_the_text_form() -> None:
    settings = ConnectionSettings(
        url="nats://alice:pass-in-url@a:4222", password="pass-alone", token="token-alone"
    )
    shown = f"{settings} {settings!r} {settings.display_url}"
    assert not [each for each in ("pass-in-url", "pass-alone", "token-alone") if each in shown]
    assert "nats://a:4222" in shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://a:4222", "use one of nats, tls, ws, wss"),
        (" , ", "names no server"),
        ("http://user:hunter2@a:4222", "use one of"),
    ],
)
def test_address_that_makes_no_sense_is_refused(home: Path, url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        resolve(home, {"url": url})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("H2KBUS_ROOT", "no version"),
        ("H2KBUS_URL", "nats://[::1"),
        ("H2KBUS_URL", "nats://a:port"),
        ("H2KBUS_CONNECT_TIMEOUT_SECONDS", "soon"),
        ("H2KBUS_CONNECT_TIMEOUT_SECONDS", "-1"),
        ("H2KBUS_CONNECT_TIMEOUT_SECONDS", "nan"),
    ],
)
def test_value_that_makes_no_sense_is_refused(home: Path, variable: str, value: str) -> None:
    with pytest.raises(H2KBusError):
        resolve(home, None, **{variable: value})


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_certificate_and_key_belong_together(home: Path, given: str) -> None:
    file = home / "file.pem"
    file.touch()
    with pytest.raises(SettingsError, match="tls_cert and tls_key belong together"):
        resolve(home, {given: str(file)})


@pytest.mark.parametrize("field", ["creds", "nkey", "tls_ca"])
def test_file_that_is_not_there_is_named_with_its_setting(home: Path, field: str) -> None:
    with pytest.raises(SettingsError, match=f"^{field}: .*missing.file cannot be read"):
        resolve(home, {field: str(home / "missing.file")})


def test_file_is_remembered_by_its_full_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "alice.creds").touch()
    monkeypatch.chdir(home)
    assert resolve(home, {"creds": "alice.creds"}).creds == str(home / "alice.creds")


def test_configured_user_submits() -> None:
    assert ConnectionSettings(user="alice").submitter() == "alice"


def test_local_user_submits_where_none_is_configured() -> None:
    assert ConnectionSettings().submitter() == getpass.getuser()


@pytest.mark.parametrize(
    ("user", "submitter"), [("a.b c>*", "a_b_c__"), ("Zoë", "Zo_"), ("x" * 80, "x" * 64)]
)
def test_submitter_can_stand_in_a_subject(user: str, submitter: str) -> None:
    assert ConnectionSettings(user=user).submitter() == submitter


def test_whoever_has_a_private_inbox_is_its_user() -> None:
    assert ConnectionSettings(inbox_prefix="_INBOX_alice").submitter() == "alice"
    assert ConnectionSettings(inbox_prefix="_INBOX").submitter() == getpass.getuser()
    assert ConnectionSettings(inbox_prefix="_INBOX_alice", user="bob").submitter() == "bob"
