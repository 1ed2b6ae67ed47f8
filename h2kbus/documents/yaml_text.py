"""YAML, read by the safe loader only and turned into JSON, so that all documents go one way.

Aliases are refused, since a few lines of them can stand for gigabytes; so are duplicate keys.
"""

from collections.abc import Hashable
from typing import Any, Final

import msgspec
import yaml

from h2kbus.errors import InvalidMessage

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

MAX_DEPTH: Final = 100
"""Levels of nesting. The C composer has no limit of its own and would run out of stack."""


class _Loader(SafeLoader):
    """The safe loader, which also refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise InvalidMessage(f"line {node.start_mark.line + 1}: a mapping with a duplicate key")
        return mapping


def documents(text: str) -> list[bytes]:
    """Each document of a YAML stream that is not empty, as JSON. Raises InvalidMessage."""
    try:
        _check_events(text)
        found = [each for each in yaml.load_all(text, Loader=_Loader) if each is not None]
        return [msgspec.json.encode(each) for each in found]
    except yaml.YAMLError as error:
        raise InvalidMessage(f"not valid YAML: {_one_line(error)}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # Values that their tag does not fit, numbers without end, keys that JSON cannot have.
        raise InvalidMessage(f"YAML that JSON cannot express: {error}") from None


def _check_events(text: str) -> None:
    """Refuse aliases and deep nesting before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise InvalidMessage(f"line {_line(event)}: YAML aliases are not accepted; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise InvalidMessage(f"line {_line(event)}: nested more than {MAX_DEPTH} levels")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}: {problem}" if mark else problem
