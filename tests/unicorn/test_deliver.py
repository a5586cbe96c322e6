"""Delivery of interrupts and exceptions in Python (deliver.py), called directly: no CPU runs here.

By the Intel SDM vol. 3A, "Interrupt and Exception Handling", and vol. 2A, "INT n". Above all what the
library's own delivery does otherwise or not at all; what both do is in the tests of guests.
"""

from __future__ import annotations

import copy
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import CODE, CODE32, GDT, IDT, IST_STACK, RAM, STACK, TSS, Guest, ProtectedGuest

from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.deliver import DF, GP, NMI, NP, PF, SS, TS, UD, Event, TripleFault, deliver
from iobus.machine import Machine
from iobus.vcpu import VCPU

HANDLER = CODE + 0x1000
RF = 1 << 16
EXT, IN_IDT = 1, 2
FREE = 0x38


class Cpu:
    """The state of a CPU that does not run, with the rig's tables of `mode` in memory."""

    def __init__(self, mode: type[Guest] = Guest, **registers: object) -> None:
        class Bare(mode):  # type: ignore[valid-type, misc]
            def __init__(self) -> None:
                self.machine = Machine()
                self.vcpu = self.machine.vcpus[0]
                self.memory = self.machine.memory
                self.memory.add(0, RAM)
                self.start()

        self.guest = Bare()
        self.vcpu: VCPU = self.guest.vcpu
        self.memory = self.guest.memory
        self.wide = mode is Guest
        self.state = CpuState(memoryview(bytearray(0x1700)))
        self.set(**registers)

    def set(self, **registers: object) -> None:
        self.guest.set(**registers)
        self.state.set(self.vcpu.registers, running=False)

    def user(self, **registers: object) -> None:
        self.guest.user(CODE, **registers)
        self.state.set(self.vcpu.registers, running=False)

    def gate(self, *vectors: int, **changed: int) -> None:
        for vector in vectors:
            self.guest.gate(vector, b"", HANDLER + 16 * vector, **changed)

    def deliver(self, event: Event, flags: int = 0x202) -> int:
        return deliver(self.vcpu, self.state, flags, event)

    @property
    def entered(self) -> int:
        """The vector of the handler that the CPU is at."""
        return (self.state.rip - HANDLER) // 16

    def frame(self, index: int) -> int:
        """A word of the handler's stack, the error code if there is one being the first."""
        width = 8 if self.wide else 4
        return self.memory.load(self.state.get(2).rsp + width * index, width)


MODES = pytest.mark.parametrize("mode", [Guest, ProtectedGuest], ids=["long", "protected"])
SOFTWARE = Event(0x40, software=True, start=CODE)
INTERRUPT = Event(0x40, exception=False)


# RF.


@MODES
@pytest.mark.parametrize(
    ("event", "rf"),
    [
        (Event(0), RF),
        (Event(UD), RF),
        (Event(GP, 0), RF),
        (Event(PF, 2), RF),
        (Event(1), 0),
        (Event(3, software=True, start=CODE), 0),
        (SOFTWARE, 0),
        (INTERRUPT, 0),
        (Event(NMI, exception=False), 0),
        (Event(DF, 0), 0),
    ],
    ids=str,
)
def test_rf_is_pushed_for_faults_only(mode: type[Guest], event: Event, rf: int) -> None:
    """So that a breakpoint on the instruction does not come again; the handler itself runs with RF clear."""
    cpu = Cpu(mode)
    cpu.gate(event.vector)
    flags = cpu.deliver(event)
    pushed = cpu.frame(2 if event.error_code is None else 3)
    assert (pushed & RF, pushed & ~RF, flags & RF) == (rf, 0x202, 0)


# EXT, bit 0 of the error code.


@MODES
@pytest.mark.parametrize(
    ("event", "ext"), [(SOFTWARE, 0), (INTERRUPT, EXT), (Event(UD), EXT), (Event(NMI, exception=False), EXT)], ids=str
)
def test_ext_tells_whose_fault_it_was(mode: type[Guest], event: Event, ext: int) -> None:
    """Clear where the program's INT n could not be delivered; set for an interrupt or an earlier exception."""
    cpu = Cpu(mode)
    cpu.gate(NP, event.vector)
    gate = IDT + (16 if cpu.wide else 8) * event.vector
    cpu.memory.store(gate + 5, 1, 0x0E)
    cpu.deliver(event)
    assert (cpu.entered, cpu.frame(0)) == (NP, event.vector * 8 | IN_IDT | ext)


