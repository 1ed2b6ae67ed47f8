"""NATS contexts: read as the `nats` command writes them."""

import json
from pathlib import Path

import pytest

from h2kbus.contexts import load_context
from h2kbus.errors import SettingsError

EVERYTHING = {
    "description": "production",
    "url": "nats://a:4222,nats://b:4222",
    "token": "t0ken",
    "user": "alice",
    "password": "s3cret",
    "creds": "/keys/alice.creds",
    "nkey": "/keys/alice.nk",
    "ca": "/keys/ca.pem",
    "cert": "/keys/alice.pem",
    "key": "/keys/alice.key",
    "nsc": "",
    "inbox_prefix": "_INBOX_alice",
    "jetstream_api_prefix": "BUS.API",
    "h2kbus_root": "gold.v1",
    "jetstream_domain": "",
    "color_scheme": "",
}


def context(home: Path, name: str, content: object) -> dict[str, str]:
    """Write a context file; returns the environment in which it is found."""
    directory = home / ".config" / "nats" / "context"
    directory.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / f"{name}.json").write_text(text)
    return {"HOME": str(home)}


def test_context_of_its_own_names_files_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "alice.json"
    file.write_text(json.dumps({"url": "tls://a:4222", "nkey": "alice.nk", "ca": "/etc/ca.pem", "cert": ""}))
    assert load_context(str(file), {"HOME": "/nowhere"}) == {
        "url": "tls://a:4222",
        "nkey": f"{tmp_path}/alice.nk",
        "tls_ca": "/etc/ca.pem",
    }


def test_context_gives_all_that_it_says(tmp_path: Path) -> None:
    env = context(tmp_path, "prod", EVERYTHING)
    assert load_context("prod", env) == {
        "url": "nats://a:4222,nats://b:4222",
        "token": "t0ken",
        "user": "alice",
        "password": "s3cret",
        "creds": "/keys/alice.creds",
        "nkey": "/keys/alice.nk",
        "tls_ca": "/keys/ca.pem",
        "tls_cert": "/keys/alice.pem",
        "tls_key": "/keys/alice.key",
        "inbox_prefix": "_INBOX_alice",
        "api_prefix": "BUS.API",
        "root": "gold.v1",
    }


def test_empty_fields_of_a_context_say_nothing(tmp_path: Path) -> None:
    env = context(tmp_path, "bare", {"url": "nats://a:4222", "user": "", "creds": None})
    assert load_context("bare", env) == {"url": "nats://a:4222"}


def test_no_context_is_no_settings(tmp_path: Path) -> None:
    assert load_context(None, {"HOME": str(tmp_path)}) == {}


def test_selected_context_is_used_when_none_is_named(tmp_path: Path) -> None:
    env = context(tmp_path, "chosen", {"url": "nats://chosen:4222"})
    (tmp_path / ".config/nats/context.txt").write_text("chosen\n")
    assert load_context(None, env) == {"url": "nats://chosen:4222"}


def test_named_context_beats_the_selected_one(tmp_path: Path) -> None:
    env = context(tmp_path, "chosen", {"url": "nats://chosen:4222"})
    context(tmp_path, "named", {"url": "nats://named:4222"})
    (tmp_path / ".config/nats/context.txt").write_text("chosen")
    assert load_context("named", env) == {"url": "nats://named:4222"}


def test_contexts_are_found_under_xdg_config_home(tmp_path: Path) -> None:
    context(tmp_path, "x", {"url": "nats://x:4222"})
    env = {"XDG_CONFIG_HOME": str(tmp_path / ".config"), "HOME": "/nowhere"}
    assert load_context("x", env) == {"url": "nats://x:4222"}


def test_home_is_put_for_a_tilde_in_paths_only(tmp_path: Path) -> None:
    env = context(tmp_path, "x", {"creds": "~/alice.creds", "password": "~/not-a-path"})
    assert load_context("x", env) == {"creds": f"{tmp_path}/alice.creds", "password": "~/not-a-path"}


def test_unknown_context_is_named_with_its_file(tmp_path: Path) -> None:
    env = context(tmp_path, "x", {})
    with pytest.raises(SettingsError, match=r"no NATS context 'y' \(.*/y.json\)"):
        load_context("y", env)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ('{"url": 4222}', "url is not a text"),
        ("\xff", "cannot be read"),
    ],
    ids=["broken JSON", "a list", "wrong type", "no JSON"],
)
def test_file_that_is_no_context_is_refused(tmp_path: Path, text: str, words: str) -> None:
    env = context(tmp_path, "x", text)
    with pytest.raises(SettingsError, match=words):
        load_context("x", env)


@pytest.mark.parametrize("field", ["nsc", "socks_proxy", "user_jwt", "user_seed", "windows_cert_store"])
def test_field_that_we_cannot_honour_is_refused_by_name(tmp_path: Path, field: str) -> None:
    env = context(tmp_path, "x", {"url": "nats://a:4222", field: "something"})
    with pytest.raises(SettingsError, match=f"{field} is not supported"):
        load_context("x", env)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b"])
def test_name_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="not a plain name"):
        load_context(name, context(tmp_path, "x", {}))


def test_secret_of_a_broken_context_is_not_shown(tmp_path: Path) -> None:
    env = context(tmp_path, "x", '{"password": "hunter2"')
    with pytest.raises(SettingsError) as caught:
        load_context("x", env)
    assert "hunter2" not in str(caught.value)
