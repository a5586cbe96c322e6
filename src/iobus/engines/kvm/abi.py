"""The structures of the kernel's interface, as `linux/kvm.h` and `asm/kvm.h` have them.

The bottom of `engines/kvm`; `ioctls.py` has the requests and constants beside them. Names are the header's,
without `kvm_`. `tests/kvm/test_abi.py` has the system's C compiler say each size and offset, and compares.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from typing import TYPE_CHECKING, Any


class Record(ctypes.Structure):
    """A structure of the interface. `C` is its name in the header."""

    C: str = ""

    if TYPE_CHECKING:  # the fields are ctypes' affair

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


def offset(record: type[ctypes.Structure], *path: str) -> int:
    """Return where the field at `path` lies in `record`, in bytes."""
    at, kind = 0, record
    for name in path:
        at += getattr(kind, name).offset
        kind = dict(_named_fields(kind))[name]
    return at


def _named_fields(record: type[ctypes.Structure]) -> list[tuple[str, Any]]:
    """The fields by name, those of anonymous unions included."""
    fields: list[tuple[str, Any]] = []
    for name, kind, *_ in getattr(record, "_fields_"):  # noqa: B009 (ctypes' types do not tell of it)
        if name in getattr(record, "_anonymous_", ()):
            fields += _named_fields(kind)
        fields.append((name, kind))
    return fields


# Of a VM.


class UserspaceMemoryRegion(Record):
    C = "struct kvm_userspace_memory_region"
    _fields_ = [
        ("slot", c_uint32), ("flags", c_uint32), ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64), ("userspace_addr", c_uint64),
    ]  # fmt: skip


class EnableCap(Record):
    C = "struct kvm_enable_cap"
    _fields_ = [("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64)]


class Ioeventfd(Record):
    C = "struct kvm_ioeventfd"
    _fields_ = [
        ("datamatch", c_uint64), ("addr", c_uint64), ("len", c_uint32), ("fd", c_int32), ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    ]  # fmt: skip


class CoalescedMmioZone(Record):
    C = "struct kvm_coalesced_mmio_zone"
    _fields_ = [("addr", c_uint64), ("size", c_uint32), ("pio", c_uint32)]


class CoalescedMmio(Record):
    C = "struct kvm_coalesced_mmio"
    _fields_ = [("phys_addr", c_uint64), ("len", c_uint32), ("pio", c_uint32), ("data", c_uint8 * 8)]


class CoalescedMmioRing(Record):
    """`CoalescedMmio` entries follow."""

    C = "struct kvm_coalesced_mmio_ring"
    _fields_ = [("first", c_uint32), ("last", c_uint32)]


class MsrFilterRange(Record):
    C = "struct kvm_msr_filter_range"
    _fields_ = [("flags", c_uint32), ("nmsrs", c_uint32), ("base", c_uint32), ("bitmap", c_uint64)]


class MsrFilter(Record):
    C = "struct kvm_msr_filter"
    _fields_ = [("flags", c_uint32), ("ranges", MsrFilterRange * 16)]


class IrqLevel(Record):
    C = "struct kvm_irq_level"
    _fields_ = [("irq", c_uint32), ("level", c_uint32)]


class Irqfd(Record):
    C = "struct kvm_irqfd"
    _fields_ = [
        ("fd", c_uint32), ("gsi", c_uint32), ("flags", c_uint32), ("resamplefd", c_uint32), ("pad", c_uint8 * 16)
    ]  # fmt: skip


class Msi(Record):
    C = "struct kvm_msi"
    _fields_ = [
        ("address_lo", c_uint32), ("address_hi", c_uint32), ("data", c_uint32), ("flags", c_uint32),
        ("devid", c_uint32), ("pad", c_uint8 * 12),
    ]  # fmt: skip


class IrqRoutingIrqchip(Record):
    C = "struct kvm_irq_routing_irqchip"
    _fields_ = [("irqchip", c_uint32), ("pin", c_uint32)]


class IrqRoutingMsi(Record):
    C = "struct kvm_irq_routing_msi"
    _fields_ = [("address_lo", c_uint32), ("address_hi", c_uint32), ("data", c_uint32), ("devid", c_uint32)]


class _RoutingTarget(ctypes.Union):
    _fields_ = [("irqchip", IrqRoutingIrqchip), ("msi", IrqRoutingMsi), ("pad", c_uint32 * 8)]


class IrqRoutingEntry(Record):
    C = "struct kvm_irq_routing_entry"
    _fields_ = [
        ("gsi", c_uint32), ("type", c_uint32), ("flags", c_uint32), ("pad", c_uint32), ("u", _RoutingTarget)
    ]  # fmt: skip


class IrqRouting(Record):
    """`IrqRoutingEntry`s follow."""

    C = "struct kvm_irq_routing"
    _fields_ = [("nr", c_uint32), ("flags", c_uint32)]


class Irqchip(Record):
    """One chip's state, which nothing here looks into."""

    C = "struct kvm_irqchip"
    _fields_ = [("chip_id", c_uint32), ("pad", c_uint32), ("chip", c_char * 512)]


