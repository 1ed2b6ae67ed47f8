"""Files and streams, read into values within limits."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import msgspec

from h2kbus.documents.document import located
from h2kbus.errors import InvalidMessage
from subjects.spec import MAX_SPEC_BYTES

Kind = Literal["json", "jsonl", "yaml"]

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""A JSON or YAML file is read whole, so it has a limit; JSON lines have one for each line only."""

_KINDS: Mapping[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
}
_BOM = b"\xef\xbb\xbf"


class Input(msgspec.Struct, frozen=True):
    """An open document; `first` was read of it to tell its kind, after `skipped` blank lines."""

    name: str
    directory: str
    stream: BinaryIO
    kind: Kind
    first: bytes = b""
    skipped: int = 0


@contextlib.contextmanager
def opened(source: Path | BinaryIO, kind: Kind | None = None) -> Iterator[Input]:
    """Open a file, or take a stream that is open already, and tell its kind.

    Raises InvalidMessage with the system's words for a file that cannot be opened or read.
    """
    name = str(source) if isinstance(source, Path) else str(getattr(source, "name", "input")).strip("<>")
    try:
        if isinstance(source, Path):
            with _open(source) as stream:
                yield _told(name, str(source.absolute().parent), stream, kind)
        else:
            yield _told(name, str(Path.cwd()), source, kind)
    except OSError as error:
        raise located(InvalidMessage(f"cannot be read: {error.strerror or error}"), name) from None


def read_value(path: Path) -> Any:
    """The only value of a JSON or YAML file. Raises InvalidMessage when there is none or more than one."""
    with opened(path) as given:
        found = [value for _, value, _ in values(given)]
        if len(found) != 1:
            raise located(InvalidMessage(f"holds {len(found)} documents; one is expected"), given.name)
        return found[0]


def lines(given: Input) -> Iterator[tuple[int, bytes]]:
    """The lines of JSON lines, with their numbers from 1; blank ones are left out."""
    number = given.skipped
    line = given.first or given.stream.readline(MAX_SPEC_BYTES + 2)
    while line:
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > MAX_SPEC_BYTES:
            _check_length(given, number, line)
        if line and not line.isspace():
            yield number, line
        line = given.stream.readline(MAX_SPEC_BYTES + 2)


def values(given: Input) -> Iterator[tuple[str, Any, int]]:
    """The values of a JSON or YAML file: each with its place in it (`[1]`, or nothing) and its bytes."""
    data = _read_whole(given)
    if not data.strip():
        return
    if given.kind == "yaml":
        yield from _yaml_values(data, given.name)
    else:
        yield "", parse_json(data, given.name), len(data)


def parse_json(data: bytes, origin: str) -> Any:
    """Decode one JSON value. Raises InvalidMessage that names `origin`."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise located(_not_json(data, error), origin) from None


def _yaml_values(data: bytes, name: str) -> Iterator[tuple[str, Any, int]]:
    from h2kbus.documents import yaml_text  # noqa: PLC0415 - PyYAML is loaded for YAML only

    try:
        documents = yaml_text.documents(data.decode())
    except UnicodeDecodeError as error:
        raise located(_not_utf8(error), name) from None
    except InvalidMessage as error:
        raise located(error, name) from None
    for index, text in enumerate(documents):
        suffix = f"[{index}]" if len(documents) > 1 else ""
        yield suffix, parse_json(text, name + suffix), len(text)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except ValueError as error:
        # Python refuses a null byte before the system does.
        raise OSError(str(error)) from None


def _not_json(data: bytes, error: Exception) -> InvalidMessage:
    """Say what is wrong; the decoder knows the place of a bad byte only within its own text."""
    try:
        data.decode()
    except UnicodeDecodeError as undecodable:
        return _not_utf8(undecodable)
    return InvalidMessage(f"not valid JSON: {error}")


def _not_utf8(error: UnicodeDecodeError) -> InvalidMessage:
    return InvalidMessage(f"not valid UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}")


def _told(name: str, directory: str, stream: BinaryIO, kind: Kind | None) -> Input:
    known = kind or _KINDS.get(os.path.splitext(name)[1].lower())  # noqa: PTH122 - a stream's name is no path
    if known:
        return Input(name, directory, stream, known)
    skipped, first = 0, stream.readline(MAX_SPEC_BYTES + 2)
    while first.isspace():
        skipped, first = skipped + 1, stream.readline(MAX_SPEC_BYTES + 2)
    return Input(name, directory, stream, _sniffed(first), first, skipped)


def _sniffed(first: bytes) -> Kind:
    """Tell the kind by the first line that is not blank: a whole object on it means JSON lines."""
    text = first.removeprefix(_BOM).lstrip()
    if not text.startswith((b"{", b"[")):
        return "yaml"
    try:
        whole = isinstance(msgspec.json.decode(text), dict)
    except (ValueError, RecursionError):
        return "json"
    return "jsonl" if whole else "json"


def _read_whole(given: Input) -> bytes:
    data = given.first + given.stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        reason = f"has more than {MAX_FILE_BYTES:,} bytes; write large numbers of jobs as JSON lines"
        raise located(InvalidMessage(reason), given.name)
    return data.removeprefix(_BOM)


def _check_length(given: Input, number: int, line: bytes) -> None:
    """Refuse a line that is too long, with its whole length in the words, as far as that is bounded."""
    size, piece = len(line.rstrip(b"\r\n")), line
    while piece and not piece.endswith(b"\n") and size <= MAX_FILE_BYTES:
        piece = given.stream.readline(MAX_SPEC_BYTES)
        size += len(piece.rstrip(b"\r\n"))
    if size > MAX_SPEC_BYTES:
        raise located(too_large(size), f"{given.name}:{number}")


def too_large(size: int) -> InvalidMessage:
    """The refusal of a job document of `size` bytes."""
    return InvalidMessage(f"the job has {size:,} bytes; {MAX_SPEC_BYTES:,} are allowed")
