"""Structured damage to a valid image. Everything is drawn from the generator that is handed in."""

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from tests.security.fuzz.corpus import MIB, Field, Order, Seed
from tests.security.fuzz.sums import mend

MAX_BYTES = 24 * MIB
"""No mutant is larger; a disk of 64 TiB can be claimed in far less."""

CANARY = b"canary-4f1c9a7e-not-to-be-read"
"""What the files outside of the roots hold: it must turn up nowhere."""

Mutation = Callable[[random.Random, bytearray, "Mutant"], None]


class Mutant:
    """What a mutation may use besides the bytes: the seeds, and the name of a file outside of the roots."""

    def __init__(self, seed: Seed, others: Sequence[Seed], outside: str) -> None:
        self.seed = seed
        self.others = others
        self.outside = outside


def mutate(rng: random.Random, mutant: Mutant) -> tuple[dict[str, bytes], list[str]]:
    """The files of a mutant, and the names of what was done to them, in order."""
    files = dict(mutant.seed.files)
    applied = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        name = mutant.seed.main if rng.random() < _MAIN_SHARE else rng.choice(sorted(files))
        (kind,) = rng.choices(list(MUTATIONS), [weight for weight, _ in MUTATIONS.values()])
        data = bytearray(files[name])
        MUTATIONS[kind][1](rng, data, mutant)
        if rng.random() < _MENDED_SHARE:
            mend(data)
        files[name] = bytes(data[:MAX_BYTES])
        applied.append(kind)
    return files, applied


_MAIN_SHARE = 0.8
_MENDED_SHARE = 0.7


