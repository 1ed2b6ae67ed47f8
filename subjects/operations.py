"""What operations exist, as declarations: names, needs, parameters, phases and actions.

The scheduler validates and routes from a declaration alone; only a worker imports its `runner`.
A third party registers an `OperationDeclaration` of its own in the entry-point group
`h2kbus.operations`.
"""

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from subjects.codec import convert
from subjects.codes import InvalidMessage
from subjects.lanes import check_token
from subjects.spec import ImageFormat, JobSpec

ENTRY_POINT_GROUP = "h2kbus.operations"
_TOKEN_LENGTH = 32
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Phase(msgspec.Struct, frozen=True):
    """A named part of an operation and its share of the whole, as a weight relative to the others."""

    name: str
    weight: Annotated[float, Meta(gt=0)]


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
    """

    name: str
    summary: str
    parameters: type[msgspec.Struct]
    phases: tuple[Phase, ...]
    runner: str
    needs: frozenset[str] = frozenset()
    actions: tuple[str, ...] = ()
    required_actions: frozenset[str] = frozenset()
    writes: Writes = _nothing

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidMessage(f"{self.name!r} is no name for an operation: use a-z, 0-9 and _", "$.name")
        for token in self.needs:
            check_token(token)


class InspectParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Inspection has no parameters of its own.

    Its action `nbd_attach` is known for the sake of v1 documents: it reads the partition table, and the
    report says that nothing had to be attached for it. The action `info` is always done.
    """


class ConvertParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the converted image is written.

    `compress` and `compression_type` apply to qcow2; a streamOptimized vmdk is always compressed by
    zlib; other formats cannot be compressed and are written plain, and the report says so. `subformat`
    applies to vmdk. `output_name` is the file's name inside `artifacts.output_path`; by default the
    image's stem and the format's suffix.
    """

    output_format: ImageFormat = "qcow2"
    compress: bool = True
    compression_type: Literal["zlib", "zstd"] = "zlib"
    subformat: Literal["monolithicSparse", "streamOptimized"] | None = None
    output_name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,250}$(?!\n)")] | None = None


def converted_path(spec: JobSpec, parameters: ConvertParameters) -> str:
    """Where a conversion's result goes: the name asked for, or the image's with the format's as suffix."""
    stem = PurePosixPath(spec.image.path).stem
    name = parameters.output_name or f"{stem}.{parameters.output_format}"
    return posixpath.join(spec.artifacts.output_path, name)


def _converted(spec: JobSpec, parameters: ConvertParameters) -> tuple[str, ...]:
    return (converted_path(spec, parameters),) if spec.artifacts.store_fixed_image else ()


INSPECT = OperationDeclaration(
    name="inspect",
    summary="Report an image's format, sizes, consistency, backing chain and partition table.",
    parameters=InspectParameters,
    phases=(Phase("probe", 1), Phase("check", 6), Phase("partitions", 2), Phase("report", 1)),
    runner="workers.operations.inspect:Inspect",
    needs=frozenset({"qemu-img"}),
    actions=("info", "check", "partitions", "nbd_attach"),
)

CONVERT = OperationDeclaration(
    name="convert",
    summary="Write the image's content in another format, and prove that it is the same content.",
    parameters=ConvertParameters,
    phases=(
        Phase("probe", 2),
        Phase("convert", 66),
        Phase("check", 4),
        Phase("compare", 26),
        Phase("publish", 2),
    ),
    runner="workers.operations.convert:Convert",
    needs=frozenset({"qemu-img"}),
    actions=("convert", "check", "compare"),
    required_actions=frozenset({"convert"}),
    writes=_converted,
)


BUILT_IN = (INSPECT, CONVERT)


class OperationCatalog(Mapping[str, OperationDeclaration]):
    """The operations that one process knows: the built-in ones and those of plug-ins."""

    def __init__(self, plugins: Iterable[OperationDeclaration] = ()) -> None:
        self._plugins = tuple(plugins)
        for taken in {each.name for each in BUILT_IN} & {each.name for each in self._plugins}:
            raise InvalidMessage(f"the operation {taken} is built in and cannot be replaced", "$.name")
        self._by_name = {each.name: each for each in (*BUILT_IN, *self._plugins)}

    @property
    def plugin_tokens(self) -> frozenset[str]:
        """A capability token for each plug-in: its jobs reach only workers that have it installed."""
        return frozenset(plugin_token(each.name) for each in self._plugins)

    def needs_of(self, declaration: OperationDeclaration) -> frozenset[str]:
        """The capabilities that the operation's jobs are routed by."""
        if declaration in self._plugins:
            return declaration.needs | {plugin_token(declaration.name)}
        return declaration.needs

    def __getitem__(self, name: str) -> OperationDeclaration:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def declaration_of(self, spec: JobSpec) -> OperationDeclaration:
        """Find and check the operation of a job.

        Raises InvalidMessage, with the field's path, for an unknown operation, an unknown or unfit
        parameter, and an action that the operation does not have.
        """
        declaration = self._by_name.get(spec.operation)
        if declaration is None:
            known = ", ".join(sorted(self._by_name))
            raise InvalidMessage(f"unknown operation {spec.operation!r}; known: {known}", "$.operation")
        parameters_of(declaration, spec.parameters)
        check_actions(declaration, spec.requested_actions)
        return declaration


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
