"""Job documents that users have, read into JobSpecs.

Known are the worker job of protocol v1, the manifest of an attempt, the guestkit VM-operation envelope, and
hyper2kvm's artifact manifest and batch; as JSON, JSON lines or YAML. What has no counterpart here is said in
a document's warnings, by its path; nothing is dropped without a word.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from h2kbus.documents.document import Defaults, Document, Place, located
from h2kbus.documents.reading import Input, Kind, lines, opened, parse_json, values
from h2kbus.documents.recognise import documents_in
from h2kbus.documents.worker_job import plain_job
from h2kbus.errors import InvalidMessage

__all__ = ["Defaults", "Document", "Kind", "read_documents"]


def read_documents(
    source: Path | BinaryIO, defaults: Defaults, *, kind: Kind | None = None
) -> Iterator[Document]:
    """Read jobs one after the other, JSON lines as they come.

    `kind` is told by the name's suffix, or else by the content. Relative paths in a document are relative
    to its directory; those in an open stream, to the working directory. Raises InvalidMessage, with the
    document's origin and the field's path, for the first document that is no job; OSError never.
    """
    found = False
    with opened(source, kind) as given:
        for document in _documents(given, defaults):
            found = True
            yield document
        if not found:
            raise located(InvalidMessage("holds no job"), given.name)


def _documents(given: Input, defaults: Defaults) -> Iterator[Document]:
    if given.kind == "jsonl":
        yield from _from_lines(given, defaults)
        return
    place = Place(given.name, given.directory)
    for suffix, value, size in values(given):
        yield from documents_in(value, place.inner(suffix), defaults, size)


def _from_lines(given: Input, defaults: Defaults) -> Iterator[Document]:
    for number, line in lines(given):
        origin = f"{given.name}:{number}"
        spec = plain_job(line)
        if spec is not None:
            yield Document(spec, origin)
        else:
            value = parse_json(line, origin)
            yield from documents_in(value, Place(origin, given.directory), defaults, len(line))
