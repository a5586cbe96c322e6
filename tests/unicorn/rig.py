"""What the tests of engines share: a machine with a small guest in it, and a controller stub.

A guest is a listing, machine code beside its assembly (Intel syntax), so that nothing has to be
assembled. In long mode it starts with all of the first 4 GiB mapped as it is, by large pages, for
supervisor and user; what is not the 2 MiB of RAM is nobody's. It ends by halting with interrupts off.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final, Self

from iobus.clock import Clock
from iobus.cpu_registers import Registers, Segment
from iobus.devices.lapic import Lapic
from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import Exit, HltExit, MmioExit, PioExit
from iobus.irq import ApicBus
from iobus.machine import Engine, Machine
from iobus.vcpu import VCPU

RAM: Final = 2 << 20
PML4, PDPT, PAGE_DIRECTORY, PAGE_TABLE = 0x1000, 0x2000, 0x3000, 0x7000
GDT, IDT, TSS = 0x8000, 0x9000, 0xA000
CODE: Final = 0x10000
"""Where the guest starts; its handlers lie from here on too."""
IST_STACK, KERNEL_STACK, STACK = 0x1E000, 0x1F000, 0x20000
DATA: Final = 0x30000
STACKS: Final = 0x41000
"""The first stack of a guest with several vCPUs; 4 KiB each."""
LAPIC: Final = 0xFEE00000
MMIO: Final = 0x10000000
"""An address that is nobody's."""
WINDOW: Final = 0x40000000
"""A guest virtual address whose 512 small pages are the entries of `PAGE_TABLE`, for tests to map."""

CODE64, DATA64, USER_DATA, USER_CODE, TASK = 0x08, 0x10, 0x20, 0x28, 0x30
CODE32, DATA32, USER_CODE32, USER_DATA32, TASK32 = 0x08, 0x10, 0x18, 0x20, 0x28
PRESENT, WRITABLE, USER, LARGE, NX = 1, 2, 4, 0x80, 1 << 63

way: str = "native"
"""How guests made from here on run: native, fallback, kvm. The fixture of this name sets it."""


def code64(listing: str) -> bytes:
    """The bytes of a listing of 64-bit code: in each line hex digits, `;`, and the assembly they are."""
    return bytes.fromhex("".join(line.split(";")[0] for line in listing.splitlines()))


code32 = code16 = code64
"""As `code64`, for 32-bit and 16-bit code."""


class Vectors:
    """An interrupt controller that hands out the vectors it was given, first come, first served."""

    def __init__(self, machine: Machine, *vectors: int) -> None:
        self.machine = machine
        self.waiting = deque(vectors)
        machine.vcpus[0].controller = self

    def request(self, *vectors: int) -> None:
        """Request interrupts. From any thread."""
        with self.machine.lock:
            self.waiting.extend(vectors)
            self.machine.vcpus[0].interrupt()

    def pending(self) -> bool:
        return bool(self.waiting)

    def acknowledge(self) -> int | None:
        return self.waiting.popleft() if self.waiting else None

    def init(self) -> None: ...

    def read_cr8(self) -> int:
        return 0

    def write_cr8(self, value: int) -> None: ...

    def read_msr(self, index: int) -> int | None:
        return None

    def write_msr(self, index: int, value: int) -> bool:
        return False


