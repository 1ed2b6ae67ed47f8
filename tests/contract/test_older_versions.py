"""Messages of older versions are read by this one, and messages of this one by older versions.

A directory for each version of the contract: its schemas, and messages recorded from a bus that ran it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import jsonschema
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.connection import Connection
from h2kbus.provision import provision
from subjects.channels import channels
from subjects.codec import decode, encode
from subjects.grammar import DEFAULT_ROOT, Grammar
from subjects.schema import MESSAGES
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet
from tests.subjects.test_schema import examples

HERE: Final = Path(__file__).parent
VERSIONS: Final = sorted(each.name for each in HERE.iterdir() if each.name[0].isdigit())
KINDS: Final = {message.__name__: message for message in MESSAGES}


def recorded(version: str) -> list[tuple[str, dict[str, Any]]]:
    """The subject and the content of each recorded message."""
    lines = (HERE / version / "messages.jsonl").read_text().splitlines()
    return [(each["subject"], each["data"]) for each in map(json.loads, lines)]


def kind_of(subject: str) -> type[msgspec.Struct]:
    """The message that a subject of the default root carries."""
    tokens = subject.split(".")
    for channel in channels(Topology(Grammar(DEFAULT_ROOT))):
        address = channel.address.split(".")
        if len(address) == len(tokens) and all(
            there.startswith("{") or there == here for there, here in zip(address, tokens, strict=True)
        ):
            return KINDS[channel.message]
    pytest.fail(f"no channel has the subject {subject}")


def missing(before: Any, after: Any, path: str = "$") -> list[str]:
    """Paths of what was there before and is not there after, or is something else."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        gone = [f"{path}.{key}" for key in before.keys() - after.keys()]
        both = before.keys() & after.keys()
        return [*gone, *(each for key in both for each in missing(before[key], after[key], f"{path}.{key}"))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [each for number, (b, a) in pairs for each in missing(b, a, f"{path}[{number}]")]
    return [] if before == after else [path]


@pytest.mark.parametrize(
    ("version", "subject", "data"),
    [(version, *message) for version in VERSIONS for message in recorded(version)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recorded_message_is_read_and_nothing_of_it_is_lost(
    version: str, subject: str, data: dict[str, Any]
) -> None:
    read = decode(kind_of(subject), json.dumps(data).encode())
    assert missing(data, json.loads(encode(read))) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_recordings_hold_messages_of_every_kind_that_matters(version: str) -> None:
    kinds = {kind_of(subject).__name__ for subject, _ in recorded(version)}
    assert kinds >= {
        "JobSpec", "CancelCommand", "RetryCommand", "LaneMessage", "ProgressEvent", "DeadLetter",
        "JobRecord", "WorkerCapabilities", "LaneAnnouncement", "ImageLock",
    }  # fmt: skip
    states = {
        data["state"] for subject, data in recorded(version) if kind_of(subject).__name__ == "JobRecord"
    }
    assert states >= {"COMPLETED", "FAILED", "CANCELLED", "QUEUED", "VALIDATED", "PROGRESSING"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("message", list(examples()), ids=lambda each: type(each).__name__)
def test_message_of_today_is_one_that_an_older_version_reads(version: str, message: msgspec.Struct) -> None:
    name = "".join(f"-{each.lower()}" if each.isupper() else each for each in type(message).__name__)
    schema = HERE / version / f"{name.lstrip('-')}.schema.json"
    if type(message).__name__ in NEW_SINCE[version]:
        assert not schema.exists()
        return
    older = json.loads(schema.read_text())
    validator = jsonschema.Draft202012Validator(older)
    assert [error.message for error in validator.iter_errors(as_sent(message, older))] == []


def as_sent(message: msgspec.Struct, older: dict[str, Any]) -> Any:
    """A message as it goes over the wire; of a job's parameters that is what its submitter has set.

    A parameter that an older worker does not know is refused there by its name, and so it should be.
    """
    data = json.loads(encode(message))
    if not type(message).__name__.endswith("Parameters"):
        return data
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(message)}
    known = older.get("properties") or older["$defs"][type(message).__name__]["properties"]
    return {name: value for name, value in data.items() if name in known or value != defaults[name]}


NEW_SINCE: Final = {"1.0.0": {"WorkerOrder", "Place", "Ceiling", "Quota", "Refusal", "Manifest"}}
"""Messages on subjects of their own that the version does not know."""


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
async def test_bus_that_an_older_version_left_behind_is_carried_on(
    version: str, bus: Bus, connection: Connection, fleet: Fleet
) -> None:
    """Records, lanes and locks as they lay there when the older version was stopped."""
    topology = fleet.topology
    await provision(connection, topology)
    older, here = Topology(Grammar(DEFAULT_ROOT)), f"{fleet.topology.grammar.root}."
    for subject, data in recorded(version):
        if kind_of(subject).__name__ in ("LaneMessage", "JobRecord", "LaneAnnouncement", "ImageLock"):
            moved = subject.replace(f"{DEFAULT_ROOT}.", here).replace(
                f"$KV.{older.grammar.fleet}_", f"$KV.{topology.grammar.fleet}_"
            )
            await connection.publish(moved, json.dumps(data).encode())
    await fleet.scheduler(lease_seconds=3.0)
    await fleet.worker(tokens=("qemu-img", "op-rehearse", "guestfs"))
    with anyio.fail_after(60):
        # Its image is not here, and the one of `locked` waits for it: both are told so by an attempt.
        for job_id in ("queued", "locked"):
            assert (await bus.result(job_id)).state is State.FAILED
    assert (await bus.status("inspected")).state is State.COMPLETED
    assert (await bus.status("later")).state is State.VALIDATED
    new_id = await bus.retry("cancelled")
    await bus.verdict(new_id)
    assert (await bus.result(new_id)).state is State.COMPLETED
