"""qemu-img, as typed calls. The format of every image is forced: qemu never guesses."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ImageFormat
from workers.formats import FORMATS
from workers.formats.header import Window
from workers.limits import METADATA, WORK, ToolLimits
from workers.lines import OnLine
from workers.process import ToolOutput, ToolRunner
from workers.sandbox import Allowance

PROGRAM = "qemu-img"
OnFraction = Callable[[float], None]

METADATA_SECONDS = 120.0
BRIEF = Allowance(limits=METADATA)
_MAX_JSON = 4 * 1024 * 1024
_PROGRESS = re.compile(r"\(\s*([0-9.]+)/100%\)")
_DIFFERENT, _CHECK_CORRUPT, _CHECK_LEAKS, _CHECK_UNSUPPORTED = 1, 2, 3, 63
_CHECK_VERDICTS = {
    0: "clean",
    _CHECK_CORRUPT: "corrupt",
    _CHECK_LEAKS: "leaks",
    _CHECK_UNSUPPORTED: "unsupported",
}


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """An image as qemu gets it: by a name that it cannot take for a protocol, and with its format.

    `descriptor` is an open file that the name refers to, to be handed down to the tool; without one, qemu
    opens `path`, and the files `beside` it that it names. `window` is the part of the file that is the
    image, in whole sectors.
    """

    path: Path
    format: ImageFormat
    descriptor: int | None = None
    window: Window | None = None
    beside: tuple[Path, ...] = ()

    @property
    def by_name(self) -> tuple[Path, ...]:
        """The files that a tool opens by their names."""
        return (self.path, *self.beside) if self.descriptor is None else ()

    @property
    def file(self) -> str:
        """The name of the file as the operating system knows it."""
        return str(self.path) if self.descriptor is None else f"/proc/self/fd/{self.descriptor}"

    @property
    def name(self) -> str:
        return self.options if self.window else f"file:{self.file}"

    @property
    def options(self) -> str:
        """The image as `--image-opts` takes it, in which a comma is written twice."""
        return ",".join(f"{key}={_doubled(str(value))}" for key, value in _flat(self.node))

    @property
    def node(self) -> dict[str, Any]:
        """The image as a node of qemu's block layer. No backing file is named."""
        file: dict[str, Any] = {"driver": "file", "filename": self.file}
        if self.window:
            part = {"driver": "raw", "offset": self.window.offset, "size": self.window.size}
            file = {**part, "file": file}
        return {"driver": self.driver, "file": file}

    @property
    def flags(self) -> list[str]:
        """How qemu-img is told the format of what `name` names."""
        return ["--image-opts"] if self.window else ["-f", self.driver]

    @property
    def driver(self) -> str:
        return FORMATS[self.format].qemu


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `qemu-img info` says. Sizes are in bytes; `actual_size` is what the file occupies on disk."""

    format: str
    virtual_size: int
    actual_size: int = 0
    backing_filename: str | None = None
    encrypted: bool = False
    dirty_flag: bool = False
    snapshots: list[Any] = []
    format_specific: dict[str, Any] = {}


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `qemu-img check` found: `verdict` is clean, leaks, corrupt or unsupported."""

    verdict: str
    detail: str


class _Measure(msgspec.Struct, frozen=True, rename="kebab"):
    required: int
    fully_allocated: int


