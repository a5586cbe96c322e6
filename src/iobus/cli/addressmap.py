"""`iobus map`: who answers which address of the PC, RAM included, before a guest has moved anything.

Above `pc/`; with `--svg` what it finds is drawn by mapsvg.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iobus.bus import Bus
from iobus.cli.devices import DeviceSpec, attach_devices
from iobus.cli.mapsvg import Piece, draw
from iobus.cli.outcome import UsageError, printing
from iobus.memory import HostMemoryError
from iobus.pc.pc import Pc

_HEADINGS = ("base", "end", "size", "bus", "priority", "name")


def print_map(*, memory: int, devices: Sequence[DeviceSpec], svg: Path | None) -> None:
    """Print a line for each region and RAM slot, in the order of the addresses of each bus, or draw them in `svg`."""
    try:
        pc = Pc(memory=memory)
    except (ValueError, HostMemoryError) as exc:
        raise UsageError(f"--memory: {exc}") from None
    try:
        attach_devices(pc, devices)
        lanes = [(bus.name, _pieces(pc, bus)) for bus in pc.machine.buses]
    finally:
        pc.machine.close()
    if svg is None:
        with printing():
            _print(lanes)
        return
    try:
        svg.write_text(draw([(name, [piece for piece, _ in pieces]) for name, pieces in lanes if pieces]))
    except OSError as exc:
        raise UsageError(f"--svg {svg} cannot be written: {exc.strerror}") from exc


def _print(lanes: list[tuple[str, list[tuple[Piece, str]]]]) -> None:
    rows = [_HEADINGS]
    for bus, pieces in lanes:
        for piece, priority in pieces:
            base, size = piece.base, piece.size
            rows.append((f"{base:#x}", f"{base + size:#x}", f"{size:#x}", bus, priority, piece.name))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        cells = [
            cell.rjust(width) if column < 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _pieces(pc: Pc, bus: Bus) -> list[tuple[Piece, str]]:
    """The pieces of a bus with their priorities, by base."""
    found = [
        (
            Piece(
                region.base, region.length, region.name + _remark(region.enabled, region.in_range),
                "device" if region.enabled else "disabled",
            ),
            str(region.priority),
        )
        for region in bus.regions
    ]  # fmt: skip
    if bus is pc.machine.mmio:
        found += [(Piece(slot.base, slot.size, "RAM", "RAM"), "-") for slot in pc.machine.memory.slots]
    return sorted(found)


def _remark(enabled: bool, in_range: object) -> str:
    remarks = [] if enabled else ["disabled"]
    if in_range is not None:
        remarks.append("asked at each access")
    return f" ({', '.join(remarks)})" if remarks else ""
