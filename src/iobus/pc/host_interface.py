"""What a bare-metal guest finds under an emulator and on no PC: configuration, a log, an exit, a test device.

Stands above `pc.py` and the devices it attaches; `iobus run` calls `attach`, `iobus boot` does not. The addresses, in
`layout.py`, are those of QEMU as firmware and KVM's unit-test guests know them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from iobus.devices import fw_cfg
from iobus.devices.debug_console import DebugConsole
from iobus.devices.debug_exit import DebugExitPort, ShutdownPort
from iobus.devices.fw_cfg import FwCfg
from iobus.devices.test_device import EchoMemory, EchoPorts, LineSwitches
from iobus.exits import DebugExit, PowerOffExit
from iobus.pc import layout, table_loader
from iobus.pc.pc import Pc

_E820_RAM = 1


def attach(pc: Pc, log: Callable[[bytes], None]) -> None:
    """Attach all of it. `log` gets what the guest writes to the debug console."""
    machine = pc.machine
    cpus = len(machine.vcpus)
    two = cpus.to_bytes(2, "little")
    items = {
        fw_cfg.UUID: bytes(16),
        fw_cfg.RAM_SIZE: pc.memory_size.to_bytes(8, "little"),
        fw_cfg.NOGRAPHIC: (1).to_bytes(2, "little"),
        fw_cfg.NB_CPUS: two,
        fw_cfg.NUMA: bytes(8),  # no nodes
        fw_cfg.BOOT_MENU: bytes(2),  # none is shown
        fw_cfg.MAX_CPUS: two,
        fw_cfg.KERNEL_DATA: bytes(8),
        fw_cfg.ACPI_TABLES: bytes(2),  # none this way: they are files
        fw_cfg.SMBIOS_ENTRIES: bytes(2),
        fw_cfg.IRQ0_OVERRIDE: b"\1",  # line 0 is the IOAPIC's pin 2
    }
    files = {
        "etc/e820": _e820(pc.memory_size),
        "etc/boot-fail-wait": b"\xff" * 4,  # SeaBIOS, which finds nothing to boot, need not try again
        **table_loader.files(cpus),
    }
    for device, base in (
        (FwCfg(machine.memory, items, files), layout.FW_CFG),
        (DebugConsole(log), layout.DEBUG_CONSOLE),
        (DebugExitPort(lambda code: machine.stop(DebugExit(code))), layout.DEBUG_EXIT),
        (ShutdownPort(lambda: machine.stop(PowerOffExit())), layout.SHUTDOWN),
        (EchoPorts(), layout.TEST_PORTS),
        (LineSwitches([pc.gsi(number, "test device") for number in range(pc.ioapic.pins)]), layout.TEST_LINES),
    ):
        machine.pio.attach(device, base, device.length)
    machine.mmio.attach(EchoMemory(), layout.TEST_MEMORY, EchoMemory.length)


def _e820(size: int) -> bytes:
    """The RAM as firmware is told of it, below and above 4 GiB: address, length, type."""
    low = min(size, layout.RAM_BELOW_4G)
    entries = [(0, low), (1 << 32, size - low)]
    return b"".join(struct.pack("<QQI", base, length, _E820_RAM) for base, length in entries if length)