def test_ext_is_set_for_the_fault_in_the_delivery_of_a_fault() -> None:
    """INT 0x40's gate is beyond the IDT, #GP; its gate is of no known type, #GP again: a #DF, whose code is 0."""
    cpu = Cpu(idt_limit=0x3FF)
    cpu.gate(DF)
    cpu.deliver(SOFTWARE)
    assert (cpu.entered, cpu.frame(0), cpu.frame(1)) == (DF, 0, CODE)


def test_ext_behind_an_int_that_became_a_benign_fault() -> None:
    """INT 0x40 is a #NP; the stack of that handler is not there, #PF: one after the other."""
    cpu = Cpu()
    cpu.gate(0x40, PF)
    cpu.gate(NP, ist=1)
    cpu.memory.store(IDT + 16 * 0x40 + 5, 1, 0x0E)
    cpu.memory.store(TSS + 36, 8, 0x40001000)
    cpu.deliver(SOFTWARE)
    assert (cpu.entered, cpu.state.get(2).cr2, cpu.frame(1)) == (PF, 0x40000FF8, CODE)


# Where the library's own delivery does not look.


@pytest.mark.parametrize("event", [SOFTWARE, INTERRUPT], ids=["INT n", "interrupt"])
def test_a_handler_beyond_its_segments_limit_is_a_gp(event: Event) -> None:
    """#GP with no selector: the segment ends where the handler would start."""
    cpu = Cpu(ProtectedGuest)
    cpu.memory.write(GDT + FREE, struct.pack("<HHBBBB", HANDLER & 0xFFFF, 0, 0, 0x9B, 0x41, 0))
    cpu.gate(GP)
    for offset, vector in ((HANDLER, 0x40), (HANDLER + 1, GP)):
        cpu.set(rip=CODE)
        cpu.guest.gate32(0x40, b"", offset, selector=FREE)  # type: ignore[attr-defined]
        cpu.deliver(event)
        assert cpu.state.rip == (offset if vector == 0x40 else HANDLER + 16 * GP)
    assert cpu.frame(0) == (0 if event.software else EXT)


@pytest.mark.parametrize("event", [SOFTWARE, INTERRUPT], ids=["INT n", "interrupt"])
def test_what_is_not_canonical_is_a_fault(event: Event) -> None:
    """The handler: #GP. The stack: #SS. The IDT: no fault's gate can be read either, and the CPU shuts down."""
    ext = 0 if event.software else EXT
    cpu = Cpu()
    cpu.gate(0x40, GP, SS)
    cpu.memory.store(IDT + 16 * 0x40 + 8, 4, 0x8000)
    cpu.deliver(event)
    assert (cpu.entered, cpu.frame(0)) == (GP, ext)

    cpu = Cpu(rsp=1 << 48)
    cpu.gate(0x40)
    cpu.gate(SS, ist=1)
    cpu.deliver(event)
    assert (cpu.entered, cpu.frame(0), cpu.state.get(2).rsp) == (SS, ext, IST_STACK - 48)

    cpu = Cpu(idt_base=0x8000_0000_0000)
    with pytest.raises(TripleFault):
        cpu.deliver(event)


@pytest.mark.parametrize(("access", "vector"), [(0x93, 0x40), (0x13, SS), (0x91, TS), (0x9B, TS), (0xF3, TS)], ids=hex)
def test_the_kernels_stack_segment_is_checked(access: int, vector: int) -> None:
    """#SS where it is not present, #TS where it is no writable data of the handler's level."""
    cpu = Cpu(ProtectedGuest)
    cpu.memory.write(GDT + FREE, struct.pack("<HHBBBB", 0xFFFF, 0, 0, access, 0xCF, 0))
    cpu.memory.store(GDT + 0x30, 8, 0x00CF9F000000FFFF)
    for number in (0x40, TS, SS):
        cpu.guest.gate32(  # type: ignore[attr-defined]
            number, b"", HANDLER + 16 * number, dpl=3, selector=CODE32 if number == 0x40 else 0x30
        )
    cpu.memory.store(TSS + 8, 4, FREE)
    cpu.user()
    cpu.deliver(INTERRUPT)
    assert cpu.entered == vector
    if vector != 0x40:
        assert cpu.frame(0) == FREE | EXT


