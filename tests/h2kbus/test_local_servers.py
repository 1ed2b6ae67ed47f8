"""The token of `h2kbus up` is found by this user's clients on this machine, and offered to nobody else."""

import stat
from pathlib import Path

import pytest

from h2kbus.local_servers import announced, token_of
from h2kbus.settings import ConnectionSettings

URL = "nats://127.0.0.1:4333"


def test_token_is_found_while_the_server_runs(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    with announced(URL, "t0ken", env):
        assert token_of(URL, env) == "t0ken"
        assert token_of("nats://localhost:4333", env) == "t0ken"
        assert token_of("127.0.0.1:4333", env) == "t0ken"
    assert token_of(URL, env) is None


def test_port_left_out_is_the_usual_one(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    with announced("nats://127.0.0.1:4222", "t0ken", env):
        assert token_of("nats://127.0.0.1", env) == "t0ken"


@pytest.mark.parametrize(
    "url",
    ["nats://10.0.0.1:4333", "nats://example.com:4333", "tls://127.0.0.1:4333", "nats://u:p@127.0.0.1:4333"],
)
def test_token_is_for_the_own_machine_only(tmp_path: Path, url: str) -> None:
    env = {"HOME": str(tmp_path)}
    with announced(URL, "t0ken", env):
        assert token_of(url, env) is None


def test_another_user_finds_nothing(tmp_path: Path) -> None:
    with announced(URL, "t0ken", {"HOME": str(tmp_path / "a")}):
        assert token_of(URL, {"HOME": str(tmp_path / "b")}) is None


def test_file_and_directory_are_for_their_owner_only(tmp_path: Path) -> None:
    with announced(URL, "t0ken", {"XDG_STATE_HOME": str(tmp_path)}):
        file = tmp_path / "h2kbus" / "servers" / "4333"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) & 0o022 == 0


def test_token_of_a_later_server_stays_when_the_earlier_one_ends(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    with announced(URL, "later", env):
        with announced(URL, "earlier", env):
            pass
        with announced(URL, "later", env):
            assert token_of(URL, env) == "later"


def test_directory_that_cannot_be_written_keeps_no_server_from_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with announced(URL, "t0ken", {"XDG_STATE_HOME": str(tmp_path / "file")}):
        assert "H2KBUS_TOKEN" in caplog.text
        assert "t0ken" not in caplog.text


@pytest.mark.parametrize(
    "given", [{"token": "mine"}, {"user": "u"}, {"nkey": "FILE"}, {"url": f"{URL},nats://127.0.0.1:4334"}]
)
def test_what_says_who_we_are_stands(tmp_path: Path, given: dict[str, str]) -> None:
    (tmp_path / "key").touch()
    flags = {"url": URL, **given} | ({"nkey": str(tmp_path / "key")} if "nkey" in given else {})
    env = {"HOME": str(tmp_path)}
    with announced(URL, "t0ken", env):
        assert ConnectionSettings.resolve({}, {**env, "H2KBUS_URL": URL}).token == "t0ken"
        assert ConnectionSettings.resolve(flags, env).token == given.get("token")
