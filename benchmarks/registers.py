"""What declared registers cost: a `RegisterBank` beside the same device written by hand, on a bus.

Both have an ID, a control register with an enable bit, a write-1-to-clear status and a scratch register, and
take 32-bit accesses; the hand-written one takes no others, as such devices do. Once without an
interrupt, once with a line that follows enable and status after each write. Beside them stands the simulator that
PeakRDL-python generates from the same registers, which `to_systemrdl` writes out for it.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

from benchmarks.contest import Contender, contend, pass_over
from benchmarks.report import Row
from iobus.bus import Bus, Device
from iobus.irq import Pin
from iobus.registers import RW, RW1C, Field, R, Register, RegisterBank, to_systemrdl
from iobus.state import State, Stateful

_BASE: Final = 0xD0000000
ID: Final = 0x0
CTRL: Final = 0x4
STATUS: Final = 0x8
SCRATCH: Final = 0xC


class Identity(Register, rest=R):
    """A number."""


class Control(Register):
    """One bit."""

    ENABLE = Field(0, RW)


class Status(Register):
    """One event."""

    DONE = Field(0, RW1C)


class Scratch(Register, rest=RW):
    """Keeps what is written."""


class Declared(RegisterBank, length=0x1000):
    """Without an interrupt."""

    ID = Identity(ID, reset=0x10B05)
    CTRL = Control(CTRL)
    STATUS = Status(STATUS)
    SCRATCH = Scratch(SCRATCH)


class DeclaredInterrupt(Declared):
    """With one."""

    def __init__(self) -> None:
        self.irq = Pin().line()

    def update(self) -> None:
        self.irq.set(bool(self.CTRL.ENABLE and self.STATUS.DONE))


@dataclass
class WrittenState(State):
    """The same as plain numbers."""

    ctrl: int = 0
    status: int = 0
    scratch: int = 0


class Written(Stateful, Device):
    """The device as one writes it by hand."""

    length = 0x1000
    state: WrittenState

    def __init__(self) -> None:
        self.state = WrittenState()

    def read(self, offset: int, size: int) -> int:
        if size != 4:
            return NotImplemented  # type: ignore[no-any-return]
        if offset == ID:
            return 0x10B05
        if offset == CTRL:
            return self.state.ctrl
        if offset == STATUS:
            return self.state.status
        if offset == SCRATCH:
            return self.state.scratch
        return 0

    def write(self, offset: int, size: int, value: int) -> object:
        if size != 4:
            return NotImplemented
        if offset == CTRL:
            self.state.ctrl = value & 1
        elif offset == STATUS:
            self.state.status &= ~(value & 1)
        elif offset == SCRATCH:
            self.state.scratch = value
        return None


class WrittenInterrupt(Written):
    """With an interrupt."""

    def __init__(self) -> None:
        super().__init__()
        self.irq = Pin().line()

    def write(self, offset: int, size: int, value: int) -> object:
        if super().write(offset, size, value) is NotImplemented:
            return NotImplemented
        self.irq.set(bool(self.state.ctrl & self.state.status & 1))
        return None


def run(quick: bool) -> list[Row]:
    """Measure reads, writes, and making a device, and return the rows."""
    rounds, accesses = (2, 1_000) if quick else (25, 10_000)
    return [
        _compare("register read", Declared, Written, _reads, accesses, rounds, 1.5),
        _compare("register write", Declared, Written, _writes, accesses, rounds, 1.5),
        _compare("register write with interrupt", DeclaredInterrupt, WrittenInterrupt, _writes, accesses, rounds, None),
        _compare(
            "device made, attached, 4 accesses",
            DeclaredInterrupt,
            WrittenInterrupt,
            _made,
            accesses // 20,
            rounds,
            None,
        ),
        *_compare_generated(accesses, rounds),
    ]


Kind = Callable[[], Device]


def _compare(
    name: str, declared: Kind, written: Kind, make: Callable[[Kind, int], Contender], count: int, rounds: int,
    goal: float | None,
) -> Row:  # fmt: skip
    iobus, peer = make(declared, count), make(written, count)
    contend([iobus, peer], rounds)
    return Row("registers", name, "ns", "written by hand", iobus.ns, peer.ns, goal=goal)


_GENERATED: Final = "PeakRDL-python"


def _compare_generated(count: int, rounds: int) -> list[Row]:
    """The accesses of the same registers as PeakRDL-python's simulator makes them."""
    names = ("register read, generated", "register write, generated")
    with tempfile.TemporaryDirectory() as directory:
        try:
            simulator = _generate(directory)
        except ModuleNotFoundError as exc:
            return [Row("registers", name, "ns", _GENERATED, note=f"{exc.name} is not installed") for name in names]
    made = ((names[0], _reads, _generated_reads), (names[1], _writes, _generated_writes))
    rows: list[Row] = []
    for name, ours, theirs in made:
        iobus, peer = ours(Declared, count), theirs(simulator, count)
        contend([iobus, peer], rounds)
        rows.append(Row("registers", name, "ns", _GENERATED, iobus.ns, peer.ns))
    return rows


