"""Which form a document has, and the jobs in it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from h2kbus.documents.attempt_manifest import attempt_jobs, is_attempt_manifest
from h2kbus.documents.document import Defaults, Document, Place, located
from h2kbus.documents.guestkit import ENVELOPE_KIND, envelope_jobs
from h2kbus.documents.hyper2kvm import batch_jobs, manifest_jobs
from h2kbus.documents.reading import too_large
from h2kbus.documents.worker_job import worker_jobs
from h2kbus.errors import InvalidMessage
from subjects.spec import MAX_SPEC_BYTES

Converter = Callable[[dict[str, Any], Place, Defaults], Iterator[Document]]

_COLLECTIONS: Mapping[str, Converter] = {"batch_version": batch_jobs, "manifest_version": manifest_jobs}
"""Forms that hold many jobs, by the field that tells them."""


def documents_in(value: Any, place: Place, defaults: Defaults, size: int) -> Iterator[Document]:
    """The jobs of one value that takes `size` bytes: a job, a list of jobs, or a foreign document.

    Raises InvalidMessage that names the place.
    """
    if not isinstance(value, list):
        yield from _one(value, place, defaults, size)
        return
    for index, each in enumerate(value):
        # Only a list that is larger than a job may be can hold a job that is too large.
        part = None if size > MAX_SPEC_BYTES else size
        yield from _one(each, place.inner(f"[{index}]"), defaults, part)


def _one(value: Any, place: Place, defaults: Defaults, size: int | None) -> Iterator[Document]:
    try:
        if size is None:
            size = len(msgspec.json.encode(value))
        yield from _converter(value, size)(value, place, defaults)
    except InvalidMessage as error:
        raise located(error, place.origin) from None
    except RecursionError:
        raise located(InvalidMessage("nested too deeply"), place.origin) from None


def _converter(value: Any, size: int) -> Converter:
    if not isinstance(value, dict):
        raise InvalidMessage(f"a job is an object, not {_words(value)}")
    if is_attempt_manifest(value):
        return attempt_jobs
    for name, converter in _COLLECTIONS.items():
        if name in value:
            return converter
    if size > MAX_SPEC_BYTES:
        raise too_large(size)
    return envelope_jobs if value.get("kind") == ENVELOPE_KIND else worker_jobs


def _words(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
