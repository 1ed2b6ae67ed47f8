"""Credentials stay in the files where they were put: a whole run is searched for planted ones afterwards."""

import signal
from pathlib import Path

import pytest

from h2kbus.settings import ConnectionSettings
from tests.conftest import read_ready
from tests.security.planted import Road, job, keep_the_bus, new_secret, running, servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRETS = ("password", "token", "creds", "wrong", "context", "nkey")
"""Of a credentials file, the seed: its token is shown to every server, as a certificate is."""

CREDS = """-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """A bus on which everything was done that takes a credential, and also failed."""
    made = Road(tmp_path_factory.mktemp("road"))
    with made.processes, servers(made) as urls:
        travel(made, urls["users"], urls["token"])
        keep_the_bus(
            made, ConnectionSettings(url=urls["users"], user="all", password=made.secrets["password"])
        )
    return made


def travel(road: Road, url: str, token_url: str) -> None:
    secret = road.secrets
    with_password = url.replace("nats://", f"nats://all:{secret['password']}@")
    seed = road.plant("user.nk", secret["nkey"])
    context = f'{{"url": "{url}", "user": "context", "password": "{secret["context"]}"}}'
    road.plant("nats/context/mine.json", context)
    creds = road.plant("user.creds", CREDS.format(jwt="eyJ0eXAi.e30.c2ln", seed=secret["creds"]))
    (road.place / "disk.img").write_bytes(bytes(1 << 20))
    scheduler = road.program(H2KBUS_URL=with_password)
    worker = road.program(H2KBUS_URL=url, H2KBUS_NKEY=str(seed))
    user = road.program(H2KBUS_CONTEXT="mine")
    with running(road, "scheduler", scheduler), running(road, "worker", worker, "--id", "worker-1"):
        done = job(road, "done", str(road.place / "disk.img"))
        failed = job(road, "failed", str(road.place / "missing.img"))
        assert road.tell("submit", user("submit", "--wait", done)) == 0
        assert road.tell("failing job", user("submit", "--wait", "--json", failed)) == 1
        assert road.tell("no job", user("submit", "-", stdin=b'{"operation": 1}')) == 2
        for words in (["status", "failed"], ["ls", "--json"], ["workers"], ["dead", "ls"], ["doctor"]):
            assert road.tell(" ".join(words), user(*words)) in {0, 1}
    refuse(
        road,
        url,
        token_url,
        creds,
        road.plant("broken.creds", CREDS.format(jwt="eyJ0eXAi.e30.c2ln", seed=secret["wrong"])),
    )


def refuse(road: Road, url: str, token_url: str, creds: Path, broken: Path) -> None:
    """Every way to be refused, or not to reach anybody."""
    secret = road.secrets
    attempts = {
        "wrong password": {"H2KBUS_URL": url, "H2KBUS_USER": "all", "H2KBUS_PASSWORD": secret["wrong"]},
        "wrong password in the address": {"H2KBUS_URL": url.replace("://", f"://all:{secret['wrong']}@")},
        "wrong token": {"H2KBUS_URL": token_url, "H2KBUS_TOKEN": secret["wrong"]},
        "creds that no server takes": {"H2KBUS_URL": url, "H2KBUS_CREDS": str(creds)},
        "creds that are none": {"H2KBUS_URL": url, "H2KBUS_CREDS": str(broken)},
        "seed that is none": {"H2KBUS_URL": url, "H2KBUS_NKEY": str(creds)},
        "nobody there": {"H2KBUS_URL": f"nats://all:{secret['password']}@127.0.0.1:9"},
        "address that is none": {"H2KBUS_URL": f"nats://all:{secret['password']}@[::1"},
        "scheme that is none": {"H2KBUS_URL": f"http://all:{secret['password']}@a"},
        "context for another user": {"H2KBUS_CONTEXT": "mine", "H2KBUS_PASSWORD": secret["wrong"]},
    }
    for name, env in attempts.items():
        assert road.tell(name, road.program(**env)("ls")) in {2, 3}, road.told[name]
        road.tell(f"doctor, {name}", road.program(**env)("doctor"))
    right = road.program(H2KBUS_URL=token_url, H2KBUS_TOKEN=secret["token"])
    road.tell("right token, no streams", right("ls"))
    road.tell("setup by token", right("setup"))


@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_nowhere_but_where_it_was_put(road: Road, name: str) -> None:
    assert road.found(road.secrets[name]) == []


def test_everything_that_a_run_leaves_was_searched(road: Road) -> None:
    """The search reaches the bus, the outputs, the logs of all processes, and the process list."""
    assert {"stream KV_h2k_jobs", "stream OBJ_h2k_artifacts"} <= road.told.keys()
    places = road.found("worker-1")
    assert {"status failed", "stream KV_h2k_jobs", "worker.stderr", "process list"} <= set(places)
    assert any(each.startswith("users-store/") for each in places)
    assert "users-server.log" in road.found("Nats-Sequence")
    assert "out/done.report.json" in road.found("disk.img")


def leak_into_the_process_list(road: Road, secret: str) -> None:
    road.program()("ls", "--url", f"nats://a:{secret}@127.0.0.1:9")


def leak_into_output(road: Road, secret: str) -> None:
    road.tell("output", road.program()("ls", "--root", secret))


def leak_into_a_file(road: Road, secret: str) -> None:
    (road.place / "left.log").write_text(secret)


def leak_into_the_bus(road: Road, secret: str) -> None:
    with servers(road) as urls:
        settings = ConnectionSettings(url=urls["users"], user="all", password=road.secrets["password"])
        program = road.program(
            H2KBUS_URL=settings.url, H2KBUS_USER="all", H2KBUS_PASSWORD=road.secrets["password"]
        )
        assert program("setup").returncode == 0
        words = (
            "--operation",
            "inspect",
            "--image",
            "/a",
            "--output-dir",
            road.place,
            "--tag",
            f"a={secret}",
        )
        assert program("submit", *words).returncode == 0
        keep_the_bus(road, settings)


LEAKS = {
    "process list": leak_into_the_process_list,
    "output": leak_into_output,
    "left.log": leak_into_a_file,
    "stream H2K_COMMANDS": leak_into_the_bus,
}


@pytest.mark.parametrize("place", LEAKS)
def test_secret_that_leaks_is_found(tmp_path: Path, place: str) -> None:
    road, secret = Road(tmp_path), new_secret("leaked")
    with road.processes:
        LEAKS[place](road, secret)
    assert any(each.startswith(place) for each in road.found(secret))


def test_token_of_an_embedded_server_is_in_its_private_files_only(tmp_path: Path) -> None:
    road = Road(tmp_path)
    program = road.program()
    words = ("up", "--json", "--port", "0", "--data-dir", tmp_path / "data", "--verbose")
    with road.processes, program.started(*words) as up:
        url = read_ready(up)["url"]
        token = (tmp_path / "data" / "token").read_text()
        assert road.tell("ls", program("ls", "--url", url)) == 0
        failing = job(road, "failed", "/missing.img")
        assert road.tell("failed", program("submit", "--wait", "--url", url, failing)) == 1
        up.send_signal(signal.SIGINT)
        out, err = up.communicate(timeout=60)
        road.told["up"] = f"{url}{out}{err}".encode()
    holders = {"data/nats-server.conf", "data/token"}
    assert set(road.found(token)) == holders
    assert [(tmp_path / each).stat().st_mode & 0o077 for each in holders] == [0, 0]
