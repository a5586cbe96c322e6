"""`--trace`: one line of text for each access, claimed or not. Above the observers of the vCPUs' access paths.

A line is the guest's time in seconds, r or w, the bus, the address, the size in bytes, the value and the region:

    2.718281 w mmio 0xd0000004 4 0x0000cafe Scratch
    2.718290 r mmio 0xd0001000 4 0xffffffff (unclaimed)
"""

from __future__ import annotations

from collections.abc import Callable

from iobus.machine import Machine
from iobus.path import Access, AccessPath


def trace(machine: Machine, emit: Callable[[str], None]) -> None:
    """Call `emit` with a line for each access from now on."""

    def observer_of(path: AccessPath) -> Callable[[Access], None]:
        def observe(access: Access) -> None:
            region = access.region
            bus, name = (path.shared, "(unclaimed)") if region is None else (region.bus, region.name)
            seconds, verb = machine.clock.now() / 1e9, "w" if access.is_write else "r"
            value = f"{access.value:#0{2 + 2 * access.size}x}"
            emit(f"{seconds:.6f} {verb} {bus.name} {access.address:#x} {access.size} {value} {name}")

        return observe

    for path in paths(machine):
        path.observer = observer_of(path)


def paths(machine: Machine) -> list[AccessPath]:
    """Return the access paths of the machine's vCPUs."""
    return [path for vcpu in machine.vcpus for path in (vcpu.mmio_path, vcpu.pio_path)]
