"""Boots a disk and watches it come up, or fail, or run out of time."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio

from h2kbus.errors import ErrorCode, OperationFailed
from workers.boot.command import Parts, command_line
from workers.boot.console import Console
from workers.boot.firmware import choose_firmware, prepare_ovmf
from workers.boot.qmp import Event, Qmp
from workers.boot.request import BootRequest, BootVerdict
from workers.boot.tap import ConsoleTap
from workers.limits import machine
from workers.qemu import BRIEF, METADATA_SECONDS, PROGRAM, QemuImg
from workers.sandbox import KVM, Allowance
from workers.workplace import Workplace

OnProgress = Callable[[float, str], None]

MAX_WRITTEN_BYTES: Final = 16 << 30
"""A guest that writes more while it boots is not booting; it would fill the disk of the outputs."""

_OVERLAY: Final = "overlay.qcow2"
_TICK_SECONDS: Final = 0.25
_SETTLE_SECONDS: Final = 1.5
_FOLLOWING_SECONDS: Final = 60.0
"""How long the guest may go on after the line that decided: what it says next explains it."""

_MAX_RESTARTS: Final = 1
"""A guest that has come up far may restart once, as it does after relabelling its files."""

_SCREENS: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("screen.png", {"format": "png"}),
    ("screen.ppm", {}),
)
"""QEMU writes PNG since 7.1, where it was built with it."""

_SILENT: Final = (
    "the guest said nothing on its serial console in {seconds:.0f} s: it may need one "
    "(the action console of offline_fix); the screenshot shows how far it came"
)
_FIRMWARE_ONLY: Final = frozenset({"", "firmware"})


async def boot(place: Workplace, request: BootRequest, on_progress: OnProgress) -> BootVerdict:
    """Boot the disk without writing to it, and say how far it came.

    `on_progress` hears which share of the time limit has passed, and where the guest is. Raises
    OperationFailed: CAPABILITY_MISSING without firmware for UEFI, IMAGE_CORRUPT, NO_SPACE, and
    TOOL_FAILED or TOOL_MISSING for QEMU itself. Nothing is left running, however it ends.
    """
    qemu = QemuImg(place.tools)
    size = (await qemu.info(request.disk))[0].virtual_size
    firmware = await choose_firmware(request.firmware, qemu, request.disk, size)
    ovmf = await prepare_ovmf(place.scratch) if firmware == "uefi" else None
    overlay = await _make_overlay(place, size)
    with ConsoleTap(place.scratch / "console.log") as tap:
        parts = Parts(overlay=overlay, ovmf=ovmf, console=tap.writer)
        argv = command_line(request, parts)
        handed = [tap.writer, *request.disk.handed]
        async with place.tools.converse(argv, pass_fds=handed, allowance=_allowance(request)) as talk:
            tap.hand_over()
            return await _Test(Qmp(talk), tap, request, parts, on_progress).run()


async def _make_overlay(place: Workplace, size: int) -> str:
    """An empty image for the guest's writes. It names no backing file: the command line connects them."""
    argv = [PROGRAM, "create", "-q", "-f", "qcow2", "--", f"file:{_OVERLAY}", str(size)]
    await place.tools.run(argv, timeout=METADATA_SECONDS, allowance=BRIEF)
    return _OVERLAY


def _allowance(request: BootRequest) -> Allowance:
    return Allowance(
        limits=machine(request.memory_mb, request.boot_seconds),
        devices=KVM if request.accelerated else (),
    )


