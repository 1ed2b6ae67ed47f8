"""The table of contents of an uncompressed tar archive: ustar, GNU and pax, as OVA files are packed.

Read here rather than by Python's tarfile, which takes extended headers of any size into memory, which
resolves links and sparse maps, and which goes on past what it cannot read. Here every step is bounded,
and whatever an OVA has no use for is refused.
"""

from collections.abc import Iterator

import msgspec

from workers.formats.header import SECTOR, ImageBytes, Refused, Window, corrupt, cut_short, unsafe

MAX_MEMBERS = 10_000
_MAX_EXTENDED = 64 * 1024
_MAX_DIGITS = 20
_FILES = frozenset({b"0", b"\0", b"7"})
_DIRECTORY = b"5"
_LONG_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"
_EXTENDED = frozenset({_LONG_NAME, _PAX, _PAX_GLOBAL})
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"K": "a link",
    b"S": "a sparse file",
}


class Member(msgspec.Struct, frozen=True):
    """A regular file in the archive: the place of its content, in bytes from the archive's start."""

    name: str
    offset: int
    size: int

    @property
    def window(self) -> Window:
        """The content in whole sectors, as tools read it; the archive pads every member to them."""
        return Window(self.offset, _padded(self.size))


class _Entry:
    """One header block, and where the next one stands if its content is as long as it says."""

    def __init__(self, block: bytes, at: int) -> None:
        if _octal(block[148:156]) != _sum(block):
            raise Refused(
                corrupt(f"the archive is damaged: the checksum of its header at byte {at} is wrong")
            )
        self.kind = block[156:157]
        self.name = _ustar_name(block)
        self.size = _number(block[124:136])
        self.content_at = at + SECTOR


def is_archive(image: ImageBytes) -> bool:
    """Whether a file has the mark of a tar archive."""
    return image.at(257, 5) == b"ustar"


def read_members(image: ImageBytes) -> dict[str, Member]:
    """The regular files of an archive by name, without a leading `./`.

    Raises Refused: IMAGE_CORRUPT for an archive that is damaged or cut short, IMAGE_UNSAFE for links,
    devices, sparse files, absolute names, names that go upwards, a name that occurs twice, and for more than
    10,000 entries.
    """
    members: dict[str, Member] = {}
    for member in _members(image):
        if member.name in members:
            raise Refused(unsafe(f"the archive holds {member.name!r} twice"))
        members[member.name] = member
    return members


def _members(image: ImageBytes) -> Iterator[Member]:
    extended: dict[str, str] = {}
    for entry in _entries(image, extended):
        if entry.kind in _EXTENDED:
            extended |= _extension(image, entry)
            continue
        if entry.kind in _FILES:
            yield Member(_safe_name(extended.get("path", entry.name)), entry.content_at, entry.size)
        elif entry.kind != _DIRECTORY:
            words = _REFUSED.get(entry.kind, "of a kind that no OVA needs")
            raise Refused(unsafe(f"the archive's member {entry.name!r} is {words}"))
        extended.clear()


def _entries(image: ImageBytes, extended: dict[str, str]) -> Iterator[_Entry]:
    """The headers one after the other; `extended` holds what an extended header says of the next one."""
    at = 0
    for _ in range(MAX_MEMBERS):
        block = image.at(at, SECTOR)
        if len(block) < SECTOR:
            raise Refused(cut_short(at + SECTOR, image.size))
        if not any(block):
            return
        entry = _Entry(block, at)
        if entry.kind not in _EXTENDED and "size" in extended:
            entry.size = _decimal(extended["size"])
        at = entry.content_at + _padded(entry.size)
        if at > image.size:
            raise Refused(cut_short(at, image.size))
        yield entry
    raise Refused(unsafe(f"the archive has more than {MAX_MEMBERS} entries"))


def _extension(image: ImageBytes, entry: _Entry) -> dict[str, str]:
    if entry.size > _MAX_EXTENDED:
        raise Refused(unsafe(f"the archive has an extended header of {entry.size} bytes"))
    content = image.at(entry.content_at, entry.size)
    if entry.kind == _LONG_NAME:
        return {"path": _text(content)}
    records = dict(_records(content))
    if any(each.startswith("GNU.sparse") for each in records):
        raise Refused(unsafe("the archive has a sparse member"))
    if entry.kind == _PAX_GLOBAL:
        if records.keys() & {"path", "size"}:
            raise Refused(unsafe("the archive gives all its members one name or size"))
        return {}
    return {key: value for key, value in records.items() if key in {"path", "size"}}


def _records(content: bytes) -> Iterator[tuple[str, str]]:
    """The `length key=value` records of a pax header."""
    while content.strip(b"\0"):
        digits, space, _ = content.partition(b" ")
        length = _decimal(digits[:_MAX_DIGITS].decode("ascii", "replace"))
        record, content = content[len(digits) + 1 : length], content[length:]
        key, equals, value = record.partition(b"=")
        if not (space and equals and record.endswith(b"\n")):
            raise Refused(corrupt("the archive is damaged: an extended header cannot be read"))
        yield key.decode("utf-8", "replace"), value[:-1].decode("utf-8", "replace")


def _ustar_name(block: bytes) -> str:
    """GNU archives keep other things where ustar has the prefix."""
    name, prefix = _text(block[:100]), _text(block[345:500])
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _safe_name(name: str) -> str:
    plain = name.removeprefix("./")
    if plain.startswith("/") or ".." in plain.split("/") or "\0" in plain or not plain:
        raise Refused(unsafe(f"the archive has a member named {name!r}"))
    return plain


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 for sizes of 8 GiB and more."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise Refused(corrupt("the archive is damaged: a header holds no number where one belongs"))
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise Refused(corrupt("the archive is damaged: an extended header holds no number where one belongs"))
    return int(text)


def _sum(block: bytes) -> int:
    return sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")


def _padded(size: int) -> int:
    return -(-size // SECTOR) * SECTOR


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")
