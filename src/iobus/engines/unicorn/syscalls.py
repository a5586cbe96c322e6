"""SYSCALL and SYSENTER in Python: the library hands these instructions to a hook and does nothing itself.

SYSCALL by the AMD64 APM vol. 3, SYSENTER by the Intel SDM vol. 2B. Used by fallback.py for both and by
native.py for SYSENTER; there SYSCALL, the hot one, is machine code (stubs.s). SYSRET and SYSEXIT are the
library's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from iobus.cpu_registers import EFER_LMA, RFLAGS_IF, Segment
from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn.cpustate import CpuState

LENGTH: Final = 2
"""Bytes of either instruction. The library adds them to RIP behind the hook."""

STAR, LSTAR, CSTAR, FMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176

_EFER_SCE, _RFLAGS_RF, _RFLAGS_VM = 1, 1 << 16, 1 << 17
_CS, _SS = at.SEGMENTS + 24, at.SEGMENTS + 48
_RCX, _RSP, _R11 = 1, 4, 11
_MASK64: Final = (1 << 64) - 1

ReadMsr = Callable[[int], int]


def syscall(state: CpuState, flags: int, msr: ReadMsr) -> int | None:
    """Do SYSCALL with RFLAGS `flags` in `state`; return the new RFLAGS, or None where it is a #UD."""
    efer = state.u64[at.EFER >> 3]
    if not efer & _EFER_SCE:
        return None
    star, behind = msr(STAR), state.rip + LENGTH
    if efer & EFER_LMA:
        state.u64[_RCX] = behind & _MASK64
        state.u64[_R11] = flags & ~_RFLAGS_RF
        target = msr(LSTAR if state.segment(_CS).access & 0x2000 else CSTAR)
        flags &= ~(msr(FMASK) | _RFLAGS_RF)
    else:
        state.u64[_RCX] = behind & 0xFFFFFFFF
        target = star & 0xFFFFFFFF
        flags &= ~(_RFLAGS_VM | RFLAGS_IF | _RFLAGS_RF)
    _enter(state, star >> 32 & 0xFFFC, target)
    return flags


def sysenter(state: CpuState, flags: int, msr: ReadMsr) -> int | None:
    """Do SYSENTER with RFLAGS `flags` in `state`; return the new RFLAGS, or None where it is a #GP(0)."""
    selector = msr(SYSENTER_CS) & 0xFFFC
    if not selector:
        return None
    mask = _MASK64 if state.u64[at.EFER >> 3] & EFER_LMA else 0xFFFFFFFF
    state.u64[_RSP] = msr(SYSENTER_ESP) & mask
    _enter(state, selector, msr(SYSENTER_EIP) & mask)
    return flags & ~(_RFLAGS_VM | RFLAGS_IF | _RFLAGS_RF)


def _enter(state: CpuState, selector: int, target: int) -> None:
    """Go to `target` at level 0, with flat segments: CS is `selector`, SS the next."""
    long_mode = state.u64[at.EFER >> 3] & EFER_LMA
    state.set_segment(_CS, Segment(selector, 0, 0xFFFFFFFF, 0xA09B if long_mode else 0xC09B))
    state.set_segment(_SS, Segment(selector + 8 & 0xFFFC, 0, 0xFFFFFFFF, 0xC093))
    state.rip = target - LENGTH & _MASK64
