"""qemu-img, as typed calls. The format of every image is forced: qemu never guesses."""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ImageFormat
from workers.child import required_tool
from workers.formats import FORMATS
from workers.formats.header import Window
from workers.limits import METADATA, WORK, ToolLimits
from workers.lines import OnLine
from workers.process import ToolOutput, ToolRunner
from workers.sandbox import Allowance
from workers.scratch import made
from workers.tool_json import tool_json

PROGRAM = "qemu-img"
OnFraction = Callable[[float], None]

METADATA_SECONDS = 120.0
BRIEF = Allowance(limits=METADATA, configured=False)
_WITH_BACKING = frozenset({"qcow2", "vmdk"})
_RANGE = "range.raw"
_MAX_JSON = 4 * 1024 * 1024
_PROGRESS = re.compile(r"\(\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)/100%\)")
_VERSIONS: dict[tuple[int, ...], str] = {}
_DIFFERENT, _CHECK_CORRUPT, _CHECK_LEAKS, _CHECK_UNSUPPORTED = 1, 2, 3, 63
_CHECK_VERDICTS = {
    0: "clean",
    _CHECK_CORRUPT: "corrupt",
    _CHECK_LEAKS: "leaks",
    _CHECK_UNSUPPORTED: "unsupported",
}


class Part(msgspec.Struct, frozen=True):
    """A part of a disk's content, in bytes and whole sectors; without a size it goes to the disk's end."""

    offset: int
    size: int | None = None

    @property
    def node(self) -> dict[str, Any]:
        size = {} if self.size is None else {"size": self.size}
        return {"driver": "raw", "offset": self.offset, **size}


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """An image as qemu gets it: by a name that it cannot take for a protocol, and with its format.

    `path` is what messages call it. A source has its `descriptor`, which is handed down to the tool, or
    stands in the scratch directory as links to the descriptors in `linked`, by the name `inside`. `window`
    is the part of the file that is the image, in whole sectors, and `backing` what a layer builds on. An
    image that was `made_here` is in the scratch directory too, and describes itself what is below it if it
    is `layered`. With `part`, it is only that part of the disk.
    """

    path: Path
    format: ImageFormat
    descriptor: int | None = None
    inside: str | None = None
    linked: tuple[int, ...] = ()
    window: Window | None = None
    backing: "Disk | None" = None
    made_here: bool = False
    layered: bool = False
    part: "Part | None" = None

    @property
    def file(self) -> str:
        """The name of the file for a tool, which works in the scratch directory."""
        if self.inside is not None:
            return self.inside
        return str(self.path) if self.descriptor is None else f"/proc/self/fd/{self.descriptor}"

    @property
    def name(self) -> str:
        return f"file:{self.file}" if self._plain else f"json:{msgspec.json.encode(self.node).decode()}"

    @property
    def node(self) -> dict[str, Any]:
        """The image as a node of qemu's block layer, with all that is below it: its header is not asked."""
        file: dict[str, Any] = {"driver": "file", "filename": self.file}
        if self.window:
            part = {"driver": "raw", "offset": self.window.offset, "size": self.window.size}
            file = {**part, "file": file}
        node: dict[str, Any] = {"driver": self.driver, "file": file}
        if self.format in _WITH_BACKING and not self.made_here:
            node["backing"] = self.backing.node if self.backing else None
        return {**self.part.node, "file": node} if self.part else node

    @property
    def divisible(self) -> bool:
        """Whether qemu-img may be shown parts of it.

        Not of an image that builds on another one: in a part of it, qemu (7.2) takes for zeros what is not
        in its topmost layer.
        """
        return self.backing is None and not self.layered

    def only(self, part: "Part | None") -> "Disk":
        """That part of the disk; all of it for None. Raises ValueError for one that is not divisible."""
        if part and not self.divisible:
            raise ValueError(f"{self.path} has layers and cannot be read in parts")
        return msgspec.structs.replace(self, part=part)

    @property
    def handed(self) -> tuple[int, ...]:
        """The descriptors that a tool needs, to be handed down to it."""
        own = () if self.descriptor is None else (self.descriptor,)
        return (*own, *self.linked, *(self.backing.handed if self.backing else ()))

    @property
    def layers(self) -> "tuple[Disk, ...]":
        """The image and all that it builds on, from the top."""
        return (self, *(self.backing.layers if self.backing else ()))

    def flags(self, option: str = "-f") -> list[str]:
        """How qemu-img is told the format of what `name` names; a node tells it itself."""
        return [option, self.driver] if self._plain else []

    @property
    def driver(self) -> str:
        return FORMATS[self.format].qemu

    @property
    def _plain(self) -> bool:
        """Whether a name and a format say it all."""
        return self.made_here and self.part is None


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

    @property
    def packed(self) -> bool:
        """Whether it is a streamOptimized vmdk, whose content is compressed."""
        data = self.format_specific.get("data")
        return isinstance(data, dict) and data.get("create-type") == "streamOptimized"


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
        """What the program says of itself. It is asked again only when another file has taken its place."""
        program = _identity(required_tool(PROGRAM))
        if program not in _VERSIONS:
            argv = [PROGRAM, "--version"]
            output = await self._tools.run(argv, timeout=METADATA_SECONDS, allowance=BRIEF)
            _VERSIONS[program] = output.stdout.decode("utf-8", "replace").partition("\n")[0]
        return _VERSIONS[program]

    async def info(self, disk: Disk) -> tuple[ImageInfo, bytes]:
        """What the image is, and qemu's own words. Raises IMAGE_CORRUPT if qemu cannot open it.

        What it builds on is not looked at.
        """
        alone = msgspec.structs.replace(disk, backing=None)
        output = await self._metadata("info", [alone], "--output=json", *alone.flags(), "--", alone.name)
        return tool_json(ImageInfo, output.stdout, PROGRAM), output.stdout

    async def opinion(self, disk: Disk) -> str:
        """Which format qemu takes the image for when it is told none, in qemu's words.

        Nothing else is read this way: it is an opinion by other means than ours, to be held against ours.
        """
        node = {"file": disk.node["file"]}
        name = f"json:{msgspec.json.encode(node).decode()}"
        try:
            output = await self._metadata("info", [disk], "--output=json", "--", name)
        except OperationFailed as error:
            if error.error_code is not ErrorCode.IMAGE_CORRUPT:
                raise
            return "an image that it cannot open"
        return tool_json(ImageInfo, output.stdout, PROGRAM).format

    async def check(self, disk: Disk) -> CheckResult:
        """Check the image's own bookkeeping. Raises TOOL_FAILED if the check cannot be done at all."""
        argv = [PROGRAM, "check", *disk.flags(), "--", disk.name]
        output = await self._run(argv, [disk], accept=_CHECK_VERDICTS)
        lines = [*output.stderr.splitlines(), *output.stdout.decode("utf-8", "replace").splitlines()]
        return CheckResult(verdict=_CHECK_VERDICTS[output.status], detail=next(filter(None, lines), ""))

    async def measure(self, source: Disk, target: ImageFormat) -> int | None:
        """At most how many bytes the converted image needs; None where qemu cannot tell."""
        argv = [PROGRAM, "measure", "--output=json", *source.flags(), "-O", FORMATS[target].qemu]
        output = await self._run([*argv, source.name], [source], accept=(0, 1))
        return tool_json(_Measure, output.stdout, PROGRAM).required if output.status == 0 else None

    async def convert(
        self, source: Disk, target: Disk, options: Sequence[str], on_fraction: OnFraction
    ) -> None:
        """Write the source's content to the target, which must not exist yet."""
        argv = [PROGRAM, "convert", "-p", *source.flags(), "-O", target.driver, *options]
        await self._run(
            [*argv, "--", source.name, target.name], [source, target], on_output=_progress(on_fraction)
        )

    async def compare(self, one: Disk, other: Disk, on_fraction: OnFraction) -> bool:
        """Whether both have the same content; what only the larger one has must be zeros."""
        flags = [*one.flags(), *other.flags("-F")]
        argv = [PROGRAM, "compare", "-p", *flags, "--", one.name, other.name]
        output = await self._run(argv, [one, other], accept=(0, _DIFFERENT), on_output=_progress(on_fraction))
        return output.status != _DIFFERENT

    async def read(self, disk: Disk, offset: int, length: int) -> bytes:
        """Read a range of the content without attaching it; `offset` and `length` in whole sectors of 512.

        Less comes back where the disk ends.
        """
        first, count = offset // 512, length // 512
        operands = [f"skip={first}", f"count={first + count}", f"if={disk.name}", f"of={_RANGE}"]
        await self._run([PROGRAM, "dd", *disk.flags(), "-O", "raw", "bs=512", *operands], [disk])
        target = self._tools.scratch / _RANGE
        with made(target) as file:
            data = file.read(length)
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
        layers = [layer for disk in disks for layer in disk.layers if not layer.made_here]
        for layer in layers:
            # In a node, the path is a string of JSON.
            self._paths[f'"{layer.file}"'] = msgspec.json.encode(str(layer.path)).decode()
            self._paths[layer.file] = str(layer.path)
        handed = [descriptor for disk in disks for descriptor in disk.handed]
        try:
            return await self._tools.run(
                argv,
                accept=accept,
                on_output=on_output,
                capture_limit=_MAX_JSON,
                timeout=timeout,
                allowance=Allowance(limits=limits, configured=False),
                pass_fds=handed,
            )
        except OperationFailed as error:
            raise OperationFailed(error.error_code, self._by_path(str(error)), **error.details) from error

    def _by_path(self, text: str) -> str:
        """Say an image's path where qemu knows it only as a descriptor."""
        for name, path in self._paths.items():
            # A descriptor's number may be the start of another one's.
            text = re.sub(rf"{re.escape(name)}(?!\d)", path.replace("\\", r"\\"), text)
        return text


def _identity(program: str) -> tuple[int, ...]:
    status = Path(program).stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _progress(on_fraction: OnFraction) -> OnLine:
    def take(line: str) -> None:
        if match := _PROGRESS.search(line):
            on_fraction(min(float(match[1]) / 100, 1.0))

    return take
