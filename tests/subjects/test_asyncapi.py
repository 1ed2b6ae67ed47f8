"""The AsyncAPI document says who sends what to whom, and where it is kept.

The official schema of AsyncAPI is not part of any package that the tests install: here the parts of a
document, the fields that version 3.0.0 allows in each, and every reference are checked.
"""

import json
import re
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator

from subjects.commands import Verb
from subjects.grammar import Grammar
from subjects.limits import label_key
from subjects.locks import lock_key, lock_of
from subjects.reference import documents
from subjects.schema import MESSAGES, asyncapi
from subjects.topology import Topology

DOCUMENT = asyncapi()
EXTENSION = re.compile(r"x-[\w.-]+")


def resolve(reference: str) -> Any:
    assert reference.startswith("#/"), reference
    place: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        place = place[step]
    return place


def unknown_keys(node: dict[str, Any], known: str) -> set[str]:
    return {key for key in node if not EXTENSION.fullmatch(key)} - set(known.split())


def test_asyncapi_has_the_fixed_top_of_version_3() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert (
        unknown_keys(DOCUMENT, "asyncapi id info defaultContentType channels operations components") == set()
    )
    assert {"title", "version"} <= set(DOCUMENT["info"])
    assert unknown_keys(DOCUMENT["components"], "messages parameters schemas") == set()


def test_every_reference_of_asyncapi_resolves() -> None:
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(DOCUMENT))
    assert len(references) > len(MESSAGES)
    assert all(resolve(reference) for reference in references)


@pytest.mark.parametrize("name", DOCUMENT["channels"])
def test_a_channels_address_and_parameters_agree(name: str) -> None:
    channel = DOCUMENT["channels"][name]
    assert unknown_keys(channel, "address summary messages parameters bindings") == set()
    assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel["parameters"])
    assert channel["bindings"] == {"nats": {}}


@pytest.mark.parametrize("parameter", DOCUMENT["components"]["parameters"].values())
def test_a_parameter_says_what_may_stand_there(parameter: dict[str, Any]) -> None:
    assert unknown_keys(parameter, "description enum default examples location") == set()
    assert ("enum" in parameter) != ("x-pattern" in parameter)


def test_priorities_are_the_numbers_1_to_10() -> None:
    assert DOCUMENT["components"]["parameters"]["priority"]["enum"] == [
        str(number) for number in range(1, 11)
    ]


@pytest.mark.parametrize("operation", DOCUMENT["operations"].values(), ids=DOCUMENT["operations"])
def test_an_operation_names_its_party_its_channel_and_its_messages(operation: dict[str, Any]) -> None:
    assert unknown_keys(operation, "action channel summary tags messages") == set()
    assert operation["action"] in {"send", "receive"}
    assert {tag["name"] for tag in operation["tags"]} <= {"client", "scheduler", "worker"}
    place = operation["channel"]["$ref"]
    assert place.startswith("#/channels/")
    assert all(each["$ref"].startswith(f"{place}/messages/") for each in operation["messages"])


@pytest.mark.parametrize("name", DOCUMENT["channels"])
def test_somebody_sends_and_somebody_receives_on_every_channel(name: str) -> None:
    used = [
        each for each in DOCUMENT["operations"].values() if each["channel"]["$ref"] == f"#/channels/{name}"
    ]
    assert {operation["action"] for operation in used} == {"send", "receive"}


@pytest.mark.parametrize("name", DOCUMENT["components"]["messages"])
def test_a_message_has_a_content_type_and_a_payload(name: str) -> None:
    message = DOCUMENT["components"]["messages"][name]
    assert unknown_keys(message, "name contentType summary payload headers") == set()
    assert message["contentType"] in {"application/json", "text/plain"}
    assert (
        message["payload"] == {"$ref": f"#/components/schemas/{name}"}
        or message["payload"]["type"] == "string"
    )


