"""A virtual machine of one page that adds two numbers and halts. Run as a process: `python -m` this module.

The numbers of the ioctls are those of the kernel's KVM API documentation (api.rst), x86 only.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys
from typing import Final

_GET_API_VERSION: Final = 0xAE00
_CREATE_VM: Final = 0xAE01
_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_CREATE_VCPU: Final = 0xAE41
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_RUN: Final = 0xAE80
_GET_REGS: Final = 0x8090AE81
_SET_REGS: Final = 0x4090AE82
_GET_SREGS: Final = 0x8138AE83
_SET_SREGS: Final = 0x4138AE84
_API_VERSION: Final = 12
_EXIT_HLT: Final = 5
_EXIT_REASON_AT: Final = 8
_SREGS_BYTES: Final = 312
_LOAD_AT: Final = 0x1000
# add al, bl; hlt
_CODE: Final = b"\x00\xd8\xf4"


def run_guest() -> int:
    """Run the guest to its halt and return what it computed. Raises OSError."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    if fcntl.ioctl(kvm, _GET_API_VERSION, 0) != _API_VERSION:
        raise OSError(0, "the kernel speaks another version of the KVM API")
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory.write(_CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(
        machine, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, _LOAD_AT, mmap.PAGESIZE, address)
    )
    cpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    shared = mmap.mmap(cpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    _start_at_load(cpu)
    fcntl.ioctl(cpu, _RUN, 0)
    [reason] = struct.unpack_from("<I", shared, _EXIT_REASON_AT)
    if reason != _EXIT_HLT:
        raise OSError(0, f"the guest ended with exit reason {reason}, not with a halt")
    registers = fcntl.ioctl(cpu, _GET_REGS, bytes(18 * 8))
    return int(struct.unpack_from("<Q", registers)[0])


def _start_at_load(cpu: int) -> None:
    """Real mode, code segment at zero; rax 2, rbx 3, rip at the code, rflags with its fixed bit."""
    special = bytearray(fcntl.ioctl(cpu, _GET_SREGS, bytes(_SREGS_BYTES)))
    # The code segment comes first: base (u64), limit (u32), selector (u16).
    struct.pack_into("<Q", special, 0, 0)
    struct.pack_into("<H", special, 12, 0)
    fcntl.ioctl(cpu, _SET_SREGS, bytes(special))
    fcntl.ioctl(cpu, _SET_REGS, struct.pack("<18Q", 2, 3, *[0] * 14, _LOAD_AT, 2))


def _main() -> None:
    try:
        computed = run_guest()
    except OSError as error:
        sys.stdout.write(f"/dev/kvm: {error.strerror}\n")
        sys.exit(1)
    if computed != 2 + 3:
        sys.stdout.write(f"the guest computed {computed} instead of 5\n")
        sys.exit(1)
    sys.stdout.write("a virtual machine ran code and halted; no guest kernel was tried\n")


if __name__ == "__main__":
    _main()
