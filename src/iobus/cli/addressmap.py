"""`iobus map`: RAM and every region of every bus, by address."""

from __future__ import annotations

import argparse

from iobus.bus import Bus
from iobus.cli.arguments import attach_devices, make_pc


def run(options: argparse.Namespace) -> None:
    """Print the map of a PC with these devices; no guest is booted."""
    pc = make_pc(options.memory, None)
    attach_devices(pc, options.device)
    machine = pc.machine
    print("memory")
    rows = [(slot.base, slot.size, "RAM", "") for slot in machine.memory.slots]
    rows += _regions(machine.mmio)
    for vcpu in machine.vcpus:
        rows += _regions(vcpu.mmio)
    _print(rows, 16)
    print("ports")
    _print(_regions(machine.pio), 4)


def _regions(bus: Bus) -> list[tuple[int, int, str, str]]:
    return [
        (region.base, region.length, region.name, f"{bus.name}, priority {region.priority}")
        for region in bus.regions
        if region.enabled
    ]


def _print(rows: list[tuple[int, int, str, str]], digits: int) -> None:
    for base, length, name, where in sorted(rows):
        print(f"  {base:0{digits}x}-{base + length - 1:0{digits}x} {length:>12,}  {name:<16} {where}".rstrip())