class Guest:
    """A machine with 2 MiB of RAM and `program` in it, about to run in long mode at CPL 0."""

    def __init__(self, program: bytes, *, clock: Clock | None = None, cpus: int = 1) -> None:
        self.machine = Machine(self.engine(), clock=clock, cpus=cpus)
        self.vcpu = self.machine.vcpus[0]
        self.memory = self.machine.memory
        self.memory.add(0, RAM)
        self.memory.write(CODE, program)
        self.start()

    def engine(self) -> Engine:
        """Return a new engine to run it on."""
        if way == "kvm":
            return KvmEngine()
        engine = UnicornEngine("fallback" if way == "fallback" else "auto")
        assert way == "fallback" or engine.fallback_reason is None, engine.fallback_reason
        return engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    def start(self) -> None:
        """Make the tables and set the registers."""
        memory = self.memory
        memory.store(PML4, 8, PDPT | PRESENT | WRITABLE | USER)
        for gib in range(4):
            memory.store(PDPT + 8 * gib, 8, PAGE_DIRECTORY + 0x1000 * gib | PRESENT | WRITABLE | USER)
        for page in range(2048):
            memory.store(PAGE_DIRECTORY + 8 * page, 8, page << 21 | PRESENT | WRITABLE | USER | LARGE)
        memory.store(PAGE_DIRECTORY + (WINDOW >> 21) * 8, 8, PAGE_TABLE | PRESENT | WRITABLE | USER)
        memory.write(
            GDT, struct.pack("<6Q", 0, 0xAF9B000000FFFF, 0xCF93000000FFFF, 0, 0xCFF3000000FFFF, 0xAFFB000000FFFF)
        )
        memory.write(GDT + TASK, struct.pack("<HHBBBBII", 0x67, TSS, 0, 0x8B, 0, 0, 0, 0))
        memory.store(TSS + 4, 8, KERNEL_STACK)
        memory.store(TSS + 36, 8, IST_STACK)
        data = Segment(DATA64, 0, 0xFFFFFFFF, 0xC093)
        self.vcpu.registers = Registers(
            rip=CODE, rsp=STACK, rdi=DATA, rbx=MMIO,
            cs=Segment(CODE64, 0, 0xFFFFFFFF, 0xA09B), ds=data, es=data, ss=data, fs=data, gs=data,
            tr=Segment(TASK, TSS, 0x67, 0x8B), gdt_base=GDT, gdt_limit=0x3F, idt_base=IDT, idt_limit=0xFFF,
            cr0=0x80010033, cr3=PML4, cr4=0x620, efer=0xD01,
        )  # fmt: skip

    def gate(self, vector: int, handler: bytes, at: int, *, ist: int = 0, dpl: int = 0) -> None:
        """Put `handler` at an address and let an interrupt gate lead to it."""
        self.memory.write(at, handler)
        gate = struct.pack("<HHBBHII", at & 0xFFFF, CODE64, ist, 0x8E | dpl << 5, at >> 16, 0, 0)
        self.memory.write(IDT + 16 * vector, gate)

    def map(self, page: int, gpa: int, flags: int = PRESENT | WRITABLE) -> int:
        """Map page number `page` of the window to `gpa`; return its address. Flushes no TLB."""
        self.memory.store(PAGE_TABLE + 8 * page, 8, gpa | flags)
        return WINDOW + 4096 * page

    def set(self, **registers: int | Segment) -> None:
        """Change some registers."""
        changed = self.vcpu.registers
        for name, value in registers.items():
            setattr(changed, name, value)
        self.vcpu.registers = changed

    def user(self, at: int, **registers: int | Segment) -> None:
        """Start at an address at CPL 3."""
        data = Segment(USER_DATA | 3, 0, 0xFFFFFFFF, 0xC0F3)
        code = Segment(USER_CODE | 3, 0, 0xFFFFFFFF, 0xA0FB)
        self.set(rip=at, cs=code, ss=data, ds=data, es=data, **registers)

    def finish(self) -> Registers:
        """Run to the guest's end, its HLT with interrupts off; return the registers there."""
        exit: Exit = self.machine.run(timeout=60)
        assert exit == HltExit(), exit
        return self.vcpu.registers

    def word(self, offset: int = 0, size: int = 8) -> int:
        """What the guest left at `DATA + offset`."""
        return self.memory.load(DATA + offset, size)


def answered(guest: Guest, *data: int) -> list[Exit]:
    """Run to the end, answering reads with `data` in turn; return the exits."""
    exits: list[Exit] = []
    values = iter(data)
    while True:
        exit = guest.vcpu.run()
        exits.append(exit)
        if isinstance(exit, HltExit):
            return exits
        assert isinstance(exit, MmioExit | PioExit), exit
        if not exit.is_write:
            exit.data = next(values)


