"""Where everything is in the PC: guest physical addresses, ports, interrupt lines. No code.

Addresses are those of an IBM PC/AT with an ICH-like chipset, which is what ACPI tells the guest too.
"""

from typing import Final

# Guest physical addresses, in bytes.
EBDA: Final = 0x9FC00
"""End of usable low RAM; the extended BIOS data area lies from here to 0xA0000."""
VGA_HOLE: Final = (0xA0000, 0xC0000)
"""No RAM here: the display adapter's window."""
ACPI_TABLES: Final = 0xE0000
"""The RSDP and all tables, in the BIOS area [0xE0000, 0x100000) that guests search."""
BIOS_AREA_END: Final = 0x100000
RAM_BELOW_4G: Final = 0xC0000000
"""RAM up to here; more of it continues at 4 GiB."""
PCI_MMIO: Final = (0xC0000000, 0xFEC00000)
"""Where users' devices belong: no RAM and no chipset device is in this range."""
IOAPIC: Final = 0xFEC00000
HPET: Final = 0xFED00000
LAPIC: Final = 0xFEE00000
TEST_MEMORY: Final = 0xFF000000
"""Of the test device (`host_interface.py`)."""

# I/O ports.
PIC_MASTER: Final = 0x20
PIC_SLAVE: Final = 0xA0
ELCR: Final = 0x4D0
PIT: Final = 0x40
SYSTEM_CONTROL_B: Final = 0x61
I8042_DATA: Final = 0x60
I8042_COMMAND: Final = 0x64
RTC: Final = 0x70
POST: Final = 0x80
SYSTEM_CONTROL_A: Final = 0x92
COM1: Final = 0x3F8
RESET_CONTROL: Final = 0xCF9
PCI_CONFIG: Final = 0xCF8
"""CONFIG_ADDRESS, and 4 ports on CONFIG_DATA. The reset register lies within, as on a PC."""
ACPI_PM: Final = 0x600
"""PM1a event block at +0 (4 bytes), PM1a control at +4 (2 bytes), PM timer at +8 (4 bytes)."""

# I/O ports of what only emulators have (`host_interface.py`).
TEST_PORTS: Final = 0xE0
DEBUG_EXIT: Final = 0xF4
DEBUG_CONSOLE: Final = 0x402
FW_CFG: Final = 0x510
TEST_LINES: Final = 0x2000
SHUTDOWN: Final = 0x8900

# ISA interrupt lines. Line n is 8259 input n and IOAPIC pin n, but the timer's is IOAPIC pin 2.
IRQ_TIMER: Final = 0
IRQ_KEYBOARD: Final = 1
IRQ_COM1: Final = 4
IRQ_RTC: Final = 8
IRQ_SCI: Final = 9
"""ACPI's system control interrupt: level-triggered, active high."""
IRQ_MOUSE: Final = 12
TIMER_GSI: Final = 2
HPET_IRQS: Final = ((20, 21, 22, 23), (20, 21, 22, 23), (11, 20, 21, 22, 23))
"""Which lines each HPET timer can be routed to, as in Intel's chipsets."""

IOAPIC_ID: Final = 0
"""The IOAPIC's own ID; LAPIC IDs are the vCPU numbers."""
