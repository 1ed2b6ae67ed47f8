"""The reference for people says all that the contract has, and its examples are messages of the contract."""

import re
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from subjects.codec import decode, encode
from subjects.codes import CODES
from subjects.meanings import explained, meanings
from subjects.reference import documents, example
from subjects.schema import MESSAGES, asyncapi

CONTRACT = asyncapi()
SCHEMAS: dict[str, Any] = CONTRACT["components"]["schemas"]
STRUCTS = {kind.__name__: kind for kind in (*explained(), *MESSAGES) if kind.__name__ in SCHEMAS}
PAGE = documents()["asyncapi.md"]
EXAMPLES = [
    pytest.param(kind, field, meaning[1], id=f"{kind.__name__}-{field}")
    for kind in STRUCTS.values()
    for field, meaning in meanings(kind).items()
    if len(meaning) > 1
]


def section(title: str) -> str:
    """What stands below one heading of the page."""
    return re.split(r"^##+ ", PAGE.partition(f"### {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def test_every_struct_of_the_contract_is_explained() -> None:
    assert STRUCTS.keys() == {name for name, schema in SCHEMAS.items() if "properties" in schema}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_has_a_meaning(name: str) -> None:
    assert meanings(STRUCTS[name]).keys() == SCHEMAS[name]["properties"].keys()


@pytest.mark.parametrize(("kind", "field", "value"), EXAMPLES)
def test_the_example_of_a_field_fits_it(kind: type[msgspec.Struct], field: str, value: object) -> None:
    schema = {**SCHEMAS[kind.__name__]["properties"][field], "components": CONTRACT["components"]}
    assert [error.message for error in Draft202012Validator(schema).iter_errors(value)] == []


@pytest.mark.parametrize("name", STRUCTS)
def test_the_example_of_a_message_is_one(name: str) -> None:
    made = example(name, SCHEMAS)
    decode(STRUCTS[name], encode(made))


@pytest.mark.parametrize("name", CONTRACT["channels"])
def test_the_page_has_every_channel_with_its_address_and_its_message(name: str) -> None:
    text, channel = section(name), CONTRACT["channels"][name]
    assert f"\n{channel['address']}\n" in text
    assert all(f"[{message}](#{message.lower()})" in text for message in channel["messages"])


@pytest.mark.parametrize("name", STRUCTS)
def test_the_page_has_every_field_with_its_meaning(name: str) -> None:
    text = section(name)
    for field, schema in SCHEMAS[name]["properties"].items():
        assert f"| `{field}` | {schema['description']} |" in text


def test_only_those_may_publish_whom_the_roles_allow_it() -> None:
    roles = {name: channel["x-publishing-roles"] for name, channel in CONTRACT["channels"].items()}
    assert roles["submit"] == ["submitter", "operator", "admin"]
    assert roles["ceilings"] == ["operator", "admin"]
    assert roles["records"] == ["worker", "scheduler", "admin"]
    assert roles["dead"] == ["worker", "scheduler", "admin"]


def test_every_link_within_the_page_leads_somewhere() -> None:
    headings = {title.lower() for title in re.findall(r"^##+ (.+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_stands_in_its_page(code: str) -> None:
    info = next(info for known, info in CODES.items() if known == code)
    again = "yes" if info.retryable else "no"
    assert f"| `{code}` | {again} | {info.advice} |" in documents()["error-codes.md"]