def test_a_stack_that_grows_down_ends_at_its_limit() -> None:
    """Expand-down: what is above the limit is the stack, what is below is #SS with the selector."""
    cpu = Cpu(ProtectedGuest)
    cpu.memory.write(GDT + FREE, struct.pack("<HHBBBB", 0x1E, 0, 0, 0x97, 0xC0, 0))  # limit 0x1efff
    cpu.memory.store(GDT + 0x30, 8, 0x00CF9F000000FFFF)
    cpu.gate(0x40)
    cpu.guest.gate32(SS, b"", HANDLER + 16 * SS, selector=0x30)  # type: ignore[attr-defined]
    cpu.memory.store(TSS + 8, 4, FREE)
    for top, vector in ((0x1F000 + 20, 0x40), (0x1F000 + 16, SS)):
        cpu.memory.store(TSS + 4, 4, top)
        cpu.user()
        cpu.deliver(INTERRUPT)
        assert cpu.entered == vector
    assert cpu.frame(0) == FREE | EXT


def test_an_ist_leaves_ss_where_the_level_does_not_change() -> None:
    """SDM vol. 2A, INTRA-PRIVILEGE-LEVEL-INTERRUPT: RSP from the TSS, SS as it was; inwards SS is null."""
    for user, selector in ((False, 0x10), (True, 0)):
        cpu = Cpu()
        cpu.gate(0x40, ist=1)
        if user:
            cpu.user()
        cpu.deliver(INTERRUPT)
        r = cpu.state.get(2)
        assert (r.ss.selector, r.rsp, r.cpl) == (selector, IST_STACK - 40, 0)


def test_int_3_of_two_bytes_starts_where_it_starts() -> None:
    """A fault in its delivery is at `start`, whatever the vector."""
    cpu = Cpu(rip=CODE + 2)
    cpu.gate(GP)
    cpu.deliver(Event(3, software=True, start=CODE))
    assert (cpu.entered, cpu.frame(0), cpu.frame(1)) == (GP, 3 * 8 | IN_IDT, CODE)


def test_a_task_gate_faults() -> None:
    """It is a gate of no known type here: the loss that the fallback tells of."""
    cpu = Cpu(ProtectedGuest)
    cpu.gate(GP)
    cpu.guest.gate32(0x40, b"", 0, kind=5, selector=0x28)  # type: ignore[attr-defined]
    cpu.deliver(SOFTWARE)
    assert (cpu.entered, cpu.frame(0)) == (GP, 0x40 * 8 | IN_IDT)


def test_pushes_to_a_device_are_whole() -> None:
    """A stack that is no RAM gets each 8-byte word as one access."""
    cpu = Cpu(rsp=0x300000)
    cpu.gate(0x40)
    seen: list[tuple[int, int]] = []
    cpu.vcpu.mmio_path.observe(lambda access: seen.append((access.address, access.size)))
    cpu.deliver(INTERRUPT)
    assert seen == [(0x300000 - 40 + 8 * index, 8) for index in range(5)]


# Whatever the guest has in its tables.

BYTES = st.binary(min_size=8, max_size=8)


@given(
    st.sampled_from([Guest, ProtectedGuest]), st.booleans(),
    st.sampled_from([SOFTWARE, INTERRUPT, Event(PF, 2), Event(UD)]),
    st.lists(BYTES, min_size=32, max_size=32), st.lists(BYTES, min_size=8, max_size=8), BYTES,
    st.sampled_from([STACK, 0, 4, RAM + 8, 0x7FFFFFFFFFF8, 1 << 63]), st.integers(0, 0x3FF),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_no_table_makes_it_fail(
    mode: type[Guest], user: bool, event: Event, idt: list[bytes], gdt: list[bytes], tss: bytes, rsp: int, limit: int
) -> None:
    """Any bytes in the IDT, GDT and TSS: a handler is entered or the CPU shuts down, and then it is as it was."""
    cpu = Cpu(mode)
    cpu.memory.write(IDT, b"".join(idt))
    cpu.memory.write(IDT + 0x40 * (16 if cpu.wide else 8), idt[0] + idt[1])
    cpu.memory.write(GDT + 0x38, b"".join(gdt))
    cpu.memory.write(TSS + 4, tss)
    if user:
        cpu.user(rsp=rsp, idt_limit=limit, gdt_limit=0x77)
    else:
        cpu.set(rsp=rsp, idt_limit=limit, gdt_limit=0x77)
    before = copy.deepcopy(cpu.state.get(2))
    try:
        cpu.deliver(event)
    except TripleFault:
        after = cpu.state.get(2)
        after.cr2, after.rip = before.cr2, before.rip
        assert after == before
