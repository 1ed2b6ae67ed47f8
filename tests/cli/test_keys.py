"""`keys`, `--sign-key` and `--verify-keys`: jobs are signed here and verified there."""

import datetime as dt
import functools
import stat
from pathlib import Path

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.signing import Signer, is_genuine, new_seed
from subjects.codec import encode
from subjects.states import State
from tests.conftest import REHEARSE, Fleet, Program, rehearsal

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

JOB = ("--operation", "rehearse", "--image", "disk.img", "--output-dir", "out", "--job-id")


def test_new_key_is_a_secret_file_and_a_public_key_on_stdout(program: Program) -> None:
    made = program("keys", "new", "sign.key")
    assert stat.S_IMODE((program.place / "sign.key").stat().st_mode) == 0o600
    assert program("keys", "show", "sign.key").stdout == made.stdout
    seed = (program.place / "sign.key").read_text().strip()
    assert seed not in made.stdout + made.stderr


def test_key_is_never_overwritten(program: Program) -> None:
    program("keys", "new", "sign.key")
    again = program("keys", "new", "sign.key")
    assert (again.returncode, again.stdout) == (2, "")


@pytest.mark.parametrize("text", ["", "nonsense", "# nobody\n"])
def test_worker_does_not_start_with_keys_that_are_none(program: Program, text: str) -> None:
    file = program.place / "trusted"
    file.write_text(text)
    done = program("worker", "--verify-keys", file)
    assert done.returncode == 2
    assert "BAD_SETTINGS" in done.stderr


def test_key_that_is_none_is_a_bad_setting(program: Program) -> None:
    (program.place / "sign.key").write_text("nonsense")
    done = program("submit", "--sign-key", "sign.key", *JOB, "j1")
    assert done.returncode == 2
    assert "nonsense" not in done.stderr


async def test_worker_executes_what_the_program_signed_and_nothing_else(
    bus: Bus, fleet: Fleet, program: Program
) -> None:
    async def call(*words: object) -> "tuple[int, str, str]":
        done = await anyio.to_thread.run_sync(functools.partial(program, *words))
        return done.returncode, done.stdout, done.stderr

    await fleet.scheduler()
    _, key, _ = await call("keys", "new", "sign.key")
    (program.place / "trusted").write_text(f"{key.strip()}  # the migration team\n")
    words = ("worker", "--operations", REHEARSE, "--verify-keys", "trusted")
    with program.started(*words):
        assert (await call("submit", "--wait", *JOB, "unsigned"))[0] == 1
        done = await call("submit", "--wait", *JOB, "signed", "--sign-key", "sign.key")
        assert done[0] == 0, done
        _, shown, _ = await call("status", "signed")
        assert f"signed by: {key}" in shown
        program.environment["H2KBUS_SIGN_KEY"] = str(program.place / "sign.key")
        code, again, _ = await call("retry", "signed")
        assert code == 0
        with anyio.fail_after(30):
            record = await bus.result(again.strip())
    assert record.state is State.COMPLETED
    assert record.spec is not None
    assert is_genuine(record.spec, bus.grammar.root)
    unsigned = (await bus.status("unsigned")).result
    assert unsigned is not None
    assert unsigned.error is not None
    assert unsigned.error.code == "SIGNATURE_MISSING"


async def test_document_that_was_signed_elsewhere_is_submitted_as_it_is(
    bus: Bus, fleet: Fleet, program: Program, tmp_path: Path
) -> None:
    await fleet.scheduler()
    spec = msgspec.structs.replace(rehearsal(job_id="j1"), created_at=dt.datetime.now(dt.UTC))
    signed = Signer(new_seed()).sign(spec, bus.grammar.root)
    (tmp_path / "job.json").write_bytes(encode(signed))
    done = await anyio.to_thread.run_sync(functools.partial(program, "submit", tmp_path / "job.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (await bus.status("j1")).spec == signed
