"""The reference: every file of `docs/reference`, for programs and for people, from the contract alone."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from subjects.codes import CODES
from subjects.schema import MESSAGES, asyncapi, file_stem, json_schema

_MADE: Final = "<!-- Made by `h2kbus schema`: change `subjects/`, and write this anew. -->"
_ABOUT: Final = """\
This is version {} of the contract, under the root `{}`; [asyncapi.json](asyncapi.json) says the same to
programs. h2kbus renders it itself: AsyncAPI's own generator is an npm package, which would want Node.js of
everybody who changes a message."""
_ABOUT_CODES: Final = """\
Codes stand in results, in events, and at the start of each error line of the commands. None is ever renamed
or used for something else. *Again* says whether the same can succeed later: after a code that says yes, a job
is tried again by itself as often as its `retry_count` allows."""
_BOUNDS: Final = (
    ("minimum", "from {}"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "to {}"),
    ("maxLength", "at most {} characters"),
    ("maxProperties", "at most {} names"),
    ("pattern", "`{}`"),
)
_DAY: Final = 86_400

Schema = dict[str, Any]


def documents() -> dict[str, str]:
    """The reference files under the default root: each name and its exact text."""
    contract = asyncapi()
    schemas = {f"{file_stem(message.__name__)}.schema.json": json_schema(message) for message in MESSAGES}
    every = {"asyncapi.json": contract, **schemas}
    pages = {"asyncapi.md": _page(contract), "error-codes.md": _codes()}
    return dict(sorted({**pages, **{name: _json(every[name]) for name in every}}.items()))


def example(name: str, schemas: Schema) -> dict[str, Any]:
    """A message of the contract, made of its fields' examples; fields that may be left out need none."""
    schema, found = schemas[name], {}
    for field, its in schema["properties"].items():
        inner = its.get("$ref", "").rpartition("/")[2]
        if its.get("examples", [None])[0] is not None:
            found[field] = its["examples"][0]
        elif field in schema["required"]:
            found[field] = example(inner, schemas)
    return found


def _page(contract: Schema) -> str:
    """The AsyncAPI document for people."""
    schemas = contract["components"]["schemas"]
    channels, structs = contract["channels"], [each for each in schemas if "properties" in schemas[each]]
    parts = [
        "# Subjects and messages",
        _MADE,
        contract["info"]["description"],
        _ABOUT.format(contract["info"]["version"], contract["id"].rpartition(":")[2]),
        "## Channels",
        _table(
            ("channel", "message", "sent by", "read by"),
            (
                (_link(name), _link(_message(channel)), *_parties(name, contract))
                for name, channel in channels.items()
            ),
        ),
        *(part for name in channels for part in _channel(name, contract)),
        "## Names in addresses",
        _table(
            ("name", "meaning", "form", "usual"),
            (
                (f"`{name}`", its["description"], _form(its), _default(its))
                for name, its in contract["components"]["parameters"].items()
            ),
        ),
        "## Streams and buckets",
        _table(("stream", "subjects", "kept"), map(_stream, contract["x-jetstream"]["streams"])),
        "## Messages",
        *(part for name in structs for part in _struct(name, schemas)),
        "### StopHint",
        contract["components"]["messages"]["StopHint"]["summary"],
        "### State",
        f"{schemas['State']['description']} {', '.join(f'`{each}`' for each in schemas['State']['enum'])}.",
        "### ErrorCode",
        "One of the [error codes](error-codes.md).",
    ]
    return "\n\n".join(parts) + "\n"


def _channel(name: str, contract: Schema) -> Iterator[str]:
    channel = contract["channels"][name]
    senders, readers = _parties(name, contract)
    roles = ", ".join(f"`{each}`" for each in channel["x-publishing-roles"])
    yield f"### {name}"
    yield f"```text\n{channel['address']}\n```"
    lines = (
        channel["summary"],
        f"Carries {_link(_message(channel))}, from {senders} to {readers}.",
        f"Users with these roles may publish: {roles}.",
        f"Kept in the stream `{channel['x-jetstream-stream']}`."
        if "x-jetstream-stream" in channel
        else "Not kept.",
    )
    yield " ".join(lines)


def _struct(name: str, schemas: Schema) -> Iterator[str]:
    schema = schemas[name]
    yield f"### {name}"
    yield schema["description"]
    if any(each.__name__ == name for each in MESSAGES):
        yield f"Schema: [{file_stem(name)}.schema.json]({file_stem(name)}.schema.json)"
    required = schema["required"]
    yield _table(
        ("field", "meaning", "type and range", "default"),
        (
            (
                f"`{field}`",
                its["description"],
                _type(its),
                "required" if field in required else _default(its),
            )
            for field, its in schema["properties"].items()
        ),
    )
    yield f"```json\n{_json(example(name, schemas))}```"


def _type(schema: Schema) -> str:
    """A field's type and range in words."""
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(_code(each) for each in schema["enum"])
    kind: str = "time" if schema.get("format") == "date-time" else schema.get("type", "anything")
    if schema.get("contentEncoding"):
        return f"string in {schema['contentEncoding']}"
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object" and schema.get("additionalProperties"):
        kind = f"object of {_type(schema['additionalProperties'])}"
    bounds = ["not empty"] if schema.get("minLength") == 1 else []
    bounds += [words.format(schema[bound]) for bound, words in _BOUNDS if bound in schema]
    return ", ".join([kind, *bounds])


def _parties(name: str, contract: Schema) -> tuple[str, str]:
    """Who sends and who receives on a channel."""
    target = f"#/channels/{name}"
    mine = [each for each in contract["operations"].values() if each["channel"]["$ref"] == target]
    senders, readers = (
        ", ".join(each["tags"][0]["name"] for each in mine if each["action"] == action)
        for action in ("send", "receive")
    )
    return senders, readers


def _message(channel: Schema) -> str:
    [name] = channel["messages"]
    return str(name)


def _form(parameter: Schema) -> str:
    values = parameter.get("enum")
    return f"{values[0]} to {values[-1]}" if values else _code_of(parameter["x-pattern"])


def _stream(stream: Schema) -> tuple[str, str, str]:
    age, each = stream.get("max_age", 0) / 10**9, stream.get("max_msgs_per_subject", 0)
    kept = (
        "until it is done" if stream["retention"] == "workqueue" else "",
        f"{age / _DAY:g} days" if age >= _DAY else f"{age:g} seconds" if age else "",
        ("the newest" if each == 1 else f"the newest {each}") + " of each subject" if each else "",
    )
    return (
        _code_of(stream["name"]),
        ", ".join(map(_code_of, stream["subjects"])),
        ", ".join(filter(None, kept)),
    )


def _codes() -> str:
    rows = ((f"`{code}`", "yes" if info.retryable else "no", info.advice) for code, info in CODES.items())
    parts = [
        "# Error codes",
        _MADE,
        _ABOUT_CODES,
        _table(("code", "again", "what to do"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = tuple(heads)
    lines = (heads, tuple("---" for _ in heads), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _default(schema: Schema) -> str:
    if isinstance(schema.get("default"), dict) and schema["default"]:
        return "all defaults"
    return _code(schema["default"]) if "default" in schema else ""


def _code(value: Any) -> str:
    return _code_of(msgspec.json.encode(value).decode())


def _code_of(text: str) -> str:
    return f"`{text}`"


def _json(document: Schema) -> str:
    return msgspec.json.format(msgspec.json.encode(document).decode(), indent=2) + "\n"
