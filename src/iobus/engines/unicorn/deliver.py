"""Interrupts and exceptions entered in Python: the gate, the checks, the stack, the registers.

Used by fallback.py, where the library's own code for this cannot be reached. By the Intel SDM vol. 3A,
chapter 6 (protected and 64-bit mode), chapter 21 (real mode) and vol. 2A, "INT n". Not here: task gates,
which fault as a gate of no known type does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from iobus.cpu_registers import CR0_PE, EFER_LMA, RFLAGS_AC, RFLAGS_IF, RFLAGS_TF, Segment
from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn.cpustate import CpuState
from iobus.exits import GuestFault, PageFault, ProtectionFault
from iobus.memory import PAGE_SIZE
from iobus.paging import translate
from iobus.vcpu import VCPU

DB, NMI, UD, DF, TS, NP, SS, GP, PF = 1, 2, 6, 8, 10, 11, 12, 13, 14

HAS_ERROR_CODE: Final = frozenset((DF, TS, NP, SS, GP, PF, 17))
_CONTRIBUTORY: Final = frozenset((0, TS, NP, SS, GP))
_NOT_FAULTS: Final = frozenset((DB, 3, 4, DF, 18))
"""Exceptions that are traps or aborts, and #DB: where it is a fault it is of a breakpoint, which sets no RF."""

_RFLAGS_NT, _RFLAGS_RF, _RFLAGS_VM = 1 << 14, 1 << 16, 1 << 17
_CS, _SS = at.SEGMENTS + 24, at.SEGMENTS + 48
_RSP, _CR0, _CR2, _EFER = 4, at.CR >> 3, (at.CR >> 3) + 2, at.EFER >> 3

# Of a descriptor, as `Segment.access` has them.
_P, _S, _CODE, _CONFORMING, _WRITE, _EXPAND_DOWN, _L, _B = 0x80, 0x10, 8, 4, 2, 4, 0x2000, 0x4000


class TripleFault(Exception):
    """A fault while the handler of a double fault was entered: the CPU shuts down."""


@dataclass(frozen=True)
class Event:
    """What is to be delivered."""

    vector: int
    error_code: int | None = None
    software: bool = False
    """INT n, INT3 or INTO: the gate's DPL is checked, and RIP is behind the instruction."""
    start: int = 0
    """Where the instruction of a software interrupt starts: what a fault in its delivery returns to."""
    exception: bool = True
    """Not an external interrupt or NMI."""

    @property
    def is_fault(self) -> bool:
        """Whether the handler may return to the same instruction, and then not to a breakpoint on it again."""
        return self.exception and not self.software and self.vector not in _NOT_FAULTS


def deliver(vcpu: VCPU, state: CpuState, flags: int, event: Event) -> int:
    """Enter the handler of `event`, with RFLAGS `flags`; return the new RFLAGS, to be set by the caller.

    `state` changes only where the delivery succeeds; RIP in it is what the handler returns to. A fault
    on the way is delivered instead (SDM vol. 3A, table 6-5). Raises `TripleFault`.
    """
    while True:
        try:
            return _Entry(vcpu, state, flags, event).enter()
        except GuestFault as fault:
            if isinstance(fault, PageFault):
                state.u64[_CR2] = fault.address
            if event.software:
                state.rip = event.start
            event = _after(event, fault)


def _after(first: Event, second: GuestFault) -> Event:
    """What a fault during the delivery of `first` becomes."""
    if first.exception and not first.software:
        if first.vector == DF:
            raise TripleFault
        contributory = second.vector in _CONTRIBUTORY
        if (first.vector in _CONTRIBUTORY and contributory) or (
            first.vector == PF and (contributory or second.vector == PF)
        ):
            return Event(DF, 0)
    return Event(second.vector, second.error_code)