def _generated_reads(simulator: Any, count: int) -> Contender:
    """What `_reads` does; a simulator's addresses begin at 0."""
    addresses = [4 * (index % 4) for index in range(count)]

    def access() -> int:
        read, start = simulator.read, perf_counter_ns()
        for address in addresses:
            read(address, 32, 32)
        return perf_counter_ns() - start

    return Contender(count, access, lambda: pass_over(addresses))


def _generated_writes(simulator: Any, count: int) -> Contender:
    """What `_writes` does."""
    addresses = [4 + 4 * (index % 3) for index in range(count)]

    def access() -> int:
        write, start = simulator.write, perf_counter_ns()
        for address in addresses:
            write(address, 32, 32, 1)
        return perf_counter_ns() - start

    return Contender(count, access, lambda: pass_over(addresses))


def _generate(directory: str) -> Any:
    """The simulator of `Declared`. Raises `ModuleNotFoundError`."""
    from peakrdl_python import PythonExporter
    from systemrdl import RDLCompiler

    source = Path(directory, "declared.rdl")
    source.write_text(to_systemrdl(Declared))
    compiler = RDLCompiler()
    compiler.compile_file(str(source))
    PythonExporter().export(compiler.elaborate().top, directory, skip_test_case_generation=True)
    sys.path.insert(0, directory)
    try:
        return importlib.import_module("Declared.sim.Declared").Declared_simulator_cls(address=0)
    finally:
        sys.path.remove(directory)


def _reads(kind: Kind, count: int) -> Contender:
    """All four registers in turn."""
    bus = Bus()
    bus.attach(kind(), _BASE)
    addresses = [_BASE + 4 * (index % 4) for index in range(count)]

    def access() -> int:
        read, start = bus.read, perf_counter_ns()
        for address in addresses:
            read(address, 4)
        return perf_counter_ns() - start

    return Contender(count, access, lambda: pass_over(addresses))


def _writes(kind: Kind, count: int) -> Contender:
    """CTRL, STATUS and SCRATCH in turn."""
    bus = Bus()
    bus.attach(kind(), _BASE)
    addresses = [_BASE + 4 + 4 * (index % 3) for index in range(count)]

    def access() -> int:
        write, start = bus.write, perf_counter_ns()
        for address in addresses:
            write(address, 4, 1)
        return perf_counter_ns() - start

    return Contender(count, access, lambda: pass_over(addresses))


def _made(kind: Kind, count: int) -> Contender:
    """What a device test does, as often as that goes."""
    tests = range(count)

    def access() -> int:
        start = perf_counter_ns()
        for _ in tests:
            bus = Bus()
            bus.attach(kind(), _BASE)
            bus.write(_BASE + CTRL, 4, 1)
            bus.write(_BASE + STATUS, 4, 1)
            bus.read(_BASE + ID, 4)
            bus.read(_BASE + STATUS, 4)
        return perf_counter_ns() - start

    return Contender(count, access, lambda: pass_over(tests))
