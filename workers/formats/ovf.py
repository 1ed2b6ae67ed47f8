"""The descriptor of an OVF package (DMTF DSP0243) and its manifest: which disks it has, and their digests."""

import re
from collections.abc import Iterator
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import msgspec

from subjects.codes import ErrorCode
from workers.formats.header import Finding, Refused, corrupt, unsafe

MAX_DESCRIPTOR_BYTES = 4 << 20
MAX_MANIFEST_BYTES = 4 << 20
_DECLARATIONS = re.compile(r"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_OUTSIDE = re.compile(r"[/\\:\x00-\x1f\x7f]|\.\.")
_DIGEST_LINE = re.compile(r"\s*(SHA-?\d+)\s*\(([^)]*)\)\s*=\s*([0-9a-fA-F]+)\s*", re.IGNORECASE)
_ALGORITHMS = frozenset({"sha1", "sha256", "sha512"})
_PLAIN = frozenset({"", "identity"})


class PackedDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of the package: the base name of its file, and what the descriptor says of that file.

    `size` is in bytes. `compression` and `chunked` tell of files that are no images as they stand.
    """

    name: str
    size: int | None = None
    compression: str = ""
    chunked: bool = False
    parent: bool = False

    def require_readable(self) -> None:
        """Raise Refused if the file is no image by itself: FORMAT_MISMATCH, or IMAGE_UNSAFE for a delta."""
        if self.parent:
            raise Refused(unsafe(f"the disk {self.name!r} is a delta: its content depends on another one"))
        if self.compression not in _PLAIN:
            words = (
                f"the disk {self.name!r} is compressed by {self.compression!r}; uncompress the package first"
            )
            raise Refused(Finding(ErrorCode.FORMAT_MISMATCH, words))
        if self.chunked:
            words = f"the disk {self.name!r} is cut into chunks; join them and correct the descriptor first"
            raise Refused(Finding(ErrorCode.FORMAT_MISMATCH, words))


class Digest(msgspec.Struct, frozen=True):
    """One line of a manifest: hashlib's name of the algorithm, and the digest in lower-case hex."""

    algorithm: str
    value: str


def read_disks(document: bytes) -> tuple[PackedDisk, ...]:
    """The disks that have a file, in the descriptor's order.

    Raises Refused: IMAGE_CORRUPT for what is no descriptor or contradicts itself; IMAGE_UNSAFE for a
    document that declares a type or entities, or names a file outside the package's directory.
    """
    root = _parse(document)
    if _local(root.tag) != "Envelope":
        raise Refused(corrupt("the descriptor is no OVF envelope"))
    files = _files(root)
    found: dict[str, PackedDisk] = {}
    for disk in _below(root, "DiskSection", "Disk"):
        attributes = _attributes(disk)
        if reference := attributes.get("fileRef"):
            if reference not in files:
                raise Refused(
                    corrupt(f"the descriptor has a disk of a file that it does not list: {reference!r}")
                )
            file = _packed(files[reference], parent="parentRef" in attributes)
            found.setdefault(file.name, file)
    return tuple(found.values())


def read_manifest(text: bytes) -> dict[str, tuple[Digest, ...]]:
    """The digests of each file that the manifest lists, by the file's name.

    Lines of unknown algorithms are left out: that a file is not vouched for shows in its missing digest.
    """
    found: dict[str, tuple[Digest, ...]] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        match = _DIGEST_LINE.fullmatch(line)
        algorithm = match[1].lower().replace("-", "") if match else ""
        if match and algorithm in _ALGORITHMS:
            found[match[2]] = (*found.get(match[2], ()), Digest(algorithm, match[3].lower()))
    return found


def _parse(document: bytes) -> ET.Element:
    """Parse text, not bytes: the parser must see the characters that were searched, in no other encoding."""
    if len(document) > MAX_DESCRIPTOR_BYTES:
        raise Refused(unsafe(f"the descriptor is larger than {MAX_DESCRIPTOR_BYTES} bytes"))
    try:
        text = document.decode("utf-8-sig")
        if _DECLARATIONS.search(text):
            raise Refused(unsafe("the descriptor declares a document type or entities"))
        return ET.fromstring(text)  # noqa: S314 - without declarations there are no entities to expand
    except (UnicodeDecodeError, ET.ParseError, ValueError) as error:
        raise Refused(corrupt(f"the descriptor cannot be read: {error}")) from error


def _files(root: ET.Element) -> dict[str, dict[str, str]]:
    files: dict[str, dict[str, str]] = {}
    for each in _below(root, "References", "File"):
        attributes = _attributes(each)
        if (identifier := attributes.get("id", "")) in files:
            raise Refused(corrupt(f"the descriptor lists the file {identifier!r} twice"))
        files[identifier] = attributes
    return files


def _packed(file: dict[str, str], *, parent: bool) -> PackedDisk:
    name, size = file.get("href", ""), file.get("size", "")
    if not name or len(name) > 255 or _OUTSIDE.search(name) or _OUTSIDE.search(unquote(name)):
        raise Refused(unsafe(f"the descriptor names a file outside its package: {name[:255]!r}"))
    return PackedDisk(
        name=name,
        size=int(size) if size.isascii() and size.isdigit() and len(size) <= 20 else None,
        compression=file.get("compression", ""),
        chunked="chunkSize" in file,
        parent=parent,
    )


def _below(root: ET.Element, section: str, name: str) -> Iterator[ET.Element]:
    for each in root:
        if _local(each.tag) == section:
            yield from (child for child in each if _local(child.tag) == name)


def _attributes(element: ET.Element) -> dict[str, str]:
    return {_local(name): value for name, value in element.attrib.items()}


def _local(name: str) -> str:
    """A name without its namespace, which is another one in each version of the standard."""
    return name.rpartition("}")[2]
