"""The header of a qcow2 image (QEMU's docs/interop/qcow2.txt)."""

import struct

from workers.formats.header import Finding, Header, ImageBytes, corrupt, cut_short, unsafe

_MAGIC = b"QFI\xfb"
_FIELDS = struct.Struct(">QIIQIIQQIIQ")
_CORRUPT, _EXTERNAL_DATA = 1 << 1, 1 << 2
_DATA_FILE_EXTENSION = 0x44415441
_BACKING_FORMAT_EXTENSION = 0xE2792ACA
_MAX_EXTENSIONS = 64
_MIN_HEAD = {2: 72, 3: 104}
_WITH_FEATURES = {3}
_CLUSTER_BITS = range(9, 22)
_MAX_L1_BYTES = 32 << 20
"""qemu itself reads no larger one; 64 TiB in clusters of 64 KiB take 1 MiB."""
_ENCRYPTION = {1: "AES", 2: "LUKS"}


def read(image: ImageBytes) -> Header | None:
    """Read the header; None if this is no qcow2 image."""
    head = image.at(0, 4096)
    if not head.startswith(_MAGIC):
        return None
    version = int.from_bytes(head[4:8], "big")
    if version not in _MIN_HEAD:
        return Header(format="qcow2", findings=(unsafe(f"qcow version {version} is not supported"),))
    if len(head) < _MIN_HEAD[version]:
        return Header(format="qcow2", findings=(cut_short(_MIN_HEAD[version], image.size),))
    return _header(image, head, version)


def _header(image: ImageBytes, head: bytes, version: int) -> Header:
    backing_at, backing_length, cluster_bits, size, crypt, l1_size, l1_at, _, _, snapshots, _ = (
        _FIELDS.unpack_from(head, 8)
    )
    features = int.from_bytes(head[72:80], "big") if version in _WITH_FEATURES else 0
    name = image.at(backing_at, min(backing_length, 1023)).decode("utf-8", "replace")
    backing = name if backing_at else None
    extensions = _extensions(head)
    return Header(
        format="qcow2",
        variant=f"version {version}",
        virtual_size=size,
        backing=backing,
        backing_format=extensions.get(_BACKING_FORMAT_EXTENSION, b"").decode("ascii", "replace") or None,
        findings=(
            *_unsafe(
                backing, crypt, external=bool(features & _EXTERNAL_DATA or _DATA_FILE_EXTENSION in extensions)
            ),
            *_snapshots(snapshots),
            *_beyond_reason(8 * l1_size),
            *_corrupt(features, cluster_bits, l1_at + 8 * l1_size, image.size),
        ),
        facts={
            "cluster_size": 1 << cluster_bits if cluster_bits in _CLUSTER_BITS else None,
            "snapshots": snapshots,
        },
    )


def _unsafe(backing: str | None, crypt: int, *, external: bool) -> list[Finding]:
    found = []
    if backing is not None:
        found.append(unsafe(f"it builds on a backing file: {backing!r}", "allow_backing_chain"))
    if external:
        found.append(unsafe("its data is in an external data file"))
    if crypt:
        found.append(unsafe(f"it is encrypted ({_ENCRYPTION.get(crypt, 'unknown method')})"))
    return found


def _snapshots(count: int) -> list[Finding]:
    """Only the state that is active now is read: who relies on the others must not lose them unasked."""
    words = f"it holds {count} internal snapshots, which would not be carried over"
    return [unsafe(words, "allow_snapshots")] if count else []


def _beyond_reason(l1_bytes: int) -> list[Finding]:
    if l1_bytes <= _MAX_L1_BYTES:
        return []
    return [unsafe(f"its header claims an L1 table of {l1_bytes} bytes, more than any real one has")]


def _corrupt(features: int, cluster_bits: int, tables_end: int, size: int) -> list[Finding]:
    found = []
    if features & _CORRUPT:
        found.append(corrupt("it is marked as corrupt"))
    if cluster_bits not in _CLUSTER_BITS:
        found.append(corrupt(f"its cluster size of 2^{cluster_bits} bytes is impossible"))
    if tables_end > size:
        found.append(cut_short(tables_end, size))
    return found


def _extensions(head: bytes) -> dict[int, bytes]:
    """The header extensions that fit into the first 4 KiB, by their types."""
    at = _extensions_at(head)
    found: dict[int, bytes] = {}
    while at + 8 <= len(head) and len(found) < _MAX_EXTENSIONS:
        kind, length = struct.unpack_from(">II", head, at)
        if kind == 0:
            break
        found[kind] = head[at + 8 : at + 8 + length]
        at += 8 + (length + 7) // 8 * 8
    return found


def _extensions_at(head: bytes) -> int:
    version = int.from_bytes(head[4:8], "big")
    return int.from_bytes(head[100:104], "big") if version in _WITH_FEATURES else _MIN_HEAD[version]
