"""What a probe is: it tries one thing and says what happened."""

import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import msgspec

_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Finding(msgspec.Struct, frozen=True):
    """What one probe found. `advice` is the command that would mend it, empty when it is proven."""

    token: str
    proven: bool
    evidence: str
    advice: str = ""


def proven(token: str, evidence: str) -> Finding:
    """The machine can do it, and this is how we know."""
    return Finding(token, True, evidence)  # noqa: FBT003 - the two constructors give it a name


def refuted(token: str, evidence: str, advice: str) -> Finding:
    """The machine cannot do it; `advice` is the command that mends that."""
    return Finding(token, False, evidence, advice)  # noqa: FBT003 - the two constructors give it a name


class Tools:
    """Finds and runs programs for the probes; `path` is searched as the shell's PATH."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path or os.pathsep.join((os.environ.get("PATH", ""), _SYSTEM_PATH))

    def find(self, name: str) -> str | None:
        return shutil.which(name, path=self._path)

    async def first_line(self, argv: Sequence[str]) -> tuple[bool, str]:
        """Run a program and return whether it succeeded, and the first line that it said."""
        done = await anyio.run_process(
            argv, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, env={"LC_ALL": "C.UTF-8"}
        )
        lines = [line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
        words = lines[0][:200] if lines else "it said nothing"
        return done.returncode == 0, words if done.returncode == 0 else f"status {done.returncode}: {words}"


Probe = Callable[[Tools], Awaitable[Finding]]


async def runs(tools: Tools, token: str, argv: Sequence[str], advice: str) -> Finding:
    """The simplest proof: the program is there and runs."""
    found = tools.find(argv[0])
    if found is None:
        return refuted(token, f"{argv[0]} is not installed", advice)
    worked, words = await tools.first_line([found, *argv[1:]])
    return proven(token, words) if worked else refuted(token, words, advice)
