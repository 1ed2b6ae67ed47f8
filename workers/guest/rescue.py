"""A rescue environment: a guest's disk attached where tools can work on it, and nothing else of value.

The program `workers.guest.appliance` makes one: a virtual machine by libguestfs. It is talked to by lines
of JSON.
"""

import base64
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.conversation import Conversation
from workers.joblog import JobLog, printable
from workers.tool_json import tool_json

T = TypeVar("T")

CALL_SECONDS: Final = 300.0
"""How long a question may take that only looks; tools that work get a time of their own."""

TOOL_SECONDS: Final = 3600.0
CLOSE_SECONDS: Final = 300.0
OUTPUT_BYTES: Final = 1 << 20
FILE_BYTES: Final = 1 << 20
_NAME: Final = "the rescue environment"
_NO_SPACE: Final = "No space left on device"


class RescueOutput(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool ended: `out` is bounded, `err` is the end of what it said there."""

    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """The last line that it said, on stderr if it said anything there."""
        lines = [each.strip() for text in (self.out, self.err) for each in text.splitlines() if each.strip()]
        return printable(lines[-1])[:500] if lines else "it said nothing"

    @property
    def text(self) -> str:
        """Everything that it said."""
        return f"{self.out}\n{self.err}".strip()


class FileKind(msgspec.Struct, frozen=True):
    """What is at a path of the guest: file, directory, other, or nothing. Sizes are in bytes."""

    kind: str | None
    size: int = 0
    mode: int = 0


class Greeting(msgspec.Struct, frozen=True):
    """What a rescue environment says of itself when it is there."""

    device: str
    sysroot: str
    tool: str


class _Refusal(msgspec.Struct, frozen=True):
    error: str | None = None


class _Ended(msgspec.Struct, frozen=True):
    status: int
    out: bytes
    err: bytes


class _Content(msgspec.Struct, frozen=True):
    data: bytes | None


class _Names(msgspec.Struct, frozen=True):
    names: tuple[str, ...]


class _Found(msgspec.Struct, frozen=True):
    found: list[dict[str, str]]


class Rescue:
    """One open rescue environment. `device` is the disk in it, `sysroot` where the guest is mounted."""

    def __init__(self, conversation: Conversation, log: JobLog, greeting: Greeting) -> None:
        self.device = greeting.device
        self.sysroot = greeting.sysroot
        self.tool = greeting.tool
        self.commands: list[str] = []
        self._conversation = conversation
        self._log = log
        self._inside = False

    async def run(
        self, *argv: str, accept: Collection[int] | None = (0,), seconds: float = TOOL_SECONDS
    ) -> RescueOutput:
        """Run a tool of the rescue environment; `accept` is None for any status.

        Raises TOOL_FAILED with its words for another status, NO_SPACE if that is what it says.
        """
        self.commands.append(" ".join(argv))
        self._log.line(f"rescue: {self.commands[-1][:2000]}")
        ended = await self._ask(_Ended, seconds, do="run", argv=list(argv), limit=OUTPUT_BYTES)
        output = RescueOutput(status=ended.status, out=_text(ended.out), err=_text(ended.err))
        for line in output.text.splitlines()[-40:]:
            self._log.line(f"  {printable(line)}")
        if accept is not None and output.status not in accept:
            raise _failure(argv, output)
        return output

    async def inside(
        self, *argv: str, accept: Collection[int] | None = (0,), seconds: float = TOOL_SECONDS
    ) -> RescueOutput:
        """Run a program of the guest, with its own tree as root. Raises like `run`."""
        await self._make_habitable()
        environment = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root")
        return await self.run(*environment, "chroot", self.sysroot, *argv, accept=accept, seconds=seconds)

    async def has_program(self, name: str) -> str | None:
        """Where the guest has a program, None if it has not."""
        for directory in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
            path = f"{directory}/{name}"
            if (await self.kind(path)).kind == "file":
                return path
        return None

    async def read(self, path: str, limit: int = FILE_BYTES) -> bytes | None:
        """The beginning of a guest's file; None if there is none."""
        return (await self._ask(_Content, CALL_SECONDS, do="read", path=path, limit=limit)).data

    async def read_shown(self, path: str) -> str | None:
        """A guest's text file, fit for reports; what is no UTF-8 is replaced, so never write it back."""
        data = await self.read(path)
        return None if data is None else data.decode("utf-8", "replace")

    async def read_text(self, path: str) -> str | None:
        """A guest's text file; what is no UTF-8 in it comes back as it was when it is written again."""
        data = await self.read(path)
        return None if data is None else data.decode("utf-8", "surrogateescape")

    async def write_text(self, path: str, text: str, mode: int = 0o644) -> None:
        """Replace a guest's file as a whole. A new one gets `mode`. Raises GUEST_DISK_FULL."""
        data = base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()
        self._log.line(f"rescue: write {path}")
        await self._ask(_Refusal, CALL_SECONDS, do="write", path=path, data=data, mode=mode)

    async def kind(self, path: str) -> FileKind:
        return await self._ask(FileKind, CALL_SECONDS, do="kind", path=path)

    async def exists(self, path: str) -> bool:
        return (await self.kind(path)).kind is not None

    async def names(self, path: str) -> list[str]:
        """The names in a guest's directory, sorted; none if there is no such directory."""
        listed = await self._ask(_Names, CALL_SECONDS, do="list", path=path)
        return sorted(name for name in listed.names if PurePosixPath(name).name == name)

    async def remove(self, path: str) -> None:
        self._log.line(f"rescue: remove {path}")
        await self._ask(_Refusal, CALL_SECONDS, do="remove", path=path)

    async def rename(self, path: str, to: str) -> None:
        self._log.line(f"rescue: rename {path} to {to}")
        await self._ask(_Refusal, CALL_SECONDS, do="rename", path=path, to=to)

    async def download(self, path: str, to: str) -> None:
        """Copy a guest's file to a file in the scratch directory, by its name there."""
        await self._ask(_Refusal, TOOL_SECONDS, do="download", path=path, to=to)

    async def read_device(self, device: str, offset: int, length: int) -> bytes:
        """A range of a block device, in bytes; less where it ends."""
        question = {"do": "read_device", "device": device, "offset": offset, "length": length}
        return (await self._ask(_Content, CALL_SECONDS, **question)).data or b""

    async def windows(self) -> list[dict[str, str]]:
        """The Windows systems on the disk. Everything is unmounted for it."""
        return (await self._ask(_Found, TOOL_SECONDS, do="windows")).found

    async def unmount(self) -> None:
        """Take everything of the guest out of its place."""
        self._inside = False
        await self.run("umount", "--recursive", self.sysroot, accept=None)

    async def end(self) -> None:
        """Finish: everything written is on the disk when this returns."""
        await self._exchange(_Refusal, b"end", CLOSE_SECONDS)

    async def _make_habitable(self) -> None:
        """Give the guest's tree the pseudo filesystems that its programs expect."""
        if self._inside:
            return
        for name in ("dev", "proc", "sys"):
            target = f"{self.sysroot}/{name}"
            await self.run("mount", "--rbind", f"/{name}", target)
            await self.run("mount", "--make-rslave", target)
        await self.run("mount", "-t", "tmpfs", "h2kbus", f"{self.sysroot}/run", accept=None)
        self._inside = True

    async def _ask(self, kind: type[T], seconds: float, **question: Any) -> T:
        return await self._exchange(kind, msgspec.json.encode(question), seconds)

    async def _exchange(self, kind: type[T], line: bytes, seconds: float) -> T:
        try:
            with anyio.fail_after(seconds):
                await self._conversation.send(line)
                return _answer(kind, await self._conversation.receive())
        except TimeoutError:
            message = f"{self.tool} did not answer within {seconds:g} s"
            raise OperationFailed(ErrorCode.TOOL_FAILED, message) from None


async def greeting(conversation: Conversation, seconds: float) -> Greeting:
    """Wait until the environment is there. Raises TOOL_FAILED with the reason why it does not come."""
    try:
        with anyio.fail_after(seconds):
            return _answer(Greeting, await conversation.receive())
    except TimeoutError:
        message = f"{conversation.name} was not ready within {seconds:g} s"
        raise OperationFailed(ErrorCode.TOOL_FAILED, message) from None


def _answer(kind: type[T], line: bytes) -> T:
    words = tool_json(_Refusal, line, _NAME).error
    if words is not None:
        code = ErrorCode.GUEST_DISK_FULL if _NO_SPACE in words else ErrorCode.TOOL_FAILED
        raise OperationFailed(code, printable(words)[:2000])
    return tool_json(kind, line, _NAME)


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace")


def _failure(argv: Sequence[str], output: RescueOutput) -> OperationFailed:
    name = " ".join(argv[:3]) if argv[0] != "env" else " ".join(argv[6:9])
    code = ErrorCode.GUEST_DISK_FULL if _NO_SPACE in output.text else ErrorCode.TOOL_FAILED
    return OperationFailed(code, f"{name} failed with status {output.status}: {output.words}")