class QemuImg:
    """Runs qemu-img in the scratch directory of one attempt."""

    def __init__(self, tools: ToolRunner) -> None:
        self._tools = tools
        self._paths: dict[str, str] = {}

    @property
    def commands(self) -> tuple[str, ...]:
        """The command lines so far, with every image by its path, so that they can be repeated by hand."""
        return tuple(self._by_path(each) for each in self._tools.commands)

    async def version(self) -> str:
        output = await self._tools.run([PROGRAM, "--version"], timeout=METADATA_SECONDS, allowance=BRIEF)
        return output.stdout.decode("utf-8", "replace").partition("\n")[0]

    async def info(self, disk: Disk) -> tuple[ImageInfo, bytes]:
        """What the image is, and qemu's own words. Raises IMAGE_CORRUPT if qemu cannot open it."""
        output = await self._metadata("info", [disk], "--output=json", *disk.flags, "--", disk.name)
        return msgspec.json.decode(output.stdout, type=ImageInfo), output.stdout

    async def check(self, disk: Disk) -> CheckResult:
        """Check the image's own bookkeeping. Raises TOOL_FAILED if the check cannot be done at all."""
        argv = [PROGRAM, "check", *disk.flags, "--", disk.name]
        output = await self._run(argv, [disk], accept=_CHECK_VERDICTS)
        lines = [*output.stderr.splitlines(), *output.stdout.decode("utf-8", "replace").splitlines()]
        return CheckResult(verdict=_CHECK_VERDICTS[output.status], detail=next(filter(None, lines), ""))

    async def measure(self, source: Disk, target: ImageFormat) -> int | None:
        """At most how many bytes the converted image needs; None where qemu cannot tell."""
        argv = [PROGRAM, "measure", "--output=json", *source.flags, "-O", FORMATS[target].qemu]
        output = await self._run([*argv, source.name], [source], accept=(0, 1))
        return msgspec.json.decode(output.stdout, type=_Measure).required if output.status == 0 else None

    async def convert(
        self, source: Disk, target: Disk, options: Sequence[str], on_fraction: OnFraction
    ) -> None:
        """Write the source's content to the target, which must not exist yet."""
        argv = [PROGRAM, "convert", "-p", *source.flags, "-O", target.driver, *options]
        await self._run(
            [*argv, "--", source.name, target.name], [source, target], on_output=_progress(on_fraction)
        )

    async def compare(self, one: Disk, other: Disk, on_fraction: OnFraction) -> bool:
        """Whether both have the same content; what only the larger one has must be zeros."""
        argv = [PROGRAM, "compare", "-p", *_compared(one, other)]
        output = await self._run(argv, [one, other], accept=(0, _DIFFERENT), on_output=_progress(on_fraction))
        return output.status != _DIFFERENT

    async def read(self, disk: Disk, offset: int, length: int) -> bytes:
        """Read a range of the content without attaching it; `offset` and `length` in whole sectors of 512.

        Less comes back where the disk ends.
        """
        target = self._tools.scratch / "range.raw"
        first, count = offset // 512, length // 512
        operands = [f"skip={first}", f"count={first + count}", f"if={disk.name}", f"of={target}"]
        await self._run([PROGRAM, "dd", *disk.flags, "-O", "raw", "bs=512", *operands], [disk])
        data = target.read_bytes()
        target.unlink()
        return data

    async def _metadata(self, verb: str, disks: Sequence[Disk], *arguments: str) -> ToolOutput:
        try:
            output = await self._run([PROGRAM, verb, *arguments], disks, limits=METADATA)
        except OperationFailed as error:
            if error.error_code is not ErrorCode.TOOL_FAILED:
                raise
            if "signal" in error.details:
                message = f"{disks[0].path} takes more to be opened than an honest image does: {error}"
                raise OperationFailed(ErrorCode.IMAGE_UNSAFE, message) from error
            message = f"{disks[0].path} cannot be opened as {disks[0].format}: {error}"
            raise OperationFailed(ErrorCode.IMAGE_CORRUPT, message) from error
        if output.truncated:
            message = f"{disks[0].path} describes itself in more than {_MAX_JSON} bytes"
            raise OperationFailed(ErrorCode.IMAGE_UNSAFE, message)
        return output

    async def _run(
        self,
        argv: Sequence[str],
        disks: Sequence[Disk],
        *,
        accept: Collection[int] = (0,),
        on_output: OnLine | None = None,
        limits: ToolLimits = WORK,
    ) -> ToolOutput:
        timeout = METADATA_SECONDS if limits is METADATA else None
        self._paths |= {f"filename={disk.file}": f"filename={_doubled(str(disk.path))}" for disk in disks}
        self._paths |= {disk.file: str(disk.path) for disk in disks}
        named = [each for disk in disks for each in disk.by_name if not self._is_own(each)]
        handed = [disk.descriptor for disk in disks if disk.descriptor is not None]
        try:
            return await self._tools.run(
                argv,
                accept=accept,
                on_output=on_output,
                capture_limit=_MAX_JSON,
                timeout=timeout,
                allowance=Allowance(limits=limits, readable=tuple(named)),
                pass_fds=handed,
            )
        except OperationFailed as error:
            raise OperationFailed(error.error_code, self._by_path(str(error)), **error.details) from error

    def _is_own(self, path: Path) -> bool:
        """Whether a file is in the scratch directory, which every tool can write to."""
        return path.is_relative_to(self._tools.scratch)

    def _by_path(self, text: str) -> str:
        """Say an image's path where qemu knows it only as a descriptor."""
        for name, path in self._paths.items():
            # A descriptor's number may be the start of another one's.
            text = re.sub(rf"{re.escape(name)}(?!\d)", path.replace("\\", r"\\"), text)
        return text


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _doubled(name: str) -> str:
    return name.replace(",", ",,")


def _compared(one: Disk, other: Disk) -> list[str]:
    """`--image-opts` holds for both operands or for none."""
    if one.window or other.window:
        return ["--image-opts", "--", one.options, other.options]
    return ["-f", one.driver, "-F", other.driver, "--", one.name, other.name]


def _progress(on_fraction: OnFraction) -> OnLine:
    def take(line: str) -> None:
        if match := _PROGRESS.search(line):
            on_fraction(min(float(match[1]) / 100, 1.0))

    return take
