"""A guest under repair: what a repair gets to work with, and how it says what it did."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.disks import Disks, read_disks
from workers.guest.kernels import Kernel, read_kernels
from workers.guest.rescue import Rescue
from workers.guest.systems import System
from workers.process import ToolRunner
from workers.report import ActionNotes


class Case:
    """One guest, its disk attached. `notes` hold a line for everything that a repair did or left.

    `system` is the mounted operating system; repairs of the disk itself come before there is one.
    """

    def __init__(self, rescue: Rescue, tools: ToolRunner, notes: ActionNotes, parameters: Any) -> None:
        self.rescue = rescue
        self.tools = tools
        self.notes = notes
        self.parameters = parameters
        self._disks: Disks | None = None
        self._system: System | None = None

    @property
    def disks(self) -> Disks:
        if self._disks is None:
            raise ValueError("the disk has not been read yet")
        return self._disks

    @property
    def system(self) -> System:
        if self._system is None:
            raise ValueError("the guest has not been mounted yet")
        return self._system

    async def read_disks(self) -> None:
        """Look at the disk again: a repair may have brought volumes back."""
        self._disks = await read_disks(self.rescue)

    def enter(self, system: System) -> None:
        """The guest is mounted."""
        self._system = system

    async def kernels(self, drivers: tuple[str, ...]) -> list[Kernel]:
        """The guest's kernels. Raises GUEST_UNSUPPORTED if it has none."""
        found = await read_kernels(self.rescue, self.tools, drivers)
        if not found:
            raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, "no kernel was found in the guest's /boot")
        return found


Work = Callable[[Case], Awaitable[None]]


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """One action: it notes what it did, or that nothing was to be done, or raises OperationFailed.

    One of the stage `disk` works before the guest is mounted, one of `system` on the mounted guest; one
    of `if mounted` is left out where there is no guest. When one that is `vital` fails, the operation
    does; what another one could not do is a warning.
    """

    work: Work
    stage: Literal["disk", "system", "if mounted"] = "system"
    vital: bool = True
