"""`iobus map`: who answers which address of the PC, RAM included, before a guest has moved anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iobus.cli.devices import DeviceSpec, attach_devices
from iobus.cli.outcome import UsageError
from iobus.pc.pc import Pc

_HEADINGS = ("base", "end", "size", "bus", "priority", "name")


def print_map(*, memory: int, devices: Sequence[DeviceSpec]) -> None:
    """Print a line for each region and RAM slot, in the order of the addresses of each bus."""
    try:
        pc = Pc(memory=memory)
    except ValueError as exc:
        raise UsageError(f"--memory: {exc}") from None
    try:
        attach_devices(pc, devices)
        rows = [_HEADINGS, *_rows(pc)]
    finally:
        pc.machine.close()
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        cells = [
            cell.rjust(width) if column < 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _rows(pc: Pc) -> Iterator[tuple[str, ...]]:
    machine = pc.machine
    for bus in machine.buses:
        found = [
            (region.base, region.length, str(region.priority), region.name + _remark(region.enabled, region.in_range))
            for region in bus.regions
        ]
        if bus is machine.mmio:
            found += [(slot.base, slot.size, "-", "RAM") for slot in machine.memory.slots]
        for base, size, priority, name in sorted(found):
            yield f"{base:#x}", f"{base + size:#x}", f"{size:#x}", bus.name, priority, name


def _remark(enabled: bool, in_range: object) -> str:
    remarks = [] if enabled else ["disabled"]
    if in_range is not None:
        remarks.append("asked at each access")
    return f" ({', '.join(remarks)})" if remarks else ""
