"""The requests of the kernel's interface and its constants, as `linux/kvm.h` has them, and how to make a request.

Above `abi.py`, below all else in `engines/kvm`. Names are the header's; `tests/kvm/test_abi.py` has the
system's C compiler say each number, and compares.
"""

from __future__ import annotations

import ctypes
import fcntl
from ctypes import Array, c_uint64
from typing import Any, Final

from iobus.engines.kvm import abi
from iobus.engines.kvm.abi import Record
from iobus.exits import EngineError

# Request numbers: asm-generic/ioctl.h's encoding of direction, size, type and number.


class Ioctl(int):
    """A request number that knows its name."""

    name: str


def _request(name: str, direction: int, number: int, record: type[Any] | None = None) -> Ioctl:
    size = 0 if record is None else ctypes.sizeof(record)
    request = Ioctl(direction << 30 | size << 16 | 0xAE << 8 | number)
    request.name = name
    return request


def _io(name: str, number: int) -> Ioctl:
    return _request(name, 0, number)


def _iow(name: str, number: int, record: type[Any]) -> Ioctl:
    return _request(name, 1, number, record)


def _ior(name: str, number: int, record: type[Any]) -> Ioctl:
    return _request(name, 2, number, record)


def _iowr(name: str, number: int, record: type[Any]) -> Ioctl:
    return _request(name, 3, number, record)


