"""A foreign object that remembers which of its fields were read, so that the others can be reported."""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from h2kbus.errors import InvalidMessage

MAX_WARNINGS: Final = 100
"""Unmapped fields that are named one by one; the rest is counted."""

MAX_PATH: Final = 256
"""Characters after which a path stands for everything below it."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$-]{1,64}")


class Field(msgspec.Struct, frozen=True):
    """A value, and the path under which its document has it."""

    value: Any
    path: str

    def checked(self, kind: Any) -> Any:
        """The value as `kind`. Raises InvalidMessage with the field's path."""
        try:
            return msgspec.convert(self.value, kind)
        except msgspec.ValidationError as error:
            raise InvalidMessage.under(self.path, str(error)) from None


class Fields:
    """One object of a foreign document. A field that is null counts as left out."""

    def __init__(self, value: dict[str, Any], path: str = "$", warnings: list[str] | None = None) -> None:
        self.path = path
        self.warnings: list[str] = [] if warnings is None else warnings
        self._left = {key: each for key, each in value.items() if each is not None}
        self._children: list[Fields] = []

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, *names: str) -> Field | None:
        """The first of these fields that is there; other spellings of it stay unread."""
        for name in names:
            if name in self._left:
                return Field(self._left.pop(name), path_to(self.path, name))
        return None

    def child(self, *names: str) -> "Fields":
        """An object inside; an empty one when it is not there."""
        field = self.take(*names)
        value = field.checked(dict[str, Any]) if field else {}
        child = Fields(value, field.path if field else path_to(self.path, names[0]), self.warnings)
        self._children.append(child)
        return child

    def objects(self, name: str) -> "list[Fields]":
        """A list of one or more objects, each with warnings of its own. Raises InvalidMessage."""
        field = self.take(name) or Field([], path_to(self.path, name))
        values = field.checked(list[dict[str, Any]])
        if not values:
            raise InvalidMessage("at least one is needed", field.path)
        return [Fields(value, f"{field.path}[{index}]") for index, value in enumerate(values)]

    def warn(self, field: Field, words: str) -> None:
        """Say what became of a field that was read."""
        self.warnings.append(f"{field.path}: {words}")

    def report(self) -> None:
        """Add a warning for each field, here and in the objects inside, that nothing has read."""
        paths = list(self.unread())
        self.warnings += [f"{path}: has no counterpart here, ignored" for path in paths[:MAX_WARNINGS]]
        if len(paths) > MAX_WARNINGS:
            self.warnings.append(f"{self.path}: {len(paths) - MAX_WARNINGS} more fields are ignored")

    def unread(self) -> Iterator[str]:
        """The paths of what nothing has read, here and in the objects inside."""
        for name, value in self._left.items():
            yield from leaf_paths(value, path_to(self.path, name))
        for child in self._children:
            yield from child.unread()


def path_to(parent: str, key: str) -> str:
    """The path of a field; a name that could garble a message is quoted and cut."""
    return f"{parent}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{parent}[{key[:64]!r}]"


def leaf_paths(value: Any, path: str) -> Iterator[str]:
    """The paths of everything that a value says: of its leaves, with a plain list as one, without nulls."""
    if len(path) > MAX_PATH:
        yield path
    elif isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaf_paths(each, path_to(path, key))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for index, each in enumerate(value):
            yield from leaf_paths(each, f"{path}[{index}]")
    elif value is not None:
        yield path
