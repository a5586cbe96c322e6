"""SYSENTER, which the library leaves to a hook. By the Intel SDM vol. 2B. Used by native.py.

In Python: 32-bit kernels are few, and the call costs some 10 us against 0.1 us of SYSCALL in machine code.
"""

from __future__ import annotations

from typing import Final

from iobus.cpu_registers import EFER_LMA, RFLAGS_IF, Segment
from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.deliver import GP, Event, deliver
from iobus.engines.unicorn.library import Library
from iobus.vcpu import VCPU

_SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP = 0x174, 0x175, 0x176
_CS, _SS, _RSP = at.SEGMENTS + 24, at.SEGMENTS + 48, 4
_RFLAGS_RF, _RFLAGS_VM = 1 << 16, 1 << 17
_LENGTH: Final = 2
"""Of the instruction, in bytes: the library adds it to RIP after the hook."""
_MASK64: Final = (1 << 64) - 1


def sysenter(vcpu: VCPU, library: Library, uc: int, state: CpuState, flags: int) -> int:
    """Enter the kernel, or the handler of the fault; return the new RFLAGS. Raises `TripleFault`."""
    selector = library.read_msr(uc, _SYSENTER_CS) & 0xFFFC
    if not selector:
        flags = deliver(vcpu, state, flags, Event(GP, 0))
    else:
        long_mode = bool(state.u64[at.EFER >> 3] & EFER_LMA)
        mask = _MASK64 if long_mode else 0xFFFFFFFF
        state.set_segment(_CS, Segment(selector, 0, 0xFFFFFFFF, 0xA09B if long_mode else 0xC09B))
        state.set_segment(_SS, Segment(selector + 8 & 0xFFFC, 0, 0xFFFFFFFF, 0xC093))
        state.u64[_RSP] = library.read_msr(uc, _SYSENTER_ESP) & mask
        state.rip = library.read_msr(uc, _SYSENTER_EIP) & mask
        flags &= ~(_RFLAGS_VM | _RFLAGS_RF | RFLAGS_IF)
    state.rip = state.rip - _LENGTH & _MASK64
    return flags
