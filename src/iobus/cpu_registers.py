"""The registers of an x86 CPU as plain data: the same record on every engine.

Near the ground: imports only `state.py`. `VCPU.registers` gives and takes it.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from iobus.state import U16, U32, U64, State

GPRS: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
               "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip
"""The general registers in the order of their encoding."""
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs")
"""The segment registers in the order of their encoding."""

CR0_PE: Final = 1 << 0
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_LA57: Final = 1 << 12
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
RFLAGS_TF: Final = 1 << 8
RFLAGS_IF: Final = 1 << 9
RFLAGS_AC: Final = 1 << 18


@dataclasses.dataclass
class Segment(State):
    """A segment register with its hidden part (Intel SDM vol. 3A, sections 3.4.3 and 3.4.5)."""

    selector: U16 = 0
    base: U64 = 0
    limit: U32 = 0xFFFF
    """In bytes, granularity applied."""
    access: U16 = 0x93
    """Descriptor bits 40-47 in bits 0-7 and 52-55 in bits 12-15 (the access rights of SDM vol. 3C, section 25.4.1)."""


@dataclasses.dataclass
class Registers(State):
    """What a CPU has at reset unless told otherwise (SDM vol. 3A, table 10-1)."""

    rax: U64 = 0
    rcx: U64 = 0
    rdx: U64 = 0
    rbx: U64 = 0
    rsp: U64 = 0
    rbp: U64 = 0
    rsi: U64 = 0
    rdi: U64 = 0
    r8: U64 = 0
    r9: U64 = 0
    r10: U64 = 0
    r11: U64 = 0
    r12: U64 = 0
    r13: U64 = 0
    r14: U64 = 0
    r15: U64 = 0
    rip: U64 = 0xFFF0
    rflags: U64 = 2
    es: Segment = dataclasses.field(default_factory=Segment)
    cs: Segment = dataclasses.field(default_factory=lambda: Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B))
    ss: Segment = dataclasses.field(default_factory=Segment)
    ds: Segment = dataclasses.field(default_factory=Segment)
    fs: Segment = dataclasses.field(default_factory=Segment)
    gs: Segment = dataclasses.field(default_factory=Segment)
    ldt: Segment = dataclasses.field(default_factory=lambda: Segment(access=0x82))
    tr: Segment = dataclasses.field(default_factory=lambda: Segment(access=0x8B))
    gdt_base: U64 = 0
    gdt_limit: U16 = 0xFFFF
    idt_base: U64 = 0
    idt_limit: U16 = 0xFFFF
    cr0: U64 = 0x60000010
    cr2: U64 = 0
    cr3: U64 = 0
    cr4: U64 = 0
    efer: U64 = 0

    @property
    def cpl(self) -> int:
        """The current privilege level: 0 in real mode, 3 in virtual-8086 mode, else SS's DPL."""
        if not self.cr0 & CR0_PE:
            return 0
        return 3 if self.rflags & 1 << 17 else self.ss.access >> 5 & 3
