"""Probes that run a tool, or try what the tool would have to do."""

from typing import Final

from h2kbus.errors import OperationFailed
from workers.capabilities.probe import Finding, Tools, first_line, proven, refuted, runs

_SELINUX: Final = ("setfiles", "restorecon", "semodule")
_USAGE_STATUSES: Final = (0, 1, 255)
"""How the SELinux tools end after `-h`: 255 with their usage, or 0 where the kernel has no SELinux."""


async def probe_qemu_img(tools: Tools) -> Finding:
    """qemu-img runs."""
    return await runs(tools, "qemu-img", ["qemu-img", "--version"], "apt-get install qemu-utils")


async def probe_lvm(tools: Tools) -> Finding:
    """The LVM tools run; the evidence says whether a device mapper answered them.

    That it did is not required: metadata is read and repaired without one.
    """
    mend = "apt-get install lvm2"
    try:
        output = await tools.run(["lvm", "version"])
    except (FileNotFoundError, OperationFailed) as error:
        return refuted("lvm", str(error), mend)
    answered = b"Driver version:" in output.stdout
    words = (
        "the device mapper answered" if answered else "no device mapper answered: volumes cannot be activated"
    )
    return proven("lvm", f"{' '.join(first_line(output).split())}; {words}")


async def probe_mount(tools: Tools) -> Finding:
    """A filesystem is mounted, in a mount namespace of its own: being root does not suffice everywhere."""
    try:
        mount = [tools.find("mount"), "-t", "tmpfs", "-o", "size=64k", "h2kbus-probe", "."]
        await tools.run(["unshare", "--mount", "--propagation", "private", *mount])
    except FileNotFoundError as error:
        return refuted("mount", str(error), "apt-get install mount util-linux")
    except OperationFailed as error:
        return refuted("mount", str(error), "run the worker as root with CAP_SYS_ADMIN")
    return proven("mount", "mounted a tmpfs in a mount namespace of its own; no disk was mounted")


async def probe_selinux_tools(tools: Tools) -> Finding:
    """The tools that write labels and build policies start. They need no SELinux in this kernel."""
    try:
        for name in _SELINUX:
            await tools.run([name, "-h"], accept=_USAGE_STATUSES)
    except (FileNotFoundError, OperationFailed) as error:
        return refuted("selinux-tools", str(error), "apt-get install policycoreutils")
    return proven("selinux-tools", f"{', '.join(_SELINUX)} start; no label was written")
