"""What an access from a guest costs: a loop of 32-bit reads, or writes, of one register, on Unicorn.

iobus's whole path (engine, lock, vCPU bus, machine bus, device) on a PC, beside the official binding of
the same library with `mmio_map` and a Python callback that calls the same device. The guest's loop is
the same bytes on both: 32-bit protected mode, flat segments, no paging. A last row tells what a trace costs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

import unicorn
from unicorn import x86_const

from benchmarks.device import SCRATCH, MyDevice
from benchmarks.report import Row
from iobus.cpu_registers import Registers, Segment
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import HltExit
from iobus.machine import Machine
from iobus.pc.pc import MINIMUM_MEMORY, Pc
from iobus.trace import JsonLines, Tracer

CODE_AT: Final = 0x10000
DEVICE_AT: Final = 0xD0000000
LENGTH: Final = 0x1000

# EDI: the register's address. ECX: how often.
READS: Final = bytes.fromhex(
    "8b07"  # again:  mov eax, [edi]
    "49"  #           dec ecx
    "75fb"  #         jnz again
    "f4"  #           hlt
)
WRITES: Final = bytes.fromhex(
    "890f"  # again:  mov [edi], ecx
    "49"  #           dec ecx
    "75fb"  #         jnz again
    "f4"  #           hlt
)

Guest = Callable[[bytes, int], int]
"""Runs a loop so many times; returns ns."""


def run(quick: bool) -> list[Row]:
    """Measure reads and writes and return the rows."""
    rounds, accesses = (2, 1_000) if quick else (100, 5_000)
    device, other = MyDevice(), MyDevice()
    rows: list[Row] = []
    with Pc(UnicornEngine(), memory=MINIMUM_MEMORY).machine as machine:
        machine.mmio.attach(device, DEVICE_AT, LENGTH)

        def on_iobus(code: bytes, count: int) -> int:
            return run_loop(machine, code, count)

        on_binding = _official_binding(other)
        for name, code in (("MMIO read from a guest", READS), ("MMIO write from a guest", WRITES)):
            iobus, peer = best((on_iobus, on_binding), code, accesses, rounds)
            rows.append(Row("mmio", name, "ns", "unicorn mmio_map", iobus, peer, goal=1.0))
        with Path(os.devnull).open("w") as nowhere, Tracer(machine, JsonLines(nowhere)):
            traced = best((on_iobus,), READS, accesses, rounds)[0]
        rows.append(Row("mmio", "MMIO read, traced as JSON lines", "ns", "untraced", traced, rows[0].iobus))
    # The last write of each loop has ECX = 1: both sides made every access.
    if (device.scratch, other.scratch) != (1, 1):
        raise RuntimeError(f"the last writes left {device.scratch} and {other.scratch} in SCRATCH, not 1 and 1")
    return rows


def run_loop(machine: Machine, code: bytes, count: int) -> int:
    """Run a loop of `count` accesses on iobus; return ns."""
    machine.memory.write(CODE_AT, code)
    vcpu = machine.vcpus[0]
    vcpu.registers = registers(count)
    start = perf_counter_ns()
    exit = machine.run()
    elapsed = perf_counter_ns() - start
    if not isinstance(exit, HltExit):
        raise RuntimeError(f"the loop ended with {exit}, not at its HLT")
    return elapsed


def best(guests: tuple[Guest, ...], code: bytes, accesses: int, rounds: int) -> list[float]:
    """ns per access of each, the best of rounds in turn."""
    for guest in guests:  # translate the loop first
        guest(code, 100)
    best = [float("inf")] * len(guests)
    for _ in range(rounds):
        for index, guest in enumerate(guests):
            best[index] = min(best[index], guest(code, accesses) / accesses)
    return best


def registers(count: int) -> Registers:
    data = Segment(0x10, 0, 0xFFFFFFFF, 0xC093)
    return Registers(
        rip=CODE_AT, rdi=DEVICE_AT + SCRATCH, rcx=count, cr0=0x11,
        cs=Segment(0x8, 0, 0xFFFFFFFF, 0xC09B), ds=data, es=data, ss=data,
    )  # fmt: skip


def _official_binding(device: MyDevice) -> Guest:
    def read(uc: Any, offset: int, size: int, user_data: Any) -> int:
        return device.read(offset, size)

    def write(uc: Any, offset: int, size: int, value: int, user_data: Any) -> None:
        device.write(offset, size, value)

    binding: Any = unicorn  # it has no types
    uc = binding.Uc(binding.UC_ARCH_X86, binding.UC_MODE_32)
    uc.mem_map(0, 0xA0000)
    uc.mmio_map(DEVICE_AT, LENGTH, read, None, write, None)

    def guest(code: bytes, count: int) -> int:
        uc.mem_write(CODE_AT, code)
        uc.ctl_remove_cache(CODE_AT, CODE_AT + len(code))
        uc.reg_write(x86_const.UC_X86_REG_EDI, DEVICE_AT + SCRATCH)
        uc.reg_write(x86_const.UC_X86_REG_ECX, count)
        start = perf_counter_ns()
        uc.emu_start(CODE_AT, CODE_AT + len(code))
        elapsed = perf_counter_ns() - start
        if uc.reg_read(x86_const.UC_X86_REG_ECX):
            raise RuntimeError("the loop on the official binding did not reach its end")
        return elapsed

    return guest
