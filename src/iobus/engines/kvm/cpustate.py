"""The state of a vCPU as the kernel has it: `Registers` from and to it, and the way back to power-on.

Above `ioctls.py`; `cpu.py` uses it. What lies beside the registers (MSRs, FPU and vectors, XCR0, debug
registers, events under way) has no power-on values of ours: they are what the kernel gave the new vCPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, Final

from iobus.cpu_registers import GPRS, SEGMENTS, Registers, Segment
from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.ioctls import call, flexible
from iobus.exits import EngineError
from iobus.paging import Paging

IA32_TSC: Final = 0x10
IA32_APIC_BASE: Final = 0x1B
APIC_ENABLED: Final = 1 << 11
"""Of IA32_APIC_BASE."""
_TSC_ADJUST, _EFER = 0x3B, 0xC0000080
_NOT_RESET: Final = frozenset({IA32_TSC, _TSC_ADJUST, IA32_APIC_BASE, _EFER})
"""The TSC runs on, and the others are registers of ours or the LAPIC's."""

_DESCRIPTOR_SEGMENTS: Final = (*SEGMENTS, "ldt", "tr")
_CR0_CD_NW: Final = 3 << 29
_XSTATE_BV: Final = 512
_MSRS: Final = 1024  # at most, of the kernel's list


def get_registers(fd: int) -> Registers:
    """Return the vCPU's registers."""
    regs, sregs = abi.Regs(), abi.Sregs()
    call(fd, ioctls.KVM_GET_REGS, regs)
    call(fd, ioctls.KVM_GET_SREGS, sregs)
    r = Registers(rip=regs.rip, rflags=regs.rflags)
    for name in GPRS:
        setattr(r, name, getattr(regs, name))
    for name in _DESCRIPTOR_SEGMENTS:
        setattr(r, name, _from_kernel(getattr(sregs, name)))
    r.gdt_base, r.gdt_limit = sregs.gdt.base, sregs.gdt.limit
    r.idt_base, r.idt_limit = sregs.idt.base, sregs.idt.limit
    r.cr0, r.cr2, r.cr3, r.cr4, r.efer = sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
    return r


def set_registers(fd: int, r: Registers) -> None:
    """Set the vCPU's registers. Raises `EngineError` for a combination that no CPU can have."""
    regs, sregs = abi.Regs(), abi.Sregs()
    for name in (*GPRS, "rip"):
        setattr(regs, name, getattr(r, name))
    regs.rflags = r.rflags | 2
    call(fd, ioctls.KVM_GET_SREGS, sregs)  # for what is not ours in it
    for name in _DESCRIPTOR_SEGMENTS:
        setattr(sregs, name, _to_kernel(getattr(r, name)))
    sregs.gdt = abi.Dtable(base=r.gdt_base, limit=r.gdt_limit)
    sregs.idt = abi.Dtable(base=r.idt_base, limit=r.idt_limit)
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer = r.cr0 | 0x10, r.cr2, r.cr3, r.cr4, r.efer
    try:
        call(fd, ioctls.KVM_SET_SREGS, sregs)
    except EngineError as exc:
        raise EngineError(
            f"no CPU can have these registers: cr0 {r.cr0:#x}, cr4 {r.cr4:#x}, efer {r.efer:#x}, "
            f"cs access {r.cs.access:#x} ({exc})"
        ) from exc
    call(fd, ioctls.KVM_SET_REGS, regs)


def paging(fd: int) -> Paging:
    """Return the registers that decide a translation."""
    r = get_registers(fd)
    return Paging(r.cr0, r.cr3, r.cr4, r.efer, r.rflags, r.cpl)


def apic_base(fd: int) -> int:
    """Return IA32_APIC_BASE as the kernel has it."""
    sregs = abi.Sregs()
    call(fd, ioctls.KVM_GET_SREGS, sregs)
    base: int = sregs.apic_base
    return base


def init(fd: int, signature: int) -> None:
    """Put the CPU in the INIT state (SDM vol. 3A, table 10-1). `signature` is CPUID's of the family and model."""
    caches = get_registers(fd).cr0 & _CR0_CD_NW
    clear_events(fd)
    call(fd, ioctls.KVM_SET_DEBUGREGS, abi.Debugregs(dr6=0xFFFF0FF0, dr7=0x400))
    fresh = Registers(rdx=signature)
    fresh.cr0 = fresh.cr0 & ~_CR0_CD_NW | caches
    set_registers(fd, fresh)


