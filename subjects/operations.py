"""What an operation is, as a declaration: its name, needs, parameters, phases and actions.

The scheduler validates and routes from a declaration alone; only a worker imports its `runner`.
A third party registers an `OperationDeclaration` of its own in the entry-point group
`h2kbus.operations`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from subjects.codec import convert
from subjects.codes import InvalidMessage
from subjects.lanes import check_token
from subjects.spec import JobSpec

ENTRY_POINT_GROUP = "h2kbus.operations"
_TOKEN_LENGTH = 32
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Phase(msgspec.Struct, frozen=True):
    """A named part of an operation and its share of the whole, as a weight relative to the others.

    `only_if` names the parameter that has to be true for the phase to take place.
    """

    name: str
    weight: Annotated[float, Meta(gt=0)]
    only_if: str | None = None


Writes = Callable[[JobSpec, Any], tuple[str, ...]]
"""From a job and its operation's parameters to the absolute paths that it will write."""


def _nothing(_: JobSpec, __: Any) -> tuple[str, ...]:
    return ()


class OperationDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an operation but its code.

    `parameters` is a frozen struct that forbids unknown fields. `actions` are what `requested_actions`
    may name, in the order they run; `required_actions` cannot be left out when some are named.
    `runner` is `package.module:Class`, imported by workers only. `writes` names the files that a job is
    going to make under names that other jobs may want too: no two jobs that write one run at once.
    `needs_if` names parameters that, when they are true, need further capabilities. `prefers` are
    capabilities that a job is routed by only while a live worker has them.
    """

    name: str
    summary: str
    parameters: type[msgspec.Struct]
    phases: tuple[Phase, ...]
    runner: str
    needs: frozenset[str] = frozenset()
    needs_if: Mapping[str, frozenset[str]] = {}
    prefers: frozenset[str] = frozenset()
    actions: tuple[str, ...] = ()
    required_actions: frozenset[str] = frozenset()
    writes: Writes = _nothing

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidMessage(f"{self.name!r} is no name for an operation: use a-z, 0-9 and _", "$.name")
        for token in self.needs.union(self.prefers, *self.needs_if.values()):
            check_token(token)

    @property
    def writes_images(self) -> bool:
        """Whether its jobs lock what they are going to write."""
        return self.writes is not _nothing

    def needs_with(self, parameters: Mapping[str, Any]) -> frozenset[str]:
        """What a job with these parameters needs."""
        return self.needs.union(*(more for name, more in self.needs_if.items() if parameters.get(name)))

    def phases_with(self, parameters: Mapping[str, Any]) -> tuple[Phase, ...]:
        """The phases of a job with these parameters."""
        return tuple(each for each in self.phases if each.only_if is None or parameters.get(each.only_if))


def plugin_token(name: str) -> str:
    """The capability token of a plug-in operation: `op-` and its name; a long one ends in a hash of it."""
    readable = f"op-{name.replace('_', '-')}"
    if len(readable) <= _TOKEN_LENGTH:
        return readable
    return f"{readable[:23]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def selected_actions(declaration: OperationDeclaration, requested: tuple[str, ...]) -> tuple[str, ...]:
    """The actions to carry out, in the order they were asked for; all of them when none are named."""
    return requested or declaration.actions


def parameters_of(declaration: OperationDeclaration, given: Mapping[str, Any]) -> msgspec.Struct:
    """Turn a job's free-form parameters into the operation's own struct, or raise InvalidMessage."""
    return convert(declaration.parameters, given, "$.parameters")


def check_actions(declaration: OperationDeclaration, requested: tuple[str, ...]) -> None:
    """Refuse actions that the operation does not have, and a selection without its required ones."""
    for position, action in enumerate(requested):
        if action not in declaration.actions:
            known = ", ".join(declaration.actions) or "none"
            reason = f"{declaration.name} has no action {action!r}; it has: {known}"
            raise InvalidMessage(reason, f"$.requested_actions[{position}]")
    missing = declaration.required_actions.difference(requested)
    if requested and missing:
        reason = f"{declaration.name} cannot leave out: {', '.join(sorted(missing))}"
        raise InvalidMessage(reason, "$.requested_actions")
