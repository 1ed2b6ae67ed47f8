"""What a guest's serial console says about how far it came. The text is the guest's, so it is hostile.

Nothing here does input or output.
"""

import codecs
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from workers.joblog import printable

TAIL_LINES: Final = 20
MAX_LINE_CHARS: Final = 2048
_SHOWN_CHARS: Final = 200
_MAX_ESCAPE_CHARS: Final = 64

_CONTROL_SEQUENCE: Final = re.compile(r"\x1b\[[0-?]{0,48}[ -/]{0,8}([@-~])")
_OTHER_ESCAPE: Final = re.compile(r"\x1b\][^\x07\x1b]{0,48}(?:\x07|\x1b\\)|\x1b[ -/]{0,4}[0-Z\\^-~]")
_UNFINISHED_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?|[ -/]*)?\Z")
_CONTROLS: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_MOVES: Final = frozenset("ABEFHJdf")
"""Control sequences that leave the line; boot menus and firmware write whole screens with them."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One sign on the console: what it means, and whether the test ends with it.

    `leads_to` is the better sign that follows soon where all is well.
    """

    name: str
    pattern: re.Pattern[str]
    boots: bool = False
    is_final: bool = False
    leads_to: str | None = None


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that was seen, and the line that showed it, fit to be shown."""

    stage: Stage
    line: str


def _seen(name: str, pattern: str) -> Stage:
    return Stage(name=name, pattern=re.compile(pattern))


def _failed(name: str, pattern: str) -> Stage:
    return Stage(name=name, pattern=re.compile(pattern), is_final=True)


def _up(name: str, pattern: str, leads_to: str | None = None) -> Stage:
    return Stage(name=name, pattern=re.compile(pattern), boots=True, is_final=True, leads_to=leads_to)


STAGES: Final[Sequence[Stage]] = (
    _up("login", r"(?:^|(?<!Last) )login: ?(?:\[ *\d+\.\d+\].*)?$"),
    _up("multi-user", r"Reached target .*(?:Multi-User System|Graphical Interface)", leads_to="login"),
    _up("windows", r"^SAC>|Computer is booting, SAC started and initialized"),
    _failed("kernel-panic", r"Kernel panic - not syncing|VFS: Unable to mount root fs"),
    _failed("initramfs-shell", r"^ ?\(initramfs\)|Gave up waiting for root|^ALERT! .* does not exist"),
    _failed("initramfs-shell", r"dropped into an emergency shell|^\[rootfs .*\]#"),
    _failed(
        "dracut-shell",
        r"^dracut:/.*#|Entering emergency mode\. Exit the shell|dracut.*Warning: Could not boot",
    ),
    _failed("emergency-mode", r"You are in (?:emergency|rescue) mode|Entering emergency mode"),
    _failed("emergency-mode", r"Give root password for maintenance|the root account is locked"),
    _failed("emergency-mode", r"systemd\[1\]: Freezing execution"),
    _failed("grub-rescue", r"^grub rescue>"),
    _failed("grub-shell", r"^grub>"),
    _failed("no-bootable-device", r"^No bootable (?:device|option)|No bootable option or device"),
    _failed("no-bootable-device", r"^FATAL: No bootable medium found"),
    _failed("no-boot-loader", r"^Missing operating system|^Error loading operating system"),
    _failed("no-boot-loader", r"^Invalid partition table|^Operating [Ss]ystem not found"),
    _failed("no-boot-loader", r"^(?:BOOTMGR|NTLDR) is (?:missing|compressed)|^A disk read error occurred"),
    _failed("uefi-shell", r"^Shell> ?"),
    _seen(
        "systemd",
        r"systemd\[1\]: |^\[(?:  OK  |FAILED|DEPEND| INFO )\]|^Welcome to (?!GRUB).*!$|^INIT: version",
    ),
    _seen("initramfs", r"^Loading, please wait|^Begin: |Run /init as init process|dracut-initqueue"),
    _seen("kernel", r"Linux version \d|^Decompressing Linux|^EFI stub: |Booting the kernel"),
    _seen("boot-loader", r"Welcome to GRUB|^GRUB [Ll]oading|GNU GRUB|^SYSLINUX|^ISOLINUX|^Loading Linux"),
    _seen("boot-loader", r"^error: .*(?:not found|no such|unknown filesystem)|^LILO|Windows Boot Manager"),
    _seen("firmware", r"^SeaBIOS |^Booting from |^Boot failed: |^BdsDxe: |^UEFI Interactive Shell"),
)
"""What each sign means. The first row that fits a line decides; the first final one ends the test."""


class Console:
    """Reads a console as it comes. It keeps the end of the text only, whatever the guest says."""

    def __init__(self) -> None:
        self.latest: Sight | None = None
        self.verdict: Sight | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._line = ""
        self._deciding = False
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines that say something, fit to be shown."""
        lines = [*self._tail, _shown(self._line)]
        return tuple(filter(None, lines))[-TAIL_LINES:]

    def feed(self, chunk: bytes) -> None:
        """Take what the guest said next, cut anywhere."""
        for part in self._lines(self._held + self._decoder.decode(chunk)):
            self._line = (self._line + part)[:MAX_LINE_CHARS]
            self._judge()
            if part.endswith("\n"):
                self._finish_line()

    def forget_stage(self) -> None:
        """The guest starts again; what it said stays in the tail."""
        self._finish_line()
        self.latest = None

    def _lines(self, text: str) -> Iterator[str]:
        """Plain text in pieces, each with at most one end of line. A cut escape waits for its rest."""
        cut = _UNFINISHED_ESCAPE.search(text, max(0, len(text) - _MAX_ESCAPE_CHARS))
        text, self._held = (text[: cut.start()], cut[0]) if cut else (text, "")
        yield from plain(text).splitlines(keepends=True)

    def _judge(self) -> None:
        line = self._line.rstrip("\n")
        stage = next((each for each in STAGES if each.pattern.search(line)), None)
        if stage is None:
            return
        self.latest = Sight(stage=stage, line=_shown(line))
        better = self.verdict is not None and self.verdict.stage.leads_to == stage.name
        if stage.is_final and (self.verdict is None or self._deciding or better):
            self.verdict, self._deciding = self.latest, True

    def _finish_line(self) -> None:
        if shown := _shown(self._line):
            self._tail.append(shown)
        self._line, self._deciding = "", False


def plain(text: str) -> str:
    """The text without what drives a terminal; leaving a line ends it."""
    text = _CONTROL_SEQUENCE.sub(lambda match: "\n" if match[1] in _MOVES else "", text)
    text = _OTHER_ESCAPE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", text)


def _shown(line: str) -> str:
    return printable(line.strip())[:_SHOWN_CHARS]
