"""What a probe is: it tries one thing and says what happened."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from h2kbus.errors import OperationFailed
from workers.child import tool_path
from workers.conversation import Conversation
from workers.joblog import JobLog, printable
from workers.limits import PROBE
from workers.process import ToolOutput, ToolRunner
from workers.sandbox import Allowance

_GRACE_SECONDS: Final = 0.5
_EVIDENCE_CHARS: Final = 200
# A probe tries what the worker itself can do, and it reads nothing that others wrote.
_PROBING: Final = Allowance(limits=PROBE, host=True)


class Finding(msgspec.Struct, frozen=True):
    """What one probe found: `evidence` is what was tried and what it said.

    `advice` is the command, or failing one the step, that mends it; empty when there is nothing to mend.
    """

    token: str
    proven: bool
    evidence: str
    advice: str = ""


def proven(token: str, evidence: str) -> Finding:
    """The machine can do it, and this is how we know."""
    return Finding(token, proven=True, evidence=evidence)


def refuted(token: str, evidence: str, advice: str = "") -> Finding:
    """The machine was not seen to do it."""
    return Finding(token, proven=False, evidence=evidence, advice=advice)


class Tools:
    """Finds and runs programs for the probes.

    `path` is searched as the shell's PATH, and nothing else is; by default a worker's own search path.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path

    def find(self, name: str) -> str:
        """Where the program is. Raises FileNotFoundError."""
        found = tool_path(name) if self._path is None else shutil.which(name, path=self._path)
        if found is None:
            raise FileNotFoundError(f"{name} is not installed")
        return found

    async def run(self, argv: Sequence[str], accept: Collection[int] = (0,)) -> ToolOutput:
        """Run a program in an empty directory of its own.

        Raises FileNotFoundError if it is missing, and OperationFailed as `ToolRunner.run` does.
        """
        command = [self.find(argv[0]), *argv[1:]]
        with _runner() as runner:
            return await runner.run(command, accept=accept, allowance=_PROBING)

    async def confined(self, argv: Sequence[str]) -> ToolOutput:
        """Run a program as a job's tool is run where tools are confined. Raises as `run`."""
        command = [self.find(argv[0]), *argv[1:]]
        with _runner(confined=True) as runner:
            return await runner.run(command, allowance=Allowance(limits=PROBE))

    @asynccontextmanager
    async def converse(self, argv: Sequence[str]) -> AsyncIterator[Conversation]:
        """Run a program that is talked to by lines, in an empty directory of its own.

        Raises FileNotFoundError if it is missing, and OperationFailed as `ToolRunner.converse` does.
        """
        command = [self.find(argv[0]), *argv[1:]]
        with _runner() as runner:
            async with runner.converse(command, allowance=_PROBING) as conversation:
                yield conversation


@contextmanager
def _runner(*, confined: bool = False) -> Iterator[ToolRunner]:
    # A probe belongs to no job: what its tool says becomes evidence and is logged nowhere.
    with tempfile.TemporaryDirectory(prefix="h2kbus-probe-") as scratch, JobLog(Path(os.devnull)) as log:
        yield ToolRunner(log, Path(scratch), grace_seconds=_GRACE_SECONDS, confined=confined)


Probe = Callable[[Tools], Awaitable[Finding]]


def first_line(output: ToolOutput) -> str:
    """The first line that a tool said on stdout, fit to be shown."""
    lines = output.stdout.decode("utf-8", "replace").splitlines()
    found = next((line.strip() for line in lines if line.strip()), "it ran and said nothing")
    return printable(found)[:_EVIDENCE_CHARS]


async def runs(tools: Tools, token: str, argv: Sequence[str], advice: str) -> Finding:
    """The simplest proof: the program is there and runs."""
    try:
        return proven(token, first_line(await tools.run(argv)))
    except (FileNotFoundError, OperationFailed) as error:
        return refuted(token, str(error), advice)