class _Test:
    """One machine from its start to its verdict."""

    def __init__(
        self, qmp: Qmp, tap: ConsoleTap, request: BootRequest, parts: Parts, on_progress: OnProgress
    ) -> None:
        self._qmp = qmp
        self._tap = tap
        self._request = request
        self._parts = parts
        self._on_progress = on_progress
        self._began = anyio.current_time()
        self._restarts = 0
        self._ended: tuple[str, str] | None = None

    async def run(self) -> BootVerdict:
        version = await self._qmp.greet()
        self._began = anyio.current_time()
        await self._qmp.execute("cont")
        await self._watch()
        seconds = round(self._seconds, 1)
        boots, stage, detail = self._judgement()
        screenshot = await self._screenshot()
        await self._qmp.quit()
        return BootVerdict(
            boots=boots,
            stage=stage,
            detail=detail,
            seconds=seconds,
            firmware=self._parts.firmware,
            accelerator="kvm" if self._request.accelerated else "tcg",
            console=self._tap.path,
            screenshot=screenshot,
            qemu_version=version,
            tail=self._console.tail,
        )

    @property
    def _console(self) -> Console:
        return self._tap.console

    @property
    def _seconds(self) -> float:
        return anyio.current_time() - self._began

    @property
    def _stage(self) -> str:
        """The last stage that was seen; empty before the first."""
        return self._console.latest.stage.name if self._console.latest else ""

    async def _watch(self) -> None:
        """Return when the guest came up, failed or ended, or when its time is over."""
        while self._seconds < self._request.boot_seconds:
            await self._tick()
            if self._ended is not None:
                return
            if self._console.verdict is not None:
                await self._settle()
                return

    async def _settle(self) -> None:
        """Hear the end of what decided, and give a guest that is nearly there its time for the rest."""
        decided = anyio.current_time()
        while self._ended is None and anyio.current_time() < decided + self._settle_seconds:
            await self._tick()

    @property
    def _settle_seconds(self) -> float:
        verdict = self._console.verdict
        return _FOLLOWING_SECONDS if verdict and verdict.stage.leads_to else _SETTLE_SECONDS

    async def _tick(self) -> None:
        with anyio.move_on_after(_TICK_SECONDS):
            await self._take(await self._qmp.next_event())
        self._tap.read()
        self._look_at_writes()
        share = min(self._seconds / self._request.boot_seconds, 1.0)
        self._on_progress(share, f"{self._stage or 'started'}, {self._seconds:.0f} s")

    async def _take(self, event: Event) -> None:
        if event.name == "SHUTDOWN":
            await self._take_end(str(event.data.get("reason", "")))
        elif event.name == "STOP" and self._ended is None:
            self._require_running(await self._qmp.execute("query-status"))

    async def _take_end(self, reason: str) -> None:
        self._tap.read()
        if reason != "guest-reset":
            stage = "poweroff" if reason == "guest-shutdown" else "ended"
            self._ended = (stage, f"the machine ended: {reason}")
        elif self._stage == "systemd" and self._restarts < _MAX_RESTARTS:
            await self._restart()
        else:
            self._ended = ("reset", "the guest reset the machine")

    async def _restart(self) -> None:
        self._restarts += 1
        self._console.forget_stage()
        await self._qmp.execute("system_reset")
        await self._qmp.execute("cont")

    def _require_running(self, status: dict[str, str]) -> None:
        """Raise for a machine that QEMU stopped by itself; one that was let go on is fine."""
        state = status.get("status", "")
        if state == "io-error":
            raise OperationFailed(ErrorCode.NO_SPACE, "qemu: the guest's writes found no space left")
        if state not in {"running", "shutdown"}:
            raise OperationFailed(ErrorCode.TOOL_FAILED, f"qemu: the machine stopped: {state}")

    def _look_at_writes(self) -> None:
        if self._tap.path.with_name(self._parts.overlay).stat().st_blocks * 512 > MAX_WRITTEN_BYTES:
            words = f"the guest wrote more than {MAX_WRITTEN_BYTES} bytes while it booted"
            self._ended = ("endless-writes", words)

    def _judgement(self) -> tuple[bool, str, str]:
        """Whether it boots, its stage and the words that tell why."""
        verdict = self._console.verdict
        if verdict is not None:
            return verdict.stage.boots, verdict.stage.name, verdict.line
        if self._ended is not None:
            stage, words = self._ended
            return False, stage, f"{words}; it was last seen at: {self._stage or 'nothing'}"
        if self._stage in _FIRMWARE_ONLY:
            return False, "silent", _SILENT.format(seconds=self._seconds)
        last = self._console.tail[-1:] or ("",)
        words = f"the guest was at {self._stage} when its {self._request.boot_seconds} s were over: {last[0]}"
        return False, "timeout", words

    async def _screenshot(self) -> Path | None:
        """What the screen shows; None where QEMU cannot tell, which is no reason to fail."""
        for name, options in _SCREENS:
            path = self._tap.path.with_name(name)
            try:
                await self._qmp.execute("screendump", filename=name, **options)
            except OperationFailed:
                continue
            return path if path.is_file() else None
        return None
