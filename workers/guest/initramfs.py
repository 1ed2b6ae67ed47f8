"""Which kernel modules an initramfs holds, read from the file itself: no program of the guest is run.

An initramfs is a row of cpio archives (newc), of which the last is usually compressed; the kernel's own
documentation is "initramfs buffer format".
"""

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import anyio

from h2kbus.errors import ErrorCode, OperationFailed
from workers.limits import UNPACKING
from workers.process import ToolRunner
from workers.sandbox import Allowance
from workers.scratch import fresh, made

MAX_BYTES: Final = 1 << 30
"""No real initramfs unpacks to more."""

MAX_LAYERS: Final = 16
"""Archives that hold an archive may go on without end: one of 300 bytes can unpack to itself."""

MAX_FILES: Final = 1_000_000
_SIZES: Final = re.compile(rb"[0-9A-Fa-f]{104}")
_CPIO: Final = frozenset({b"070701", b"070702"})
_HEADER: Final = 110
_TRAILER: Final = b"TRAILER!!!"
_MAX_NAME: Final = 4096
_CHUNK: Final = 1 << 20
_MODULE_ENDS: Final = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
_LIBRARY: Final[dict[bytes, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00": lzma.open,
    b"BZh": bz2.open,
}
_TOOLS: Final[dict[bytes, tuple[str, ...]]] = {
    b"\x28\xb5\x2f\xfd": ("zstd", "--decompress", "--quiet", "--force", "-o"),
    b"\x02\x21\x4c\x18": ("lz4", "-d", "-q", "-f"),
    b"\x04\x22\x4d\x18": ("lz4", "-d", "-q", "-f"),
}


class UnknownCompression(Exception):
    """The archive is packed in a way that cannot be read here, or that no real one is."""


async def modules_in(path: Path, tools: ToolRunner) -> frozenset[str] | None:
    """The names of the kernel modules inside, with `_` for `-`; None if it cannot be unpacked here.

    `path` is in the scratch directory of `tools`; what is unpacked goes there and away again.
    """
    names: set[str] = set()
    try:
        for _ in range(MAX_LAYERS):
            end = await anyio.to_thread.run_sync(_read_archives, path, names)
            if end is None:
                return frozenset(names)
            inner = path.with_name("initramfs.inner")
            await _unpack(path, end, inner, tools)
            await anyio.Path(inner).replace(path)
    except (UnknownCompression, OSError, EOFError, lzma.LZMAError, zlib.error):
        return None
    else:
        return None
    finally:
        await anyio.Path(path).unlink(missing_ok=True)


def module_name(name: str) -> str | None:
    """The kernel module that a file is, None if it is none."""
    base = PurePosixPath(name).name
    for end in _MODULE_ENDS:
        if base.endswith(end):
            return base.removesuffix(end).replace("-", "_")
    return None


def _read_archives(path: Path, names: set[str]) -> int | None:
    """Collect the modules in the archives that are not compressed. Where others begin, None at the end."""
    with made(path) as file:
        while True:
            at = _skip_zeros(file)
            magic = file.read(6)
            file.seek(at)
            if not magic:
                return None
            if magic not in _CPIO:
                return at
            names.update(module for name in _entries(file) if (module := module_name(name)))
            if len(names) > MAX_FILES:
                raise UnknownCompression


def _skip_zeros(file: IO[bytes]) -> int:
    while chunk := file.read(_CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            return file.seek(-len(rest), 1)
    return file.tell()


def _entries(file: IO[bytes]) -> Iterator[str]:
    """The names of one archive; the file stands behind it afterwards."""
    for _ in range(MAX_FILES):
        header = file.read(_HEADER)
        if header[:6] not in _CPIO or not _SIZES.fullmatch(header[6:]):
            return
        size, length = int(header[54:62], 16), int(header[94:102], 16)
        name = file.read(min(length, _MAX_NAME)).rstrip(b"\0")
        _align(file)
        file.seek(size, 1)
        _align(file)
        if name == _TRAILER:
            return
        yield name.decode("utf-8", "replace")
    raise UnknownCompression


def _align(file: IO[bytes]) -> None:
    file.seek(-file.tell() % 4, 1)


async def _unpack(path: Path, at: int, target: Path, tools: ToolRunner) -> None:
    """Decompress what begins at byte `at`. Raises UnknownCompression."""
    packed = path.with_name("initramfs.packed")
    await anyio.to_thread.run_sync(_cut, path, at, packed)
    try:
        with made(packed) as file:
            magic = file.read(8)
        for start, opened in _LIBRARY.items():
            if magic.startswith(start):
                await anyio.to_thread.run_sync(_unpack_by, opened, packed, target)
                return
        for start, argv in _TOOLS.items():
            if magic.startswith(start):
                await _unpack_with(tools, argv, packed, target)
                return
        raise UnknownCompression
    finally:
        await anyio.Path(packed).unlink(missing_ok=True)


def _cut(path: Path, at: int, target: Path) -> None:
    with made(path) as source, fresh(target) as cut:
        source.seek(at)
        while chunk := source.read(_CHUNK):
            cut.write(chunk)


def _unpack_by(opened: Callable[[IO[bytes]], Any], packed: Path, target: Path) -> None:
    done = 0
    with made(packed) as file, opened(file) as source, fresh(target) as plain:
        while chunk := source.read(_CHUNK):
            done += len(chunk)
            if done > MAX_BYTES:
                raise UnknownCompression
            plain.write(chunk)


async def _unpack_with(tools: ToolRunner, argv: tuple[str, ...], packed: Path, target: Path) -> None:
    order = [target.name, packed.name] if argv[-1] == "-o" else [packed.name, target.name]
    try:
        await tools.run([*argv, *order], allowance=Allowance(limits=UNPACKING))
    except OperationFailed as error:
        if error.error_code is ErrorCode.NO_SPACE:
            raise
        raise UnknownCompression from error
