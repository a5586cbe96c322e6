"""A guest whose accesses a test writes down, made by code on an engine, or for it where there is no CPU.

The code is assembled here, an instruction or three for each access, and ends with HLT.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

import rig

from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import Exit, HltExit, MmioExit, PioExit
from iobus.machine import Engine
from iobus.vcpu import VCPU

Kind = Literal["none", "unicorn", "kvm"]

PARKED: Final = 0x5000
"""Where the vCPUs but the first start, in real mode, to halt there."""
_RESULTS: Final = 0x100000

_READS: Final = {1: "8a03", 2: "668b03", 4: "8b03", 8: "488b03"}  # mov al, [rbx]
_WRITES: Final = {1: "8803", 2: "668903", 4: "8903", 8: "488903"}  # mov [rbx], al
_INS: Final = {1: "ec", 2: "66ed", 4: "ed"}  # in al, dx
_OUTS: Final = {1: "ee", 2: "66ef", 4: "ef"}  # out dx, al
_KEEP: Final = "488907 4883c708"  # mov [rdi], rax; add rdi, 8


class Op(NamedTuple):
    """One access."""

    address: int
    size: int
    value: int | None = None
    """What is written; None for a read."""
    port: bool = False

    def code(self) -> bytes:
        code = bytes.fromhex("48ba" if self.port else "48bb") + struct.pack("<Q", self.address)  # mov rdx/rbx, address
        code += bytes.fromhex("48b8") + struct.pack("<Q", self.value or 0)  # mov rax, value
        if self.value is None:
            return code + bytes.fromhex((_INS if self.port else _READS)[self.size] + _KEEP)
        return code + bytes.fromhex((_OUTS if self.port else _WRITES)[self.size])


class Accesses(rig.Guest):
    """A machine on an engine, or on none, with RAM in its first 2 MiB and nothing else."""

    def __init__(self, kind: Kind, cpus: int = 1) -> None:
        self.kind: Final = kind
        self.exits: list[Exit] = []
        """The accesses that nobody claimed, as they came to the caller."""
        super().__init__(b"\xf4", cpus=cpus)
        self.memory.write(PARKED, b"\xf4")
        self._start = self.vcpu.registers
        for vcpu in self.machine.vcpus[1:]:
            if kind != "none":
                vcpu.startup(PARKED >> 12)
                assert vcpu.run() == HltExit()

    def engine(self) -> Engine | None:  # type: ignore[override]
        return None if self.kind == "none" else UnicornEngine() if self.kind == "unicorn" else KvmEngine()

    def make(self, ops: Iterable[Op], *, answer: int = 0, cpu: int = 0) -> list[int]:
        """Make the accesses in one run of guest code; return what was read. `answer` is for unclaimed reads."""
        ops, vcpu = list(ops), self.machine.vcpus[cpu]
        registers = self._start.restore(self._start.save())
        registers.rdi = _RESULTS
        vcpu.registers = registers
        if self.kind == "none":
            return [value for op in ops if (value := self._without_cpu(vcpu, op, answer)) is not None]
        self.memory.write(rig.CODE, b"".join(op.code() for op in ops) + b"\xf4")
        while not isinstance(exit := vcpu.run(), HltExit):
            assert isinstance(exit, MmioExit | PioExit), exit
            self._answered(exit, answer)
        reads = [op for op in ops if op.value is None]
        return [self.memory.load(_RESULTS + 8 * number, op.size) for number, op in enumerate(reads)]

    def load(self, address: int, size: int, *, answer: int = 0, cpu: int = 0) -> int:
        """Read, from guest code."""
        return self.make([Op(address, size)], answer=answer, cpu=cpu)[0]

    def store(self, address: int, size: int, value: int, *, cpu: int = 0) -> None:
        """Write, from guest code."""
        self.make([Op(address, size, value)], cpu=cpu)

    def _without_cpu(self, vcpu: VCPU, op: Op, answer: int) -> int | None:
        if op.port:
            result = vcpu.pio_path.ask(op.address, op.size, op.value)
            if result is NotImplemented:
                result = self._answered(PioExit(op.address, op.size, op.value is not None, op.value or 0), answer)
        elif op.value is None:
            while isinstance(result := vcpu.load(op.address, op.size), MmioExit):
                self._answered(result, answer)
        else:
            while isinstance(result := vcpu.store(op.address, op.size, op.value), MmioExit):
                self._answered(result, answer)
        return result if op.value is None else None

    def _answered(self, exit: MmioExit | PioExit, answer: int) -> int:
        if not exit.is_write:
            exit.data = answer
        self.exits.append(exit)
        return exit.data