def test_what_begins_a_job_may_come_with_its_trace() -> None:
    messages = DOCUMENT["components"]["messages"]
    traced = {name for name, message in messages.items() if "headers" in message}
    assert traced == {messages_of(verb) for verb in ("submit", "retry")}
    for name in traced:
        Draft7Validator.check_schema(messages[name]["headers"])
        pattern = messages[name]["headers"]["properties"]["traceparent"]["pattern"]
        assert re.fullmatch(pattern, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


def messages_of(channel: str) -> str:
    [name] = DOCUMENT["channels"][channel]["messages"]
    return str(name)


def test_asyncapi_holds_the_schema_of_every_message() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert {message.__name__ for message in MESSAGES} <= set(schemas)
    for schema in schemas.values():
        Draft7Validator.check_schema(schema)


@pytest.mark.parametrize("root", ["h2k.v1", "acme.site-a.v1"])
def test_the_addresses_are_those_that_the_grammar_builds(root: str) -> None:
    topology = Topology(Grammar(root))
    grammar = topology.grammar
    built = {
        "submit": grammar.command("ann", Verb.SUBMIT, "j1"),
        "cancel": grammar.command("ann", Verb.CANCEL, "j1"),
        "retry": grammar.command("ann", Verb.RETRY, "j1"),
        "jobs": grammar.job("default", "kvm+nbd", 10, "j1"),
        "progress": grammar.progress("j1"),
        "dead": grammar.dead("invalid-spec", "j1"),
        "control": grammar.control("w1"),
        "records": topology.record_subject("j1"),
        "workers": topology.worker_subject("w1"),
        "lanes": topology.lane_subject("default", "kvm+nbd", 10),
        "places": topology.place_subject(label_key("source-host/esx-07.lan"), 3),
        "ceilings": topology.ceiling_subject("source-host/esx-07.lan"),
        "orders": topology.order_subject("w1"),
        "quotas": topology.quota_subject("ann"),
        "defaultquota": topology.default_quota_subject,
        "refusals": topology.refusal_subject("ann"),
        "locks": topology.lock_subject(lock_key(lock_of("default", "/a", "j1"))),
    }
    document = asyncapi(root)
    assert set(document["channels"]) == set(built)
    for name, subject in built.items():
        assert pattern_of(document, name).fullmatch(subject), (name, subject)


def pattern_of(document: dict[str, Any], name: str) -> re.Pattern[str]:
    """An address as a regular expression, each parameter by its own pattern or list of values."""
    pattern = re.escape(document["channels"][name]["address"]).replace(r"\{", "{").replace(r"\}", "}")
    for key, parameter in document["components"]["parameters"].items():
        values = "|".join(parameter.get("enum", ())) or parameter["x-pattern"].strip("^$")
        pattern = pattern.replace("{" + key + "}", f"(?:{values})")
    return re.compile(pattern)


def test_asyncapi_tells_of_every_stream_as_it_is_declared() -> None:
    declared = {stream.name: stream.settings() for stream in Topology(Grammar()).streams()}
    told = {
        stream["name"]: stream
        for stream in json.loads(documents()["asyncapi.json"])["x-jetstream"]["streams"]
    }
    assert told == json.loads(msgspec.json.encode(declared))


def test_a_channels_stream_is_one_of_them() -> None:
    streams = {stream["name"] for stream in DOCUMENT["x-jetstream"]["streams"]}
    kept = {name: channel.get("x-jetstream-stream") for name, channel in DOCUMENT["channels"].items()}
    assert {name for name, stream in kept.items() if stream is None} == {"control"}
    assert set(kept.values()) - {None} <= streams


def test_asyncapi_tells_of_the_consumers() -> None:
    names = [consumer["durable_name"] for consumer in DOCUMENT["x-jetstream"]["consumers"]]
    filters = [consumer["filter_subject"] for consumer in DOCUMENT["x-jetstream"]["consumers"]]
    assert names == ["scheduler", "{pool}_{lane}_{priority}"]
    assert filters == ["h2k.v1.commands.*.*.*", "h2k.v1.jobs.{pool}.{lane}.{priority}.*"]
