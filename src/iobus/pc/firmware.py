"""What a PC has more of when its guest is firmware: a ROM below 4 GiB, a PCI host bridge, shadow RAM.

Stands beside `pc.py`, which makes a `FirmwareBoard` where it is given a ROM image. The last 128 KiB of the image are
seen below 1 MiB too, as hardware decodes them, until the firmware turns RAM on there by the bridge's PAM registers.
"""

from __future__ import annotations

from typing import Final

from iobus.devices.i440fx import BASE, HostBridge, Shadow
from iobus.devices.pci import PciConfig
from iobus.machine import Machine
from iobus.memory import PAGE_SIZE
from iobus.pc import layout

_ALIASED: Final = 128 << 10
LARGEST: Final = 8 << 20
"""Of a ROM image, in bytes."""


class FirmwareBoard:
    """The ROM and the bridge of `machine`, attached. Raises `ValueError` for a ROM size that cannot be."""

    def __init__(self, machine: Machine, rom: bytes) -> None:
        if len(rom) % PAGE_SIZE or not PAGE_SIZE <= len(rom) <= LARGEST:
            raise ValueError(f"a ROM of {len(rom)} bytes: it must be 4 KiB to 8 MiB, in whole pages of 4096 bytes")
        base = (1 << 32) - len(rom)
        machine.memory.add(base, len(rom), readonly=True)
        machine.memory.program(base, rom)
        self.shadow: Final = Shadow(machine.memory, rom[-_ALIASED:])
        self.pci: Final = PciConfig()
        self.pci.attach(HostBridge(self.shadow.set), 0)
        machine.mmio.attach(self.shadow, BASE, Shadow.length)
        machine.pio.attach(self.pci, layout.PCI_CONFIG, PciConfig.length)