class _Entry:
    """One attempt. Nothing in the CPU or in memory changes before all checks have passed."""

    def __init__(self, vcpu: VCPU, state: CpuState, flags: int, event: Event) -> None:
        self.memory = _Linear(vcpu, state)
        # RF as it is pushed: SDM vol. 3B, "Instruction-Breakpoint Exception Condition".
        self.state, self.flags, self.event = state, flags | _RFLAGS_RF if event.is_fault else flags, event
        self.cpl = state.u32[at.HFLAGS >> 2] & 3
        self.external = 0 if event.software else 1
        """EXT, bit 0 of the error codes of faults during the delivery."""

    def enter(self) -> int:
        """Take the way of the CPU's mode; return the new RFLAGS."""
        try:
            if not self.state.u64[_CR0] & CR0_PE:
                return self._real()
            if self.state.u64[_EFER] & EFER_LMA:
                return self._long()
            return self._protected()
        except ProtectionFault:
            raise self._fault(GP, 0, "a table of the CPU's is not at a canonical address") from None

    def _fault(self, vector: int, code: int, what: str) -> GuestFault:
        return GuestFault(vector, code | self.external, f"vector {self.event.vector:#x}: {what}")

    def _error_code(self) -> list[int]:
        return [self.event.error_code or 0] if self.event.error_code is not None else []

    # The three ways.

    def _real(self) -> int:
        state, vector = self.state, self.event.vector
        idt = state.segment(at.IDT)
        if vector * 4 + 3 > idt.limit:
            raise self._fault(GP, vector * 8 + 2, "outside the interrupt vector table")
        entry = self.memory.read(idt.base + vector * 4, 4)
        cs, ss = state.segment(_CS), state.segment(_SS)
        stack = _Stack(self, ss, state.u64[_RSP], 0)
        for value in (self.flags, cs.selector, state.rip):
            stack.push(value, 2)
        stack.commit()
        cs.selector = int.from_bytes(entry[2:], "little")
        cs.base = cs.selector << 4
        state.set_segment(_CS, cs)
        state.rip = int.from_bytes(entry[:2], "little")
        state.u64[_RSP] = stack.pointer
        return self.flags & ~(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | _RFLAGS_RF)

    def _protected(self) -> int:
        state = self.state
        gate, kind = self._gate(8, (6, 7, 14, 15))
        width = 4 if kind & 8 else 2
        selector, code, dpl = self._target(gate)
        vm86 = bool(self.flags & _RFLAGS_VM)
        if vm86 and dpl:
            raise self._fault(GP, selector & ~3, "virtual-8086 mode, and the handler is not at level 0")
        ss, pointer = state.segment(_SS), state.u64[_RSP]
        pushed: list[int] = []
        if dpl < self.cpl:
            inner, inner_pointer = self._inner_stack(dpl)
            if vm86:
                pushed += (state.segment(at.SEGMENTS + 24 * index).selector for index in (5, 4, 3, 0))
            pushed += (ss.selector, pointer)
            stack = _Stack(self, inner, inner_pointer, inner.selector & ~3)
        else:
            inner = None
            stack = _Stack(self, ss, pointer, 0)
        offset = int.from_bytes(gate[:2], "little") | (int.from_bytes(gate[6:8], "little") << 16 if width == 4 else 0)
        if offset > code.limit:
            raise self._fault(GP, 0, "the handler is beyond the limit of its segment")
        for value in (*pushed, self.flags, state.segment(_CS).selector, state.rip, *self._error_code()):
            stack.push(value, width)
        stack.commit()
        if inner is not None:
            state.set_segment(_SS, inner)
            if vm86:
                for index in (0, 3, 4, 5):
                    state.set_segment(at.SEGMENTS + 24 * index, Segment(0, 0, 0, 0))
        state.u64[_RSP] = stack.pointer
        state.set_segment(_CS, code)
        state.rip = offset
        return self._handler_flags(kind)

    def _long(self) -> int:
        state = self.state
        gate, kind = self._gate(16, (14, 15))
        selector, code, dpl = self._target(gate)
        if not code.access & _L or code.access & _B:
            raise self._fault(GP, selector & ~3, "the handler's segment is not 64-bit code")
        offset = int.from_bytes(gate[:2] + gate[6:12], "little")
        if offset + (1 << 47) & _MASK64 >= 1 << 48:
            raise self._fault(GP, 0, "the handler is not at a canonical address")
        pointer, ist = state.u64[_RSP], gate[4] & 7
        if ist or dpl < self.cpl:
            pointer = self._tss(8 * (ist + 3 if ist else dpl) + 4, 8)
        pointer &= ~0xF
        frame = [
            state.segment(_SS).selector, state.u64[_RSP], self.flags, state.segment(_CS).selector, state.rip,
            *self._error_code(),
        ]  # fmt: skip
        top, pointer = pointer, pointer - 8 * len(frame) & _MASK64
        try:
            write = self.memory.prepare(pointer, b"".join(value.to_bytes(8, "little") for value in reversed(frame)))
        except PageFault:
            for pushed in range(len(frame)):  # CR2 is the address of the first push that faults
                self.memory.prepare(top - 8 * (pushed + 1) & _MASK64, bytes(8))
            raise
        except ProtectionFault:
            raise self._fault(SS, 0, "the stack pointer is not canonical") from None
        write()
        if dpl < self.cpl:
            state.set_segment(_SS, Segment(dpl, 0, 0, dpl << 5))
        state.u64[_RSP] = pointer
        state.set_segment(_CS, code)
        state.rip = offset
        return self._handler_flags(kind)

    # Their parts.

    def _gate(self, size: int, kinds: tuple[int, ...]) -> tuple[bytes, int]:
        """The gate's bytes and type."""
        vector, idt = self.event.vector, self.state.segment(at.IDT)
        code = vector * 8 + 2  # IDT
        if vector * size + size - 1 > idt.limit:
            raise self._fault(GP, code, "outside the IDT")
        gate = self.memory.read(idt.base + vector * size, size)
        access = gate[5]
        if access & 0x1F not in kinds:
            raise self._fault(GP, code, f"a gate of type {access & 0x1F:#x}")
        if self.event.software and access >> 5 & 3 < self.cpl:
            raise self._fault(GP, code, "the gate is above the current privilege level")
        if not access & _P:
            raise self._fault(NP, code, "the gate is not present")
        return gate, access & 0x1F

    def _target(self, gate: bytes) -> tuple[int, Segment, int]:
        """The gate's selector, the code segment to load, and the level the handler runs at."""
        selector = int.from_bytes(gate[2:4], "little")
        code = self._descriptor(selector)
        if code is None:
            raise self._fault(GP, selector & ~3, "the handler's selector has no descriptor")
        dpl = code.access >> 5 & 3
        if code.access & (_S | _CODE) != _S | _CODE or dpl > self.cpl:
            raise self._fault(GP, selector & ~3, "the handler's segment is no code of enough privilege")
        if not code.access & _P:
            raise self._fault(NP, selector & ~3, "the handler's segment is not present")
        if code.access & _CONFORMING:
            dpl = self.cpl
        code.selector = selector & ~3 | dpl
        return selector, code, dpl

    def _inner_stack(self, dpl: int) -> tuple[Segment, int]:
        """SS and ESP of level `dpl`, from a 32- or 16-bit TSS."""
        if self.state.segment(at.TR).access & 8:
            pointer, selector = self._tss(8 * dpl + 4, 4), self._tss(8 * dpl + 8, 2)
        else:
            pointer, selector = self._tss(4 * dpl + 2, 2), self._tss(4 * dpl + 4, 2)
        ss = self._descriptor(selector)
        if ss is None or selector & 3 != dpl or ss.access >> 5 & 3 != dpl:
            raise self._fault(TS, selector & ~3, "the stack segment of the TSS is not of the handler's level")
        if ss.access & (_S | _CODE | _WRITE) != _S | _WRITE:
            raise self._fault(TS, selector & ~3, "the stack segment of the TSS is not writable data")
        if not ss.access & _P:
            raise self._fault(SS, selector & ~3, "the stack segment of the TSS is not present")
        return ss, pointer

    def _tss(self, offset: int, size: int) -> int:
        tr = self.state.segment(at.TR)
        if not tr.access & _P or tr.access & 5 != 1 or offset + size - 1 > tr.limit:
            raise self._fault(TS, tr.selector & ~3, "there is no TSS, or it is too short")
        return int.from_bytes(self.memory.read(tr.base + offset, size), "little")

    def _descriptor(self, selector: int) -> Segment | None:
        """The code or data segment of a selector, None where there is none."""
        table = self.state.segment(at.LDT if selector & 4 else at.GDT)
        index = selector & ~7
        if not selector & ~3 or index + 7 > table.limit:
            return None
        raw = int.from_bytes(self.memory.read(table.base + index, 8), "little")
        limit = raw & 0xFFFF | raw >> 32 & 0xF0000
        if raw >> 55 & 1:  # G
            limit = limit << 12 | 0xFFF
        return Segment(selector, raw >> 16 & 0xFFFFFF | raw >> 32 & 0xFF000000, limit, raw >> 40 & 0xF0FF)

    def _handler_flags(self, kind: int) -> int:
        masked = RFLAGS_TF | _RFLAGS_NT | _RFLAGS_RF | _RFLAGS_VM
        if not kind & 1:  # an interrupt gate, not a trap gate
            masked |= RFLAGS_IF
        return self.flags & ~masked