class PitConfig(Record):
    C = "struct kvm_pit_config"
    _fields_ = [("flags", c_uint32), ("pad", c_uint32 * 15)]


class PitState2(Record):
    """The 8254's state, of which only the flags are looked into."""

    C = "struct kvm_pit_state2"
    _fields_ = [("opaque", c_char * 72), ("flags", c_uint32), ("reserved", c_uint32 * 9)]


# Of a vCPU.


class Regs(Record):
    C = "struct kvm_regs"
    _fields_ = [
        (name, c_uint64)
        for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
                     "r14", "r15", "rip", "rflags")
    ]  # fmt: skip


class Segment(Record):
    C = "struct kvm_segment"
    _fields_ = [
        ("base", c_uint64), ("limit", c_uint32), ("selector", c_uint16),
        *((name, c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")),
    ]  # fmt: skip


class Dtable(Record):
    C = "struct kvm_dtable"
    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class Sregs(Record):
    C = "struct kvm_sregs"
    _fields_ = [
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", Dtable), ("idt", Dtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    ]  # fmt: skip


class MsrEntry(Record):
    C = "struct kvm_msr_entry"
    _fields_ = [("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64)]


class Msrs(Record):
    """`MsrEntry`s follow."""

    C = "struct kvm_msrs"
    _fields_ = [("nmsrs", c_uint32), ("pad", c_uint32)]


class MsrList(Record):
    """Indices of 32 bits follow."""

    C = "struct kvm_msr_list"
    _fields_ = [("nmsrs", c_uint32)]


class CpuidEntry2(Record):
    C = "struct kvm_cpuid_entry2"
    _fields_ = [
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    ]  # fmt: skip


class Cpuid2(Record):
    """`CpuidEntry2`s follow."""

    C = "struct kvm_cpuid2"
    _fields_ = [("nent", c_uint32), ("padding", c_uint32)]


class Interrupt(Record):
    C = "struct kvm_interrupt"
    _fields_ = [("irq", c_uint32)]


class SignalMask(Record):
    """The signal set follows: 64 bits, bit n - 1 for signal n."""

    C = "struct kvm_signal_mask"
    _fields_ = [("len", c_uint32)]


class LapicState(Record):
    C = "struct kvm_lapic_state"
    _fields_ = [("regs", c_char * 0x400)]


class MpState(Record):
    C = "struct kvm_mp_state"
    _fields_ = [("mp_state", c_uint32)]


class _ExceptionEvent(Record):
    _fields_ = [
        ("injected", c_uint8), ("nr", c_uint8), ("has_error_code", c_uint8), ("pending", c_uint8),
        ("error_code", c_uint32),
    ]  # fmt: skip


class _InterruptEvent(Record):
    _fields_ = [("injected", c_uint8), ("nr", c_uint8), ("soft", c_uint8), ("shadow", c_uint8)]


class _NmiEvent(Record):
    _fields_ = [("injected", c_uint8), ("pending", c_uint8), ("masked", c_uint8), ("pad", c_uint8)]


class _SmiEvent(Record):
    _fields_ = [("smm", c_uint8), ("pending", c_uint8), ("smm_inside_nmi", c_uint8), ("latched_init", c_uint8)]


class VcpuEvents(Record):
    """To the end of what every kernel has; what later ones added is zero and not used."""

    C = "struct kvm_vcpu_events"
    _fields_ = [
        ("exception", _ExceptionEvent), ("interrupt", _InterruptEvent), ("nmi", _NmiEvent),
        ("sipi_vector", c_uint32), ("flags", c_uint32), ("smi", _SmiEvent), ("later", c_uint8 * 27),
        ("exception_has_payload", c_uint8), ("exception_payload", c_uint64),
    ]  # fmt: skip


class Debugregs(Record):
    C = "struct kvm_debugregs"
    _fields_ = [
        ("db", c_uint64 * 4), ("dr6", c_uint64), ("dr7", c_uint64), ("flags", c_uint64), ("reserved", c_uint64 * 9)
    ]  # fmt: skip


class Xsave(Record):
    """4096 bytes, or as many as `KVM_CAP_XSAVE2` says."""

    C = "struct kvm_xsave"
    _fields_ = [("region", c_uint32 * 1024)]


class Xcr(Record):
    C = "struct kvm_xcr"
    _fields_ = [("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64)]


class Xcrs(Record):
    C = "struct kvm_xcrs"
    _fields_ = [("nr_xcrs", c_uint32), ("flags", c_uint32), ("xcrs", Xcr * 16), ("padding", c_uint64 * 16)]


# struct kvm_run: the page that a vCPU shares with the kernel.


class _Hw(Record):
    _fields_ = [("hardware_exit_reason", c_uint64)]


class _FailEntry(Record):
    _fields_ = [("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32)]


class _Io(Record):
    _fields_ = [
        ("direction", c_uint8), ("size", c_uint8), ("port", c_uint16), ("count", c_uint32), ("data_offset", c_uint64)
    ]  # fmt: skip


class _Mmio(Record):
    _fields_ = [("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8)]


class _Internal(Record):
    _fields_ = [("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _EmulationFailure(Record):
    _fields_ = [
        ("suberror", c_uint32), ("ndata", c_uint32), ("flags", c_uint64), ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    ]  # fmt: skip


class _Eoi(Record):
    _fields_ = [("vector", c_uint8)]


class _Msr(Record):
    _fields_ = [("error", c_uint8), ("pad", c_uint8 * 7), ("reason", c_uint32), ("index", c_uint32), ("data", c_uint64)]


class _SystemEvent(Record):
    _fields_ = [("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _ExitData(ctypes.Union):
    _fields_ = [
        ("hw", _Hw), ("fail_entry", _FailEntry), ("io", _Io), ("mmio", _Mmio), ("internal", _Internal),
        ("emulation_failure", _EmulationFailure), ("eoi", _Eoi), ("msr", _Msr), ("system_event", _SystemEvent),
        ("padding", c_char * 256),
    ]  # fmt: skip


class Run(Record):
    C = "struct kvm_run"
    _anonymous_ = ("exit",)
    _fields_ = [
        ("request_interrupt_window", c_uint8), ("immediate_exit", c_uint8), ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32), ("ready_for_interrupt_injection", c_uint8), ("if_flag", c_uint8),
        ("flags", c_uint16), ("cr8", c_uint64), ("apic_base", c_uint64), ("exit", _ExitData),
        ("kvm_valid_regs", c_uint64), ("kvm_dirty_regs", c_uint64),
    ]  # fmt: skip
