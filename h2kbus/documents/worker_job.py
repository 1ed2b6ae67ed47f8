"""The worker job of protocol v1, as hyper2kvm writes it and as this bus takes it."""

import functools
from collections.abc import Iterator
from typing import Any

import msgspec

from h2kbus.documents.document import Defaults, Document, Place
from h2kbus.documents.draft import Draft
from h2kbus.documents.fields import MAX_WARNINGS, leaf_paths, path_to
from h2kbus.errors import InvalidMessage
from subjects.codec import decode
from subjects.spec import JobSpec
from subjects.states import State


def plain_job(data: bytes) -> JobSpec | None:
    """The job, if `data` is a complete v1 document of which every field is known; otherwise None.

    This is the fast way for large numbers of jobs. Checking the names takes a quarter of the time of
    decoding the job, because values are skipped, not read.
    """
    try:
        _known_names().decode(data)
        return decode(JobSpec, data)
    except (msgspec.DecodeError, InvalidMessage, UnicodeDecodeError, RecursionError):
        return None


def worker_jobs(value: dict[str, Any], place: Place, defaults: Defaults) -> Iterator[Document]:
    """The one job of a v1 document, completed by the defaults."""
    warnings = [*_left_states(value), *_unknown_warnings(value)]
    yield Draft(place, defaults, warnings=warnings, job=value).document()


def _left_states(value: dict[str, Any]) -> Iterator[str]:
    """Take out the state that a job had elsewhere, written in any case."""
    for name in ("state", "status"):
        state = value.get(name)
        if isinstance(state, str) and state.upper() in State.__members__:
            del value[name]
            yield f"$.{name}: the job was {state.upper()} elsewhere; it starts anew here"


def _unknown_warnings(value: dict[str, Any]) -> list[str]:
    paths = list(_unknown_fields(value, JobSpec, "$"))
    warnings = [f"{path}: unknown field, ignored" for path in paths[:MAX_WARNINGS]]
    if len(paths) > MAX_WARNINGS:
        warnings.append(f"$: {len(paths) - MAX_WARNINGS} more unknown fields are ignored")
    return warnings


def _unknown_fields(value: dict[str, Any], kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    known = _fields(kind)
    for name, each in value.items():
        inner = known.get(name)
        if name not in known:
            yield from leaf_paths(each, path_to(path, name))
        elif inner is not None and isinstance(each, dict):
            yield from _unknown_fields(each, inner, path_to(path, name))


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """The fields of a struct by name, each with its own struct type if it is one."""
    return {field.encode_name: _struct(field.type) for field in msgspec.structs.fields(kind)}


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


@functools.cache
def _known_names() -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_names_of(JobSpec))


def _names_of(kind: type[msgspec.Struct]) -> Any:
    """A struct with the same names that looks at no values and refuses any other name."""
    inner = {name: _names_of(each) if each else msgspec.Raw for name, each in _fields(kind).items()}
    fields = [(name, each | msgspec.UnsetType, msgspec.UNSET) for name, each in inner.items()]
    return msgspec.defstruct(f"NamesOf{kind.__name__}", fields, forbid_unknown_fields=True)