def _flip(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    for _ in range(rng.choice((1, 1, 2, 4, 16)) if data else 0):
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _noise(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    at = _place(rng, data)
    length = rng.choice((1, 4, 16, 512))
    data[at : at + length] = rng.randbytes(length)


def _field(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    if not mutant.seed.fields:
        return _text(rng, data, mutant)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _write(rng, data, rng.choice(mutant.seed.fields))
    return None


def _word(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    """Another number into one of the tables: they are where words are not zero."""
    width, orders = rng.choice((4, 8)), get_args(Order)
    starts = [
        at for at in range(512, min(len(data), MIB) - 8, width) if data[at : at + width] != bytes(width)
    ]
    if starts:
        _write(rng, data, Field(rng.choice(starts), width, rng.choice(orders)))


def _fill(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    """One entry all over a table: everything refers to the same place."""
    at = _place(rng, data) // 8 * 8
    entry = bytes(data[at : at + 8])
    data[at : at + 8 * len(entry) * rng.choice((8, 64, 512))] = entry * rng.choice((8, 64, 512))


def _zero(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    at, length = _place(rng, data), rng.choice((4, 64, 512, 4096, 65536))
    data[at : at + length] = bytes(min(length, len(data) - at))


def _cut(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    keep = rng.choice((rng.randrange(len(data) + 1), len(data) - 512, len(data) - 1, rng.randrange(1024)))
    del data[max(keep, 0) :]


def _extend(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    length = rng.choice((1, 511, 512, 65536, MIB))
    data += rng.choice((bytes(length), rng.randbytes(length), bytes(data[:length])))


def _splice(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    """A part of another image into this one: a header over another's body, or two formats in one file."""
    other = rng.choice(mutant.others)
    part = other.files[other.main]
    length = rng.choice((512, 1024, 4096, 65536))
    start = rng.choice((0, max(len(part) - length, 0), rng.randrange(max(len(part), 1))))
    at = rng.choice((0, max(len(data) - length, 0), len(data), _place(rng, data)))
    data[at : at + length] = part[start : start + length]


def _move(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    start, at, length = _place(rng, data), _place(rng, data), rng.choice((4, 8, 512, 4096))
    data[at : at + length] = data[start : start + length]


def _text(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    """Other words where text stands: descriptors, names of files, numbers in decimal and octal."""
    words = [each for each in _TEXTS if each in data]
    if not words:
        return _noise(rng, data, mutant)
    old = rng.choice(words)
    at = data.find(old)
    evil = rng.choice(_EVIL).replace(b"OUTSIDE", mutant.outside.encode())
    keeps_length = rng.random() < 0.5
    data[at : at + (len(evil) if keeps_length else len(old))] = evil
    return None


def _backing(rng: random.Random, data: bytearray, mutant: Mutant) -> None:
    """A qcow2 that builds on a file outside, or keeps its data there."""
    if not data.startswith(b"QFI\xfb") or len(data) < _QCOW2_ROOM:
        return _text(rng, data, mutant)
    name = rng.choice(_EVIL).replace(b"OUTSIDE", mutant.outside.encode())[:1023]
    at = rng.choice((512, 1024, 65536 - 1024))
    data[at : at + len(name)] = name
    if rng.random() < 0.5:
        struct.pack_into(">QI", data, 8, at, len(name))
    else:
        data[79] |= 4
        struct.pack_into(">II", data, 112, 0x44415441, len(name))
        data[120 : 120 + len(name)] = name
    return None


_QCOW2_ROOM = 66_000

MUTATIONS: Mapping[str, tuple[int, Mutation]] = {
    "flip": (4, _flip),
    "noise": (1, _noise),
    "field": (8, _field),
    "word": (8, _word),
    "fill": (2, _fill),
    "zero": (1, _zero),
    "cut": (2, _cut),
    "extend": (2, _extend),
    "splice": (2, _splice),
    "move": (1, _move),
    "text": (4, _text),
    "backing": (1, _backing),
}
"""By name: how often it is drawn, and what it does. What spoils the first bytes ends at the first check."""

_TEXTS = (
    b"image-flat.vmdk", b"image-s001.vmdk", b"RW 8192", b"FLAT", b"SPARSE", b"parentCID=ffffffff",
    b"createType=", b"monolithicSparse", b"streamOptimized", b"version=1", b"CID=", b"# Disk Descriptor",
    b"disk.vmdk", b"vm.ovf", b"vm.mf", b"fileRef=", b"ovf:href", b"<References>", b"</Envelope>", b"SHA256(",
    b"ustar", b"0000644", b"0000000", b"conectix", b"cxsparse", b"EFI PART", b"regi", b"head", b"metadata",
)  # fmt: skip
_EVIL = (
    b"OUTSIDE", b"../../outside/secret.img", b"/etc/passwd", b"/dev/zero", b"/proc/self/mem",
    b"/proc/self/fd/0",
    b'json:{"driver":"file","filename":"OUTSIDE"}', b"nbd:127.0.0.1:9", b"ssh://localhost/OUTSIDE",
    b"http://127.0.0.1:9/x", b"fat:/", b"-", b"--help", b"", b"\0", b"\n", b"\r", b"\xff\xfe",
    b"\x1b]0;x\x07",
    b"0", b"-1", b"99999999999999999999", b"999999999999999999", b"18446744073709551616", b"77777777777",
    b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b'RW 1 FLAT "OUTSIDE" 0', b"parentCID=1",
    b'parentFileNameHint="OUTSIDE"', b'<!DOCTYPE x [<!ENTITY e SYSTEM "file://OUTSIDE">]>', b"&e;",
    b"%s%n",
    b"a" * 300, b"\nRW 99999999999999 ZERO\n", b'RW 9223372036854775807 FLAT "image-flat.vmdk" 0',
)  # fmt: skip
_BOUNDS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 31, 63, 511, 512, 4096, 65535, 65536)


def _write(rng: random.Random, data: bytearray, field: Field) -> None:
    at = field.at if field.at >= 0 else len(data) + field.at
    if not 0 <= at <= len(data) - field.width:
        return
    top, old = 1 << 8 * field.width, int.from_bytes(data[at : at + field.width], field.order)
    value = rng.choice((
        rng.choice(_BOUNDS), top - rng.choice((1, 2, 512)), top // 2 - rng.choice((0, 1)), len(data),
        len(data) // 512, len(data) + rng.choice((-1, 1)), old + rng.choice((-1, 1, 512, 65536)), old * 2,
        old ^ (1 << rng.randrange(8 * field.width)), 1 << rng.randrange(8 * field.width), rng.randrange(top),
    ))  # fmt: skip
    data[at : at + field.width] = (value % top).to_bytes(field.width, field.order)


def _place(rng: random.Random, data: bytearray) -> int:
    """Mostly where headers and tables are: at the start, at the end, at the first cluster boundaries."""
    if not data:
        return 0
    edge = rng.choice((512, 4096, 65536, MIB))
    found = rng.choice((
        rng.randrange(min(512, len(data))), rng.randrange(min(edge, len(data))),
        len(data) - 1 - rng.randrange(min(1024, len(data))), rng.randrange(len(data)),
        rng.randrange(8) * 65536 + rng.randrange(64),
    ))  # fmt: skip
    return min(found, len(data) - 1)
