"""Proves KVM by running code in it, in a process of its own, which a deadline can end."""

import platform
import sys

from workers.capabilities.probe import Finding, Tools, proven, refuted


async def probe_kvm(tools: Tools) -> Finding:
    """A vCPU runs a few instructions."""
    if platform.machine() != "x86_64":
        return refuted("kvm", f"not probed on {platform.machine()}", "use an x86_64 host")
    worked, words = await tools.first_line([sys.executable, "-m", "workers.capabilities.kvm_guest"])
    if worked:
        return proven("kvm", words)
    return refuted("kvm", words, "give the worker access to /dev/kvm (group kvm)")