class _Stack:
    """Pushes through a stack segment of legacy modes, done all at once by `commit`."""

    def __init__(self, entry: _Entry, ss: Segment, pointer: int, error_code: int) -> None:
        self._entry, self._ss, self._code = entry, ss, error_code
        self._mask = 0xFFFFFFFF if ss.access & _B else 0xFFFF
        self._pushed: list[tuple[int, bytes]] = []
        self.pointer = pointer & 0xFFFFFFFF
        """The new (E)SP."""

    def push(self, value: int, size: int) -> None:
        offset = self.pointer - size & self._mask
        last, limit = offset + size - 1, self._ss.limit
        down = self._ss.access & (_CODE | _EXPAND_DOWN) == _EXPAND_DOWN
        if last > self._mask or (offset <= limit if down else last > limit):
            raise self._entry._fault(SS, self._code, "no room on the stack")
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._pushed.append((self._ss.base + offset & 0xFFFFFFFF, data))
        self.pointer = self.pointer & ~self._mask | offset

    def commit(self) -> None:
        writes = [self._entry.memory.prepare(address, data) for address, data in self._pushed]
        for write in writes:
            write()


class _Write:
    """A write that cannot fault any more."""

    def __init__(self, vcpu: VCPU, pieces: list[tuple[int, bytes]]) -> None:
        self._vcpu, self._pieces = vcpu, pieces

    def __call__(self) -> None:
        memory = self._vcpu.machine.memory
        for gpa, data in self._pieces:
            if memory.find(gpa, len(data), write=True) is not None:
                memory.write(gpa, data)
            else:
                for start, size in _elements(gpa, len(data)):
                    self._vcpu.mmio_path.write(gpa + start, size, int.from_bytes(data[start : start + size], "little"))