class SmpGuest(Guest):
    """As `Guest`, with several vCPUs that all start at CODE, each with a LAPIC, its number in R15, and its stack.

    RBX is the LAPIC's address. They end by halting with interrupts off, all of them.
    """

    def start(self) -> None:
        super().start()
        self.vcpus, self.bus = self.machine.vcpus, ApicBus()
        self.lapics = [self._lapic(vcpu) for vcpu in self.vcpus]
        for vcpu in self.vcpus[1:]:
            vcpu.startup(0)
        self.set_all(rbx=LAPIC)

    def _lapic(self, vcpu: VCPU) -> Lapic:
        lapic = Lapic(
            vcpu.index, vcpu, self.bus, self.machine.clock, bsp=vcpu.index == 0, tsc=vcpu.executor.tsc, x2apic=True
        )
        lapic.attach(vcpu.mmio)
        vcpu.controller = lapic
        with self.machine.lock:
            lapic.virtual_wire()
        return lapic

    def set_all(self, **registers: int | Segment) -> None:
        """Give all vCPUs the first one's registers with some changed."""
        self.set(**registers)
        for vcpu in self.vcpus:
            own = self.vcpu.registers
            own.r15, own.rsp = vcpu.index, STACKS + 0x1000 * vcpu.index
            vcpu.registers = own


def real_mode() -> Registers:
    """About to run at 0x7C00 in real mode, all segments at 0: the interrupt vectors are those at address 0."""
    flat = Segment(0, 0, 0xFFFF, 0x93)
    return Registers(rip=0x7C00, rsp=0x7000, cs=Segment(0, 0, 0xFFFF, 0x9B), ds=flat, es=flat, ss=flat, idt_limit=0x3FF)


class RealModeGuest(Guest):
    """As `Guest`, in real mode; see `real_mode`."""

    def start(self) -> None:
        self.vcpu.registers = real_mode()
        self.memory.write(0x7C00, self.memory.read(CODE, 0x200))


class ProtectedGuest(Guest):
    """As `Guest`, in 32-bit protected mode, with flat segments and no paging. From 0x30 on its GDT is free."""

    def start(self) -> None:
        memory = self.memory
        memory.write(GDT, struct.pack("<5Q", 0, 0xCF9B000000FFFF, 0xCF93000000FFFF, 0xCFFB000000FFFF, 0xCFF3000000FFFF))
        memory.write(GDT + TASK32, struct.pack("<HHBBBB", 0x67, TSS, 0, 0x8B, 0, 0))
        memory.store(TSS + 4, 4, KERNEL_STACK)
        memory.store(TSS + 8, 4, DATA32)
        data = Segment(DATA32, 0, 0xFFFFFFFF, 0xC093)
        self.vcpu.registers = Registers(
            rip=CODE, rsp=STACK, rdi=DATA, rbx=MMIO,
            cs=Segment(CODE32, 0, 0xFFFFFFFF, 0xC09B), ds=data, es=data, ss=data, fs=data, gs=data,
            tr=Segment(TASK32, TSS, 0x67, 0x8B), gdt_base=GDT, gdt_limit=0x7F, idt_base=IDT, idt_limit=0x7FF, cr0=0x33,
        )  # fmt: skip

    def gate(self, vector: int, handler: bytes, at: int, *, ist: int = 0, dpl: int = 0) -> None:
        self.gate32(vector, handler, at, dpl=dpl)

    def gate32(
        self, vector: int, handler: bytes, at: int, *, dpl: int = 0, kind: int = 14, selector: int = CODE32
    ) -> None:
        """Put `handler` at an address and let a gate of type `kind` lead to it."""
        self.memory.write(at, handler)
        gate = struct.pack("<HHBBH", at & 0xFFFF, selector, 0, kind | 0x80 | dpl << 5, at >> 16)
        self.memory.write(IDT + 8 * vector, gate)

    def user(self, at: int, **registers: int | Segment) -> None:
        data = Segment(USER_DATA32 | 3, 0, 0xFFFFFFFF, 0xC0F3)
        code = Segment(USER_CODE32 | 3, 0, 0xFFFFFFFF, 0xC0FB)
        self.set(rip=at, cs=code, ss=data, ds=data, es=data, **registers)
