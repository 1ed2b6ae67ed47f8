"""Proves that tools can be confined: two run in a real sandbox and say what they see."""

from pathlib import Path
from typing import Final

from h2kbus.errors import OperationFailed
from subjects.fleet import CONFINED
from workers.capabilities.probe import Finding, Tools, first_line, proven, refuted
from workers.process import ToolOutput
from workers.sandbox import BWRAP

_INSTALL: Final = "apt-get install bubblewrap"
_MEND: Final = (
    "install bubblewrap 0.8 or newer, and let the worker's user make user namespaces: "
    "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns; in a container the engine's seccomp profile decides"
)
_NAMESPACES: Final = ("mnt", "pid", "net", "ipc", "uts")
_PRIVATE: Final = frozenset({"home", "root", "srv", "mnt", "media"})


async def probe_confined(tools: Tools) -> Finding:
    """Tools run as those of jobs do, in namespaces of their own, and see no directory that is private."""
    try:
        version = first_line(await tools.run([BWRAP, "--version"]))
        links = await tools.confined(["readlink", *(f"/proc/self/ns/{each}" for each in _NAMESPACES)])
        seen = await tools.confined(["ls", "/"])
    except FileNotFoundError as error:
        return refuted(CONFINED, str(error), _INSTALL)
    except OperationFailed as error:
        return refuted(CONFINED, f"tools run with limits only: {error}", _MEND)
    leaks = [*_shared(links), *(f"/{each}" for each in _words(seen) if each in _PRIVATE)]
    if leaks:
        return refuted(CONFINED, f"{version}; a tool in a sandbox still shares {', '.join(leaks)}", _MEND)
    own = ", ".join(_NAMESPACES)
    return proven(CONFINED, f"{version}; a tool ran in namespaces of its own ({own})")


def _shared(links: ToolOutput) -> list[str]:
    """The namespaces that a tool has in common with this process."""
    found = dict(zip(_NAMESPACES, _words(links), strict=True))
    return [each for each in _NAMESPACES if found[each] == str(Path("/proc/self/ns", each).readlink())]


def _words(output: ToolOutput) -> list[str]:
    return output.stdout.decode("utf-8", "replace").split()