def _elements(gpa: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut an access to a device into aligned elements of at most 8 bytes: their offsets and sizes."""
    start = 0
    while start < length:
        at = gpa + start
        size = min(8, at & -at or 8, 1 << (length - start).bit_length() - 1)
        yield start, size
        start += size


class _Linear:
    """Linear addresses as the CPU itself accesses them: as supervisor, whatever the current level."""

    def __init__(self, vcpu: VCPU, state: CpuState) -> None:
        self._vcpu = vcpu
        paging = state.paging()
        # SMAP has no exemption by AC for such accesses (SDM vol. 3A, section 4.6.1).
        self._paging = paging._replace(cpl=0, rflags=paging.rflags & ~RFLAGS_AC)
        self._mask = _MASK64 if paging.efer & EFER_LMA else 0xFFFFFFFF

    def read(self, address: int, size: int) -> bytes:
        memory, data = self._vcpu.machine.memory, b""
        for gpa, count in self._pieces(address, size, write=False):
            if memory.find(gpa, count) is not None:
                data += memory.read(gpa, count)
            else:
                for start, length in _elements(gpa, count):
                    data += self._vcpu.mmio_path.read(gpa + start, length).to_bytes(length, "little")
        return data

    def prepare(self, address: int, data: bytes) -> _Write:
        """Do all that can fault of a write."""
        pieces, done = [], 0
        for gpa, count in self._pieces(address, len(data), write=True):
            pieces.append((gpa, data[done : done + count]))
            done += count
        return _Write(self._vcpu, pieces)

    def _pieces(self, address: int, size: int, *, write: bool) -> list[tuple[int, int]]:
        pieces, memory = [], self._vcpu.machine.memory
        while size:
            address &= self._mask
            count = min(size, PAGE_SIZE - address % PAGE_SIZE)
            pieces.append((translate(memory, self._paging, address, write=write), count))
            address, size = address + count, size - count
        return pieces


_MASK64: Final = (1 << 64) - 1
