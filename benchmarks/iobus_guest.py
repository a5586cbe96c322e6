"""The process that boots a guest on iobus for `boot.py` and `guest.py`: a PC, and its serial line on stdio.

    python -m benchmarks.iobus_guest KERNEL INITRD COMMAND_LINE MEBIBYTES CPUS ENGINE

Does what QEMU is asked to do beside it, and nothing else: no terminal, no trace, no user's device.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from iobus.boot.handover import e820
from iobus.boot.linux import LinuxKernel, read_initrd
from iobus.cpu_registers import Registers, Segment
from iobus.engines import choose
from iobus.pc import layout
from iobus.pc.pc import Pc


def main(kernel: str, initrd: str, command_line: str, mebibytes: str, cpus: str, engine: str) -> None:
    """Boot, and run until the guest ends."""
    pc = Pc(choose.make(engine), memory=int(mebibytes) << 20, console=_console, cpus=int(cpus))
    entry = LinuxKernel.read(kernel).load(
        pc.machine.memory,
        initrd=read_initrd(Path(initrd)),
        command_line=command_line,
        acpi_rsdp=layout.ACPI_TABLES,
        e820=e820(pc.machine.memory),
    )
    data = Segment(entry.ds, 0, 0xFFFFFFFF, 0xC093)
    pc.machine.vcpus[0].registers = Registers(
        rip=entry.rip, rsi=entry.rsi, rsp=entry.rsp, rflags=entry.rflags,
        cr0=entry.cr0, cr3=entry.cr3, cr4=entry.cr4, efer=entry.efer,
        gdt_base=entry.gdt_base, gdt_limit=entry.gdt_limit,
        cs=Segment(entry.cs, 0, 0xFFFFFFFF, 0xA09B), ds=data, es=data, ss=data,
    )  # fmt: skip
    threading.Thread(target=_type, args=(pc,), daemon=True).start()
    with pc.machine:
        print(f"benchmark guest ended: {pc.machine.run()}", file=sys.stderr)


def _console(data: bytes) -> None:
    os.write(1, data)


def _type(pc: Pc) -> None:
    while data := os.read(0, 4096):
        pc.type(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