def clear_events(fd: int) -> None:
    """Forget exceptions, interrupts and NMIs that are under way."""
    flags = ioctls.KVM_VCPUEVENT_VALID_NMI_PENDING | ioctls.KVM_VCPUEVENT_VALID_SHADOW
    call(fd, ioctls.KVM_SET_VCPU_EVENTS, abi.VcpuEvents(flags=flags))


def nmi_masked(fd: int) -> bool:
    """Whether the CPU is in the service of an NMI, which holds up the next."""
    return bool(events(fd).nmi.masked)


def events(fd: int) -> abi.VcpuEvents:
    """Return what the kernel has waiting for the CPU, and what holds it up."""
    found = abi.VcpuEvents()
    call(fd, ioctls.KVM_GET_VCPU_EVENTS, found)
    return found


class PowerOn:
    """What the kernel gave a new vCPU beside its registers, to return to it. `xsave` in bytes."""

    def __init__(self, fd: int, system: int, xsave: int) -> None:
        self._fd = fd
        self._xsave = bytearray(xsave)
        self._xcrs, self._debugregs = abi.Xcrs(), abi.Debugregs()
        large = xsave > ctypes.sizeof(abi.Xsave)
        call(fd, ioctls.KVM_GET_XSAVE2 if large else ioctls.KVM_GET_XSAVE, self._xsave)
        # The FPU and SSE are there as values, not as "initial": the kernel else leaves MXCSR as it is (SDM 13.4.2).
        self._xsave[_XSTATE_BV] |= 3
        call(fd, ioctls.KVM_GET_XCRS, self._xcrs)
        call(fd, ioctls.KVM_GET_DEBUGREGS, self._debugregs)
        self._msrs = read_msrs(fd, [index for index in _msr_list(system) if index not in _NOT_RESET])

    def restore(self) -> None:
        """Return to it."""
        call(self._fd, ioctls.KVM_SET_XCRS, self._xcrs)
        call(self._fd, ioctls.KVM_SET_XSAVE, self._xsave)
        call(self._fd, ioctls.KVM_SET_DEBUGREGS, self._debugregs)
        now = read_msrs(self._fd, self._msrs)
        for index, value in self._msrs.items():
            if now.get(index) != value:
                write_msr(self._fd, index, value)


def read_msrs(fd: int, indices: Iterable[int]) -> dict[int, int]:
    """Return those of the MSRs that can be read."""
    left: list[int] = list(indices)
    found: dict[int, int] = {}
    while left:
        head, entries, buffer = flexible(abi.Msrs, abi.MsrEntry, len(left))
        head.nmsrs = len(left)
        for entry, index in zip(entries, left, strict=True):
            entry.index = index
        done = call(fd, ioctls.KVM_GET_MSRS, buffer)  # how many, up to the first that it has not
        found.update((entry.index, entry.data) for entry in entries[:done])
        left = left[done + 1 :]
    return found


def write_msr(fd: int, index: int, value: int) -> None:
    """Write an MSR. Raises `EngineError` where the kernel has no such MSR or value."""
    head, entries, buffer = flexible(abi.Msrs, abi.MsrEntry, 1)
    head.nmsrs, entries[0].index, entries[0].data = 1, index, value
    if call(fd, ioctls.KVM_SET_MSRS, buffer) != 1:
        raise EngineError(f"the kernel refuses {value:#x} for MSR {index:#x}")


def _msr_list(system: int) -> list[int]:
    head, indices, buffer = flexible(abi.MsrList, ctypes.c_uint32, _MSRS)
    head.nmsrs = _MSRS
    call(system, ioctls.KVM_GET_MSR_INDEX_LIST, buffer)
    return list(indices[: head.nmsrs])


def _from_kernel(s: Any) -> Segment:
    low = s.type | s.s << 4 | s.dpl << 5 | (s.present and not s.unusable) << 7
    return Segment(s.selector, s.base, s.limit, low | s.avl << 12 | s.l << 13 | s.db << 14 | s.g << 15)


def _to_kernel(segment: Segment) -> abi.Segment:
    access, limit = segment.access, segment.limit
    return abi.Segment(
        base=segment.base, limit=limit, selector=segment.selector, type=access & 0xF, s=access >> 4 & 1,
        dpl=access >> 5 & 3, present=access >> 7 & 1, avl=access >> 12 & 1, l=access >> 13 & 1, db=access >> 14 & 1,
        # Above 1 MiB a limit has granularity, whatever the access says: VMX refuses to enter otherwise.
        g=access >> 15 & 1 or limit > 0xFFFFF, unusable=not access & 0x80,
    )  # fmt: skip
