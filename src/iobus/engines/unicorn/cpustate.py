"""`Registers` from and to the library's CPU state, wherever that lies: live, or a saved context.

Used by both ways of running (native.py, fallback.py). The offsets are those of internals.py.
"""

from __future__ import annotations

import struct
from typing import Final

from iobus.cpu_registers import CR0_PE, EFER_LMA, GPRS, SEGMENTS, Registers, Segment
from iobus.engines.unicorn import internals as at
from iobus.paging import Paging

_ARITHMETIC: Final = 0x8D5
"""CF, PF, AF, ZF, SF and OF: kept apart from EFLAGS while code runs."""
_DF: Final = 1 << 10
_VM: Final = 1 << 17

_HF_CS32, _HF_SS32, _HF_ADDSEG, _HF_PE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
_HF_LMA, _HF_CS64, _HF_OSFXSR, _HF_SMAP = 1 << 14, 1 << 15, 1 << 22, 1 << 23
_HF_KEPT: Final = at.HF_GUEST
"""What of hflags does not follow from the registers."""

_B, _L = 1 << 22, 1 << 21
_TSS, _TSS_BITS, _TSS_BUSY = 0x81, 0x95, 2
"""A present TSS of 16 bits, what to compare of an access byte with it, and the bit that a loaded one has set."""


class CpuState:
    """The state in `view`, which starts at its first register."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.u32 = view[: len(view) & ~7].cast("I")
        self.u64 = view[: len(view) & ~7].cast("Q")

    @property
    def rip(self) -> int:
        return self.u64[at.RIP >> 3]

    @rip.setter
    def rip(self, value: int) -> None:
        self.u64[at.RIP >> 3] = value

    def flags(self, *, running: bool) -> int:
        """RFLAGS where they are known without the library's help: not inside a block (cc_op is lazy)."""
        value = self.u64[at.EFLAGS >> 3]
        if running:
            value |= self.u64[at.CC_SRC >> 3] & _ARITHMETIC
            value |= _DF if self.u32[at.DF >> 2] != 1 else 0
        return value | 2

    def set_flags(self, value: int, *, running: bool) -> None:
        """Set RFLAGS in the form code runs with, or the one it has between slices."""
        kept = value & ~(_ARITHMETIC | _DF) if running else value
        self.u64[at.EFLAGS >> 3] = kept | 2
        self.u64[at.CC_SRC >> 3] = value & _ARITHMETIC
        self.u32[at.CC_OP >> 2] = at.CC_OP_EFLAGS
        self.u32[at.DF >> 2] = 0xFFFFFFFF if value & _DF else 1

    def segment(self, offset: int) -> Segment:
        selector, base, limit, flags = struct.unpack_from("<I4xQII", self.view, offset)
        return Segment(selector & 0xFFFF, base, limit, flags >> 8 & 0xF0FF)

    def set_segment(self, offset: int, segment: Segment) -> None:
        flags = (segment.access & 0xF0FF) << 8
        struct.pack_into("<I4xQII", self.view, offset, segment.selector, segment.base, segment.limit, flags)

    def get(self, rflags: int) -> Registers:
        """Return all registers, with these flags."""
        r = Registers(rip=self.rip, rflags=rflags, efer=self.u64[at.EFER >> 3])
        for index, name in enumerate(GPRS):
            setattr(r, name, self.u64[index])
        for index, name in enumerate(SEGMENTS):
            setattr(r, name, self.segment(at.SEGMENTS + 24 * index))
        r.ldt, r.tr = self.segment(at.LDT), self.segment(at.TR)
        r.tr.access |= _TSS_BUSY
        gdt, idt = self.segment(at.GDT), self.segment(at.IDT)
        r.gdt_base, r.gdt_limit, r.idt_base, r.idt_limit = gdt.base, gdt.limit, idt.base, idt.limit
        r.cr0, _, r.cr2, r.cr3, r.cr4 = (self.u64[(at.CR >> 3) + index] for index in range(5))
        return r

    def set(self, r: Registers, *, running: bool) -> None:
        """Set all registers. The caller flushes the TLB."""
        for index, name in enumerate(GPRS):
            self.u64[index] = getattr(r, name)
        for index, name in enumerate(SEGMENTS):
            self.set_segment(at.SEGMENTS + 24 * index, getattr(r, name))
        self.set_segment(at.LDT, r.ldt)
        self.set_segment(at.TR, _usable_tss(r.tr))
        self.set_segment(at.GDT, Segment(0, r.gdt_base, r.gdt_limit, 0))
        self.set_segment(at.IDT, Segment(0, r.idt_base, r.idt_limit, 0))
        for index, value in ((0, r.cr0 | 0x10), (2, r.cr2), (3, r.cr3), (4, r.cr4)):
            self.u64[(at.CR >> 3) + index] = value
        self.u64[at.EFER >> 3] = r.efer
        self.rip = r.rip
        self.set_flags(r.rflags, running=running)
        self.update_hflags()

    def update_hflags(self) -> None:
        """Make the cached mode bits follow the registers (as the library does when it loads them)."""
        cr0, cr4 = self.u64[at.CR >> 3], self.u64[(at.CR >> 3) + 4]
        cs, ss = (self.u32[at.SEGMENTS + 24 * n + 20 >> 2] for n in (1, 2))
        flags = self.u64[at.EFLAGS >> 3]
        hflags = self.u32[at.HFLAGS >> 2] & _HF_KEPT
        hflags |= ss >> 13 & 3
        hflags |= _HF_PE if cr0 & CR0_PE else 0
        hflags |= (cr0 & 0xE) << 8  # MP, EM, TS
        hflags |= flags & 0x23100  # TF, IOPL, VM
        hflags |= _HF_OSFXSR if cr4 & 1 << 9 else 0
        hflags |= _HF_SMAP if cr4 & 1 << 21 else 0
        long_mode = bool(self.u64[at.EFER >> 3] & EFER_LMA)
        hflags |= _HF_LMA if long_mode else 0
        if long_mode and cs & _L:
            hflags |= _HF_CS32 | _HF_SS32 | _HF_CS64
        else:
            hflags |= _HF_CS32 if cs & _B else 0
            hflags |= _HF_SS32 if ss & _B else 0
            bases = any(self.u64[at.SEGMENTS + 24 * n + 8 >> 3] for n in (0, 2, 3))
            if not cr0 & CR0_PE or flags & _VM or not hflags & _HF_CS32 or bases:
                hflags |= _HF_ADDSEG
        self.u32[at.HFLAGS >> 2] = hflags

    def paging(self) -> Paging:
        """Return the registers that decide a translation."""
        cr = at.CR >> 3
        return Paging(
            self.u64[cr], self.u64[cr + 3], self.u64[cr + 4], self.u64[at.EFER >> 3],
            self.u64[at.EFLAGS >> 3], self.u32[at.HFLAGS >> 2] & 3,
        )  # fmt: skip


def _usable_tss(tr: Segment) -> Segment:
    """The task register as the library keeps it: not busy, and a TSS in any case.

    Where it needs one and finds none it ends the process, so what is none is one of no length, whose use is a #TS.
    """
    if tr.access & _TSS_BITS == _TSS:
        return Segment(tr.selector, tr.base, tr.limit, tr.access & ~_TSS_BUSY)
    return Segment(tr.selector, tr.base, 0, _TSS)
