"""OVF packages as appliances are exported: a descriptor, disks, a manifest; in a directory or an archive."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from subjects.spec import ImageSpec
from workers.image import CheckedImage, Gate, open_image

_NAMESPACE = "http://schemas.dmtf.org/ovf/envelope/1"


def ignore(done: int, total: int) -> None:
    """Nobody listens to the checksum's progress."""


def descriptor(*names: str, file: str = "", disk: str = "") -> bytes:
    """The descriptor of a package with these disks; `file` and `disk` are further attributes of each."""
    numbered = list(enumerate(names))
    files = "".join(f'<File ovf:id="f{at}" ovf:href="{name}" {file}/>' for at, name in numbered)
    disks = "".join(f'<Disk ovf:diskId="d{at}" ovf:fileRef="f{at}" {disk}/>' for at, _ in numbered)
    body = f"<References>{files}</References><DiskSection><Info>Disks</Info>{disks}</DiskSection>"
    head = f'<?xml version="1.0" encoding="UTF-8"?><Envelope xmlns="{_NAMESPACE}" xmlns:ovf="{_NAMESPACE}">'
    return f"{head}{body}</Envelope>".encode()


def manifest(files: Mapping[str, bytes], algorithm: str = "sha256") -> bytes:
    lines = [
        f"{algorithm.upper()}({name})= {hashlib.new(algorithm, data).hexdigest()}\n"
        for name, data in files.items()
    ]
    return "".join(lines).encode()


def pack(path: Path, files: Mapping[str, bytes], layout: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=layout) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def lay_out(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)


def appliance(disks: Mapping[str, bytes], *, algorithm: str | None = None, **more: str) -> dict[str, bytes]:
    """The files of a package, its descriptor first; with a manifest if an algorithm is named."""
    files = {"vm.ovf": descriptor(*disks, **more)}
    vouched = {"vm.mf": manifest(files | dict(disks), algorithm)} if algorithm else {}
    return files | vouched | dict(disks)


async def opened(path: Path, member: str | None = None, **more: object) -> CheckedImage:
    """The image as the gate saw it; it is closed again."""
    spec = ImageSpec(path=str(path), **more)  # type: ignore[arg-type]
    async with open_image(spec, ignore, Gate(scratch=path.parent, member=member)) as image:
        return image
