"""Whatever the bus brings or a settings file holds is read, or refused by an error of the tree."""

import contextlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from h2kbus.answers import Stored, found_in, outcome_of, problem_of, reply_of
from h2kbus.backup import _described, _stored
from h2kbus.contexts import load_context
from h2kbus.dead import _numbered, _renamed
from h2kbus.errors import BusError, H2KBusError, InvalidMessage, InvalidSubject, SettingsError
from h2kbus.settings import ConnectionSettings
from scheduler.intake import read_spec
from subjects.builtin import BUILT_IN
from subjects.codec import decode, encode
from subjects.grammar import Grammar
from subjects.operations import parameters_of, selected_actions
from subjects.schema import MESSAGES
from tests.contract.test_older_versions import VERSIONS, kind_of, recorded
from tests.security.fuzz.strategies import ANY_CHARACTER, JSON, changed, spoiled, thorough


def _samples() -> dict[str, list[bytes]]:
    """Recorded messages by the name of their kind."""
    found = defaultdict(list)
    for version in VERSIONS:
        for subject, data in recorded(version):
            found[kind_of(subject).__name__].append(json.dumps(data).encode())
    return found


SAMPLES = _samples()
OTHERS = [each for samples in SAMPLES.values() for each in samples]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@thorough
def test_any_message_is_read_or_refused(kind: type[Any], data: st.DataObject) -> None:
    samples = SAMPLES.get(kind.__name__, OTHERS)
    drawn = data.draw(spoiled(samples) | changed(samples))
    with contextlib.suppress(InvalidMessage):
        message = decode(kind, drawn)
        assert decode(kind, encode(message)) == message


@given(st.text(ANY_CHARACTER, max_size=140), spoiled(SAMPLES["JobSpec"]) | changed(SAMPLES["JobSpec"]))
@thorough
def test_any_submission_is_a_job_or_refused(job_id: str, data: bytes) -> None:
    with contextlib.suppress(InvalidMessage):
        assert read_spec(job_id, data).job_id == job_id


@pytest.mark.slow
@pytest.mark.parametrize("declaration", BUILT_IN, ids=lambda each: each.name)
@given(parameters=st.dictionaries(st.text(max_size=6), JSON, max_size=3), data=st.data())
@thorough
def test_any_parameters_are_read_or_refused(
    declaration: Any, parameters: dict[str, Any], data: st.DataObject
) -> None:
    fields = declaration.parameters.__struct_fields__
    drawn = data.draw(st.dictionaries(st.sampled_from(fields), JSON, max_size=3))
    actions = data.draw(st.lists(st.sampled_from(declaration.actions) | st.text(max_size=8), max_size=3))
    with contextlib.suppress(InvalidMessage):
        parameters_of(declaration, {**parameters, **drawn})
    with contextlib.suppress(InvalidMessage):
        selected_actions(declaration, tuple(actions))


SUBJECTS = st.text(ANY_CHARACTER, max_size=200) | st.builds(
    lambda kind, tail: f"h2k.v1.{kind}.{'.'.join(tail)}",
    st.sampled_from(["commands", "jobs", "progress", "dead"]),
    st.lists(st.text(ANY_CHARACTER, max_size=10) | st.sampled_from(["submit", "op-x", "1"]), max_size=5),
)


@given(SUBJECTS)
@thorough
def test_any_subject_is_ours_or_refused(subject: str) -> None:
    grammar = Grammar()
    for parse in (grammar.parse_command, grammar.parse_job, grammar.parse_progress):
        with contextlib.suppress(InvalidSubject):
            parse(subject)


@given(SUBJECTS, spoiled(SAMPLES["DeadLetter"]) | changed(SAMPLES["DeadLetter"]))
@thorough
def test_any_dead_letter_is_read_or_refused(subject: str, data: bytes) -> None:
    with contextlib.suppress(InvalidMessage):
        letter = _numbered(Stored(subject, 1, data, "")).letter
        _renamed(letter.data, "another", is_submission=True)


ACKS = [
    b'{"stream":"S","seq":7}',
    b'{"error":{"code":503,"err_code":10077,"description":"maximum messages"}}',
]
HEADERS = st.none() | st.dictionaries(
    st.sampled_from(["Status", "Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp"]),
    st.text(max_size=30) | st.sampled_from(["404", "503", "-1", "1_0", "٣", "9" * 5000]),
    max_size=4,
)


@given(spoiled(ACKS) | changed(ACKS), HEADERS)
@thorough
def test_any_answer_of_the_server_is_read_or_an_error_of_the_bus(
    data: bytes, headers: dict[str, str] | None
) -> None:
    answer = Msg(_client=Client(), subject="s", data=data, headers=headers)
    assert isinstance(outcome_of("s", answer), (int, BusError))
    with contextlib.suppress(BusError):
        found_in("s", answer)
    with contextlib.suppress(BusError):
        problem_of("s", reply_of("s", answer))


CONTEXTS = [b'{"url":"nats://a:4222","creds":"~/a.creds","user":"u","password":"p"}']


@given(spoiled(CONTEXTS) | changed(CONTEXTS), spoiled([b"mine"]))
@thorough
def test_any_context_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, context: bytes, selected: bytes
) -> None:
    home = tmp_path_factory.getbasetemp() / "contexts"
    (home / "nats" / "context").mkdir(parents=True, exist_ok=True)
    (home / "nats" / "context" / "mine.json").write_bytes(context)
    (home / "nats" / "context.txt").write_bytes(selected)
    env = {"XDG_CONFIG_HOME": str(home)}
    for name in (None, "mine"):
        with contextlib.suppress(SettingsError):
            load_context(name, env)
        with contextlib.suppress(H2KBusError):
            assert ConnectionSettings.resolve({"context": name}, env).servers


BACKUPS = [b'{"config":{"name":"S","retention":"limits"},"state":{"messages":7,"consumer_count":1}}']


@given(spoiled(BACKUPS) | changed(BACKUPS))
@thorough
def test_any_description_of_a_backup_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    place = tmp_path_factory.getbasetemp() / "backup" / "S"
    place.mkdir(parents=True, exist_ok=True)
    (place / "stream.tar.s2").touch()
    (place / "backup.json").write_bytes(content)
    with contextlib.suppress(SettingsError):
        assert _stored(_described(place), 1).stream == "S"


NAMES = st.sampled_from(ConnectionSettings.__struct_fields__)
VALUES = st.text(max_size=20) | st.sampled_from(
    ["nats://[::1", "nats://a:99999", "nats://a@b@c", "a,,b", "nan", "1e999", "-1", "/etc/passwd", "x.v1"]
)


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
@thorough
def test_any_settings_are_used_or_refused(flags: dict[str, str], variables: dict[str, str]) -> None:
    env = {f"H2KBUS_{name.upper()}": value for name, value in variables.items()}
    with contextlib.suppress(H2KBusError):
        settings = ConnectionSettings.resolve(flags, {**env, "HOME": str(Path("/nonexistent"))})
        assert settings.servers
        assert repr(settings)
        assert settings.submitter()
