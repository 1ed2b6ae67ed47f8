"""Keys are those of NATS, and a signature is genuine for one job in one fleet by one key."""

import datetime as dt
import re
import stat
from pathlib import Path
from typing import Any

import msgspec
import nkeys
import pytest

from h2kbus.errors import InvalidMessage, SettingsError
from h2kbus.settings import ConnectionSettings
from h2kbus.signing import Signer, is_genuine, new_seed, read_public_keys, write_seed
from subjects.canonical import signed_bytes
from subjects.codec import decode
from subjects.signature import Signature
from subjects.spec import ExecutionPolicy, JobSpec
from tests.conftest import REPOSITORY, rehearsal

ROOT = "h2k.v1"
NOW = dt.datetime.now(dt.UTC)
KEY = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def job(**fields: Any) -> JobSpec:
    return msgspec.structs.replace(rehearsal(job_id="j1", mark="/x"), created_at=NOW, **fields)


@pytest.fixture
def signer() -> Signer:
    return Signer(new_seed())


def test_keys_are_those_of_nats() -> None:
    seed = new_seed()
    theirs = nkeys.from_seed(seed.encode())
    assert Signer(seed).public_key == theirs.public_key.decode()
    signed = Signer(seed).sign(job(), ROOT)
    assert signed.signature is not None
    assert theirs.verify(signed_bytes(signed, ROOT), signed.signature.value)


def test_seed_of_another_tool_signs() -> None:
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER).decode()
    assert is_genuine(Signer(seed).sign(job(), ROOT), ROOT)


def test_signature_is_not_genuine_in_another_fleet(signer: Signer) -> None:
    assert not is_genuine(signer.sign(job(), ROOT), "staging.v1")


def test_signature_is_not_genuine_under_another_key(signer: Signer) -> None:
    signed = signer.sign(job(), ROOT)
    assert signed.signature is not None
    claimed = msgspec.structs.replace(signed.signature, key=Signer(new_seed()).public_key)
    assert not is_genuine(msgspec.structs.replace(signed, signature=claimed), ROOT)


def test_signature_of_a_job_with_what_json_cannot_carry_fits_what_arrives(signer: Signer) -> None:
    spec = job(parameters={"a": float("nan"), "b": (1, 2)})
    assert is_genuine(signer.sign(spec, ROOT), ROOT)


def test_job_that_starts_after_its_signature_has_expired_is_not_signed(signer: Signer) -> None:
    policy = ExecutionPolicy(not_before=NOW + dt.timedelta(days=30))
    with pytest.raises(InvalidMessage, match=r"\$\.execution_policy\.not_before"):
        signer.sign(job(execution_policy=policy), ROOT)


def test_job_with_a_signature_has_its_id_and_time() -> None:
    with pytest.raises(ValueError, match="job_id and created_at"):
        msgspec.structs.replace(Signer(new_seed()).sign(job(), ROOT), created_at=None)


def test_seed_file_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "key"
    seed = new_seed()
    write_seed(file, seed)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Signer.from_file(file).public_key == Signer(seed).public_key
    with pytest.raises(SettingsError, match="File exists"):
        write_seed(file, new_seed())


@pytest.mark.parametrize(
    "text",
    ["", "SUxx", KEY, f"{new_seed()} {new_seed()}", new_seed()[:-1] + "A" * 2],
    ids=["nothing", "no seed", "a public key", "two seeds", "too long"],
)
def test_file_without_one_seed_is_refused_without_being_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        Signer.from_file(file)
    assert not text or text not in str(refused.value)


def test_seed_with_a_slip_of_the_pen_is_refused() -> None:
    seed = new_seed()
    slip = seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:]
    with pytest.raises(SettingsError):
        Signer(slip)


CREDS = """-----BEGIN NATS USER JWT-----
eyJ0.e30.c2ln
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


@pytest.mark.parametrize(("setting", "text"), [("nkey", "{seed}\n"), ("creds", CREDS)])
def test_key_of_a_connection_signs(tmp_path: Path, setting: str, text: str) -> None:
    seed = new_seed()
    file = tmp_path / "file"
    file.write_text(text.format(seed=seed))
    signer = Signer.of(msgspec.structs.replace(ConnectionSettings(), **{setting: str(file)}))
    assert signer is not None
    assert signer.public_key == Signer(seed).public_key


def test_connection_without_a_key_signs_nothing() -> None:
    assert Signer.of(ConnectionSettings(user="ann", password="secret")) is None


def test_trusted_keys_stand_one_on_a_line_with_comments(tmp_path: Path) -> None:
    one, other = (Signer(new_seed()).public_key for _ in range(2))
    file = tmp_path / "trusted"
    file.write_text(f"# the migration team\n{one}  # ann\n\n{other}\n")
    assert read_public_keys(file) == {one, other}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# nobody\n", "has no key in it"),
        (f"{KEY[:-1]}A\n", ":1 is no public key"),
        ("SUAA\n", ":1 is no public key"),
        (f"{nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER).decode()}\n", ":1 is no public key"),
    ],
)
def test_file_of_trusted_keys_with_anything_else_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "trusted"
    file.write_text(text)
    with pytest.raises(SettingsError, match=words):
        read_public_keys(file)


def test_signature_of_the_documentation_is_genuine() -> None:
    text = (REPOSITORY / "docs" / "reference" / "README.md").read_text()
    document, signature = re.findall(r"```json\n(.*?)\n```", text)
    [signed] = re.findall(r"```text\n(.*?)\n```", text, re.DOTALL)
    [seed] = re.findall(r"\bSU[A-Z2-7]{56}\b", text)
    spec = decode(JobSpec, document.encode())
    assert signed_bytes(spec, ROOT) == b"\xff" + signed.encode()
    assert Signer(seed).sign(spec, ROOT).signature == decode(Signature, signature.encode())
