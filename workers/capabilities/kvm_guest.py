"""A virtual machine that adds two numbers in 64-bit mode and halts. Run as a program, on x86-64 only.

A host that merely emulates its processor creates machines and runs the simplest instructions, and then
fails at the first vector instruction of a guest's kernel: hence paging, and a sum in vector registers.
It stands alone (standard library only), so that it starts quickly. The numbers of the ioctls and the
layouts are those of the kernel's KVM API documentation; registers are those of the AMD64 manual.

Ends with 0, with 64 if the guest did not do what it should, or with 64 and the errno of a refused call:
lower numbers are left to Python's own failures.
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
_GET_SUPPORTED_CPUID: Final = 0xC008AE05
_CREATE_VCPU: Final = 0xAE41
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_RUN: Final = 0xAE80
_GET_REGS: Final = 0x8090AE81
_SET_REGS: Final = 0x4090AE82
_GET_SREGS: Final = 0x8138AE83
_SET_SREGS: Final = 0x4138AE84
_SET_CPUID2: Final = 0x4008AE90

_API_VERSION: Final = 12
_EXIT_HLT: Final = 5
_EXIT_INTERNAL_ERROR: Final = 17
_EXIT_REASON_AT: Final = 8
_EXIT_DETAIL_AT: Final = 32
_SREGS_BYTES: Final = 312
_CONTROL_REGISTERS_AT: Final = 224
_REGISTERS: Final = 18
_CPUID_ENTRIES: Final = 256
_CPUID_ENTRY_BYTES: Final = 40

_MEMORY_BYTES: Final = 2 << 20
_CODE_AT: Final = 0x1000
_TABLES_AT: Final = (0x2000, 0x3000, 0x4000)
_STACK_AT: Final = 0x8000
_PRESENT_WRITABLE: Final = 0x3
_LARGE_PAGE: Final = 0x80
_CR0: Final = 0x80050033  # PG, AM, WP, NE, ET, MP, PE
_CR4: Final = 0x620  # OSXMMEXCPT, OSFXSR, PAE
_EFER: Final = 0x500  # LMA, LME
_SUM: Final = 5
_FAILED: Final = 64
_CODE: Final = bytes.fromhex(
    "b802000000"  # mov eax, 2
    "660f6ec0"  # movd xmm0, eax
    "b803000000"  # mov eax, 3
    "660f6ec8"  # movd xmm1, eax
    "660ffec1"  # paddd xmm0, xmm1
    "660f7ec0"  # movd eax, xmm0
    "f4"  # hlt
)


class GuestFailed(Exception):
    """The guest did not run to its halt, or computed something else."""


def run_guest() -> None:
    """Run the guest to its halt.

    Raises OSError for a refused call, and GuestFailed for another end or another sum.
    """
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, _GET_API_VERSION, 0)
    if version != _API_VERSION:
        raise GuestFailed(f"the kernel speaks version {version} of the KVM API, not {_API_VERSION}")
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = _code_and_tables()
    _give_memory(machine, memory)
    cpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    _set_cpuid(kvm, cpu)
    _set_registers(cpu)
    # The guest runs in `memory`: it must stay mapped, so the name must live until after the run.
    with memory, mmap.mmap(cpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0)) as shared:
        fcntl.ioctl(cpu, _RUN, 0)
        [reason] = struct.unpack_from("<I", shared, _EXIT_REASON_AT)
        [detail] = struct.unpack_from("<I", shared, _EXIT_DETAIL_AT)
    _check_exit(reason, detail)
    registers = fcntl.ioctl(cpu, _GET_REGS, bytes(_REGISTERS * 8))
    _check_sum(*struct.unpack_from("<Q", registers))


def _code_and_tables() -> mmap.mmap:
    """Memory from address 0: the code, and tables that map the first two megabytes to themselves."""
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    memory[_CODE_AT : _CODE_AT + len(_CODE)] = _CODE
    top, middle, low = _TABLES_AT
    struct.pack_into("<Q", memory, top, middle | _PRESENT_WRITABLE)
    struct.pack_into("<Q", memory, middle, low | _PRESENT_WRITABLE)
    struct.pack_into("<Q", memory, low, _LARGE_PAGE | _PRESENT_WRITABLE)
    return memory


def _give_memory(machine: int, memory: mmap.mmap) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY_BYTES, address))


def _set_cpuid(kvm: int, cpu: int) -> None:
    """Give the processor every feature that the host supports."""
    features = bytearray(8 + _CPUID_ENTRIES * _CPUID_ENTRY_BYTES)
    struct.pack_into("<I", features, 0, _CPUID_ENTRIES)
    fcntl.ioctl(kvm, _GET_SUPPORTED_CPUID, features)
    fcntl.ioctl(cpu, _SET_CPUID2, features)


def _set_registers(cpu: int) -> None:
    """64-bit mode with paging, at the code, with the one bit of rflags that is always set."""
    special = bytearray(fcntl.ioctl(cpu, _GET_SREGS, bytes(_SREGS_BYTES)))
    code = _segment(selector=8, kind=11, wide=0, long=1)
    data = _segment(selector=16, kind=3, wide=1, long=0)
    # The six segments come first: cs, ds, es, fs, gs, ss.
    special[: 6 * len(code)] = code + 5 * data
    # cr0, cr2, cr3, cr4, cr8, efer
    struct.pack_into("<6Q", special, _CONTROL_REGISTERS_AT, _CR0, 0, _TABLES_AT[0], _CR4, 0, _EFER)
    fcntl.ioctl(cpu, _SET_SREGS, bytes(special))
    # rax to rdi, rsp, rbp, r8 to r15, rip, rflags
    general = (*[0] * 6, _STACK_AT, *[0] * 9, _CODE_AT, 2)
    fcntl.ioctl(cpu, _SET_REGS, struct.pack(f"<{_REGISTERS}Q", *general))


def _segment(*, selector: int, kind: int, wide: int, long: int) -> bytes:
    """A flat segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding."""
    return struct.pack("<QIH10B", 0, 0xFFFFFFFF, selector, kind, 1, 0, wide, 1, long, 1, 0, 0, 0)


def _check_exit(reason: int, detail: int) -> None:
    if reason == _EXIT_INTERNAL_ERROR:
        raise GuestFailed(
            f"a machine was created, but its 64-bit code met a KVM internal error (suberror {detail})"
        )
    if reason != _EXIT_HLT:
        raise GuestFailed(f"the guest ended with exit reason {reason}, not with a halt")


def _check_sum(found: int) -> None:
    if found != _SUM:
        raise GuestFailed(f"the guest computed {found} instead of {_SUM}")


def _say(words: str, status: int) -> int:
    sys.stdout.write(f"{words}\n")
    return status


def main() -> int:
    """Run the guest, say in one line how it went, and return the exit status."""
    try:
        run_guest()
    except OSError as error:
        return _say(f"/dev/kvm: {error.strerror}", _FAILED + (error.errno or 0))
    except GuestFailed as error:
        return _say(str(error), _FAILED)
    return _say("a virtual machine ran 64-bit code and halted; no guest kernel was started", 0)


if __name__ == "__main__":
    sys.exit(main())