KVM_GET_API_VERSION: Final = _io("KVM_GET_API_VERSION", 0x00)
KVM_CREATE_VM: Final = _io("KVM_CREATE_VM", 0x01)
KVM_GET_MSR_INDEX_LIST: Final = _iowr("KVM_GET_MSR_INDEX_LIST", 0x02, abi.MsrList)
KVM_CHECK_EXTENSION: Final = _io("KVM_CHECK_EXTENSION", 0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io("KVM_GET_VCPU_MMAP_SIZE", 0x04)
KVM_GET_SUPPORTED_CPUID: Final = _iowr("KVM_GET_SUPPORTED_CPUID", 0x05, abi.Cpuid2)
KVM_CREATE_VCPU: Final = _io("KVM_CREATE_VCPU", 0x41)
KVM_SET_USER_MEMORY_REGION: Final = _iow("KVM_SET_USER_MEMORY_REGION", 0x46, abi.UserspaceMemoryRegion)
KVM_SET_TSS_ADDR: Final = _io("KVM_SET_TSS_ADDR", 0x47)
KVM_SET_IDENTITY_MAP_ADDR: Final = _iow("KVM_SET_IDENTITY_MAP_ADDR", 0x48, c_uint64)
KVM_CREATE_IRQCHIP: Final = _io("KVM_CREATE_IRQCHIP", 0x60)
KVM_IRQ_LINE: Final = _iow("KVM_IRQ_LINE", 0x61, abi.IrqLevel)
KVM_GET_IRQCHIP: Final = _iowr("KVM_GET_IRQCHIP", 0x62, abi.Irqchip)
KVM_SET_IRQCHIP: Final = _ior("KVM_SET_IRQCHIP", 0x63, abi.Irqchip)
KVM_REGISTER_COALESCED_MMIO: Final = _iow("KVM_REGISTER_COALESCED_MMIO", 0x67, abi.CoalescedMmioZone)
KVM_UNREGISTER_COALESCED_MMIO: Final = _iow("KVM_UNREGISTER_COALESCED_MMIO", 0x68, abi.CoalescedMmioZone)
KVM_SET_GSI_ROUTING: Final = _iow("KVM_SET_GSI_ROUTING", 0x6A, abi.IrqRouting)
KVM_IRQFD: Final = _iow("KVM_IRQFD", 0x76, abi.Irqfd)
KVM_CREATE_PIT2: Final = _iow("KVM_CREATE_PIT2", 0x77, abi.PitConfig)
KVM_IOEVENTFD: Final = _iow("KVM_IOEVENTFD", 0x79, abi.Ioeventfd)
KVM_GET_PIT2: Final = _ior("KVM_GET_PIT2", 0x9F, abi.PitState2)
KVM_SET_PIT2: Final = _iow("KVM_SET_PIT2", 0xA0, abi.PitState2)
KVM_ENABLE_CAP: Final = _iow("KVM_ENABLE_CAP", 0xA3, abi.EnableCap)
KVM_SIGNAL_MSI: Final = _iow("KVM_SIGNAL_MSI", 0xA5, abi.Msi)
KVM_X86_SET_MSR_FILTER: Final = _iow("KVM_X86_SET_MSR_FILTER", 0xC6, abi.MsrFilter)

KVM_RUN: Final = _io("KVM_RUN", 0x80)
KVM_GET_REGS: Final = _ior("KVM_GET_REGS", 0x81, abi.Regs)
KVM_SET_REGS: Final = _iow("KVM_SET_REGS", 0x82, abi.Regs)
KVM_GET_SREGS: Final = _ior("KVM_GET_SREGS", 0x83, abi.Sregs)
KVM_SET_SREGS: Final = _iow("KVM_SET_SREGS", 0x84, abi.Sregs)
KVM_INTERRUPT: Final = _iow("KVM_INTERRUPT", 0x86, abi.Interrupt)
KVM_GET_MSRS: Final = _iowr("KVM_GET_MSRS", 0x88, abi.Msrs)
KVM_SET_MSRS: Final = _iow("KVM_SET_MSRS", 0x89, abi.Msrs)
KVM_SET_SIGNAL_MASK: Final = _iow("KVM_SET_SIGNAL_MASK", 0x8B, abi.SignalMask)
KVM_GET_LAPIC: Final = _ior("KVM_GET_LAPIC", 0x8E, abi.LapicState)
KVM_SET_LAPIC: Final = _iow("KVM_SET_LAPIC", 0x8F, abi.LapicState)
KVM_SET_CPUID2: Final = _iow("KVM_SET_CPUID2", 0x90, abi.Cpuid2)
KVM_GET_MP_STATE: Final = _ior("KVM_GET_MP_STATE", 0x98, abi.MpState)
KVM_SET_MP_STATE: Final = _iow("KVM_SET_MP_STATE", 0x99, abi.MpState)
KVM_NMI: Final = _io("KVM_NMI", 0x9A)
KVM_GET_VCPU_EVENTS: Final = _ior("KVM_GET_VCPU_EVENTS", 0x9F, abi.VcpuEvents)
KVM_SET_VCPU_EVENTS: Final = _iow("KVM_SET_VCPU_EVENTS", 0xA0, abi.VcpuEvents)
KVM_GET_DEBUGREGS: Final = _ior("KVM_GET_DEBUGREGS", 0xA1, abi.Debugregs)
KVM_SET_DEBUGREGS: Final = _iow("KVM_SET_DEBUGREGS", 0xA2, abi.Debugregs)
KVM_GET_TSC_KHZ: Final = _io("KVM_GET_TSC_KHZ", 0xA3)
KVM_GET_XSAVE: Final = _ior("KVM_GET_XSAVE", 0xA4, abi.Xsave)
KVM_SET_XSAVE: Final = _iow("KVM_SET_XSAVE", 0xA5, abi.Xsave)
KVM_GET_XCRS: Final = _ior("KVM_GET_XCRS", 0xA6, abi.Xcrs)
KVM_SET_XCRS: Final = _iow("KVM_SET_XCRS", 0xA7, abi.Xcrs)
KVM_GET_XSAVE2: Final = _ior("KVM_GET_XSAVE2", 0xCF, abi.Xsave)

# Constants.

KVM_API_VERSION: Final = 12

KVM_EXIT_UNKNOWN: Final = 0
KVM_EXIT_IO: Final = 2
KVM_EXIT_HLT: Final = 5
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_IRQ_WINDOW_OPEN: Final = 7
KVM_EXIT_SHUTDOWN: Final = 8
KVM_EXIT_FAIL_ENTRY: Final = 9
KVM_EXIT_INTR: Final = 10
KVM_EXIT_SET_TPR: Final = 11
KVM_EXIT_INTERNAL_ERROR: Final = 17
KVM_EXIT_SYSTEM_EVENT: Final = 24
KVM_EXIT_IOAPIC_EOI: Final = 26
KVM_EXIT_X86_RDMSR: Final = 29
KVM_EXIT_X86_WRMSR: Final = 30
KVM_EXIT_IO_OUT: Final = 1

KVM_INTERNAL_ERROR_EMULATION: Final = 1
KVM_INTERNAL_ERROR_SIMUL_EX: Final = 2
KVM_INTERNAL_ERROR_DELIVERY_EV: Final = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: Final = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: Final = 1

KVM_CAP_IRQCHIP: Final = 0
KVM_CAP_USER_MEMORY: Final = 3
KVM_CAP_SET_TSS_ADDR: Final = 4
KVM_CAP_COALESCED_MMIO: Final = 15
KVM_CAP_IRQ_ROUTING: Final = 25
KVM_CAP_USER_NMI: Final = 22
KVM_CAP_IRQFD: Final = 32
KVM_CAP_PIT2: Final = 33
KVM_CAP_IOEVENTFD: Final = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR: Final = 37
KVM_CAP_VCPU_EVENTS: Final = 41
KVM_CAP_DEBUGREGS: Final = 50
KVM_CAP_XSAVE: Final = 55
KVM_CAP_XCRS: Final = 56
KVM_CAP_MAX_VCPUS: Final = 66
KVM_CAP_TSC_DEADLINE_TIMER: Final = 72
KVM_CAP_SIGNAL_MSI: Final = 77
KVM_CAP_READONLY_MEM: Final = 81
KVM_CAP_SPLIT_IRQCHIP: Final = 121
KVM_CAP_IMMEDIATE_EXIT: Final = 136
KVM_CAP_COALESCED_PIO: Final = 162
KVM_CAP_X86_USER_SPACE_MSR: Final = 188
KVM_CAP_X86_MSR_FILTER: Final = 189
KVM_CAP_XSAVE2: Final = 208

KVM_MEM_READONLY: Final = 2
KVM_IOEVENTFD_FLAG_DATAMATCH: Final = 1
KVM_IOEVENTFD_FLAG_PIO: Final = 2
KVM_IOEVENTFD_FLAG_DEASSIGN: Final = 4
KVM_IRQFD_FLAG_DEASSIGN: Final = 1
KVM_IRQ_ROUTING_IRQCHIP: Final = 1
KVM_IRQ_ROUTING_MSI: Final = 2
KVM_IRQCHIP_PIC_MASTER: Final = 0
KVM_IRQCHIP_PIC_SLAVE: Final = 1
KVM_IRQCHIP_IOAPIC: Final = 2
KVM_PIT_SPEAKER_DUMMY: Final = 1
KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1
KVM_COALESCED_MMIO_PAGE_OFFSET: Final = 2
KVM_VCPUEVENT_VALID_NMI_PENDING: Final = 1
KVM_VCPUEVENT_VALID_SHADOW: Final = 4
KVM_MSR_EXIT_REASON_INVAL: Final = 1
KVM_MSR_EXIT_REASON_UNKNOWN: Final = 2
KVM_MSR_EXIT_REASON_FILTER: Final = 4
KVM_MSR_FILTER_READ: Final = 1
KVM_MSR_FILTER_WRITE: Final = 2
KVM_MP_STATE_RUNNABLE: Final = 0
KVM_MP_STATE_UNINITIALIZED: Final = 1
KVM_MP_STATE_INIT_RECEIVED: Final = 2
KVM_MP_STATE_HALTED: Final = 3


def call(fd: int, request: Ioctl, argument: Any = 0) -> int:
    """Make a request and return its result. `argument`: an int below 2^31, or a buffer, which takes what comes back.

    Raises `EngineError`, with the request's name, where the kernel refuses.
    """
    try:
        result: int = fcntl.ioctl(fd, request, argument)
        return result
    except OSError as exc:
        raise EngineError(f"the kernel refuses {request.name}: {exc.strerror}") from exc


def flexible(head: type[Record], element: type[Any], count: int) -> tuple[Any, Array[Any], bytearray]:
    """Return a `head` and `count` elements that follow it, and the buffer that holds both, zeroed."""
    size = ctypes.sizeof(head)
    buffer = bytearray(size + count * ctypes.sizeof(element))
    return head.from_buffer(buffer), (element * count).from_buffer(buffer, size), buffer
