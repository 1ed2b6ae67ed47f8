"""A chain of backing files that a job allows: every member is checked like an image, and qemu opens no other.

A chain may not leave the root that its image is below, or the image's own directory where there are no roots.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.formats import FORMATS, Header, ImageBytes, foreign_format, read_header
from workers.regular import OpenFile, open_image_file
from workers.site import Site, root_of

ALLOWED_BY: Final = "allow_backing_chain"
MAX_LAYERS: Final = 8
"""More than people make. The names of all of them must fit into the header of one more layer."""


class Layer(msgspec.Struct, frozen=True):
    """One file of a chain with its header."""

    file: OpenFile
    header: Header


def open_chain(top: Layer, site: Site, allowed: frozenset[str], stack: ExitStack) -> tuple[Layer, ...]:
    """Open everything that an image builds on, from the one below it to the base.

    Raises OperationFailed: IMAGE_UNSAFE for a chain that leaves its root, names what is no file, does not
    say the format of a member, is endless, or has a member that would itself be refused; FORMAT_MISMATCH
    for a member of another format than the one above says; and what `open_image_file` raises.
    """
    root = root_of(top.file.path, site.image_roots) or top.file.directory.path
    inside = msgspec.structs.replace(site, image_roots=(root,))
    layers = [top]
    while layers[-1].header.backing is not None:
        if len(layers) > MAX_LAYERS:
            raise _unsafe(top, f"builds on more than {MAX_LAYERS} files, one over the other")
        below = _below(layers[-1], inside, stack)
        if any(below.file.identity == each.file.identity for each in layers):
            raise _unsafe(top, "builds on itself")
        _require_sound(below, allowed, site.max_virtual_bytes)
        layers.append(below)
    return tuple(layers[1:])


def _below(layer: Layer, site: Site, stack: ExitStack) -> Layer:
    name, declared = layer.header.backing or "", layer.header.backing_format
    if not name.isprintable() or not name or ":" in name.partition("/")[0]:
        raise _unsafe(layer, f"names a backing file that is no path: {name!r}")
    if declared is None:
        raise _unsafe(layer, f"does not say which format its backing file {name!r} has")
    path = Path(os.path.normpath(layer.file.directory.path / name))
    file = open_image_file(site, path, stack)
    image = ImageBytes(file.descriptor)
    header = read_header(image) or Header(format="raw", virtual_size=file.size)
    if FORMATS[header.format].qemu != declared:
        message = f"{path} is {header.format}, and {layer.file.path} says that it is {declared}"
        raise OperationFailed(ErrorCode.FORMAT_MISMATCH, message)
    if header.format == "raw" and (foreign := foreign_format(image)):
        raise OperationFailed(ErrorCode.FORMAT_MISMATCH, f"{path} is {foreign}, which is no supported image")
    return Layer(file, header)


def _require_sound(layer: Layer, allowed: frozenset[str], max_virtual_bytes: int) -> None:
    for each in layer.header.findings:
        if each.unless not in allowed:
            raise OperationFailed(each.code, f"{layer.file.path}: {each.words}")
    if layer.header.extents:
        raise _unsafe(layer, "has its content in further files, and it is in a chain")
    if (layer.header.virtual_size or 0) > max_virtual_bytes:
        raise _unsafe(layer, f"claims a disk of {layer.header.virtual_size} bytes")


def _unsafe(layer: Layer, words: str) -> OperationFailed:
    return OperationFailed(ErrorCode.IMAGE_UNSAFE, f"{layer.file.path} {words}")
