"""The ACPI tables of the PC: what the guest is told about its processors, interrupts and fixed devices.

`tables` returns RSDP, FACS, DSDT, FADT, MADT, HPET, RSDT and XSDT as one piece of memory, to be put at its
base before the guest runs. The formats are those of the ACPI specification 6.5, chapter 5; the DSDT's
terms are encoded by `aml.py`, the addresses come from `layout.py`. The machine is in ACPI mode from
power-on, has no PCI, and sleeps in S5 (soft off) only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from iobus.devices import hpet
from iobus.devices.acpi_pm import PM1_CNT, PM1_STS, PM_TMR, S5_SLP_TYP, AcpiPm
from iobus.pc import aml, layout

_OEM_ID: Final = b"IOBUS "
_OEM_TABLE_ID: Final = b"IOBUS PC"
_CREATOR_ID: Final = b"IOBS"
_END: Final = 0x100000  # of the BIOS area, and of what a real-mode address reaches

_IRQ_CASCADE: Final = 2
"""The input of the master 8259 that its slave drives."""

_STA_WORKING: Final = 0x0F
"""_STA (6.3.7): present, enabled and decoding, shown in a user interface, functioning."""

# MPS INTI flags (5.2.12.5): bits 1:0 polarity (01 active high), bits 3:2 trigger (01 edge, 11 level).
_EDGE_HIGH: Final = 0b01_01
_LEVEL_HIGH: Final = 0b11_01

# FADT fixed feature flags (5.2.9, table 5.10). PWR_BUTTON (bit 4) clear: the power button is fixed hardware.
_WBINVD: Final = 1 << 0
_PROC_C1: Final = 1 << 2
_SLP_BUTTON: Final = 1 << 5  # no sleep button in fixed hardware
_FIX_RTC: Final = 1 << 6  # no RTC wake status in fixed hardware
_TMR_VAL_EXT: Final = 1 << 8
_RESET_REG_SUP: Final = 1 << 10

# FADT IA-PC boot architecture flags (5.2.9.3).
_LEGACY_DEVICES: Final = 1 << 0
_8042: Final = 1 << 1


@dataclass(frozen=True, slots=True)
class AcpiDevice:
    """A device of the DSDT: what a guest needs to find its driver and its resources."""

    name: str
    """Its name in the ACPI namespace below \\_SB: four characters."""
    hid: str
    """Its hardware ID, as "PNP0501" or "LNRO0005"."""
    resources: tuple[bytes, ...] = ()
    """What _CRS lists, in order: `aml.io`, `aml.memory32_fixed`, `aml.interrupt`, …"""
    uid: int = 0
    """Tells devices of one hardware ID apart."""
    terms: tuple[bytes, ...] = ()
    """What else it has: `aml.method`, `aml.name`, …"""

    def encode(self) -> bytes:
        """The Device term."""
        return aml.device(
            self.name,
            aml.name("_HID", aml.hardware_id(self.hid)),
            aml.name("_UID", aml.integer(self.uid)),
            aml.name("_STA", aml.integer(_STA_WORKING)),
            *([aml.name("_CRS", aml.resource_template(*self.resources))] if self.resources else []),
            *self.terms,
        )


GENERIC_EVENT_DEVICE: Final = "ACPI0013"
"""A device all of whose interrupts the system handles itself, by its method _EVT (5.6.9)."""


def user_device(number: int, hid: str, base: int, length: int, gsis: Sequence[int]) -> AcpiDevice:
    """Return a device with one memory range and interrupts. `number`, 0-4095, tells it from others.

    The interrupts are level-triggered, active high. A Generic Event Device has edge-triggered ones and nothing else,
    and an _EVT that does nothing: the system counts its interrupts. Raises `ValueError`.
    """
    aml.hardware_id(hid)  # raises for what is none
    if hid == GENERIC_EVENT_DEVICE:
        interrupts = tuple(aml.interrupt(gsi) for gsi in gsis)
        return AcpiDevice(f"U{number:03X}", hid, interrupts, number, (aml.method("_EVT", 1),))
    interrupts = tuple(aml.interrupt(gsi, level=True) for gsi in gsis)
    return AcpiDevice(f"U{number:03X}", hid, (aml.memory32_fixed(base, length), *interrupts), number)


def ssdt(*devices: AcpiDevice) -> bytes:
    """Return a Secondary System Description Table (5.2.11.2) that has `devices` below \\_SB."""
    return _table("SSDT", 2, aml.scope("\\_SB_", *(device.encode() for device in devices)))


DEVICES: Final = (
    AcpiDevice("PIC_", "PNP0000", (
        aml.io(layout.PIC_MASTER, 2),
        aml.io(layout.PIC_SLAVE, 2),
        aml.io(layout.ELCR, 2),
        aml.irq_no_flags(_IRQ_CASCADE),
    )),
    AcpiDevice("TIMR", "PNP0100", (aml.io(layout.PIT, 4), aml.irq_no_flags(layout.IRQ_TIMER))),
    AcpiDevice("RTC_", "PNP0B00", (aml.io(layout.RTC, 2), aml.irq_no_flags(layout.IRQ_RTC))),
    AcpiDevice("KBD_", "PNP0303", (
        aml.io(layout.I8042_DATA, 1),
        aml.io(layout.I8042_COMMAND, 1),
        aml.irq_no_flags(layout.IRQ_KEYBOARD),
    )),
    AcpiDevice("MOU_", "PNP0F13", (aml.irq_no_flags(layout.IRQ_MOUSE),)),
    AcpiDevice("HPET", "PNP0103", (aml.memory32_fixed(layout.HPET, hpet.Hpet.length),)),
    AcpiDevice("SPKR", "PNP0800", (aml.io(layout.SYSTEM_CONTROL_B, 1),)),
    AcpiDevice("COM1", "PNP0501", (aml.io(layout.COM1, 8), aml.irq_no_flags(layout.IRQ_COM1))),
    # Motherboard resources: ports in use that no other device names.
    AcpiDevice("MBRD", "PNP0C02", (
        aml.io(layout.POST, 16),
        aml.io(layout.SYSTEM_CONTROL_A, 1),
        aml.io(layout.RESET_CONTROL, 1),
        aml.io(layout.ACPI_PM, AcpiPm.length),
    )),
)  # fmt: skip
"""The devices that every PC of ours has, below \\_SB."""


def tables(cpus: int, *, base: int = layout.ACPI_TABLES, extra_devices: Sequence[AcpiDevice] = ()) -> bytes:
    """Return the memory that is to stand at `base`, the RSDP first.

    `cpus` processors, 1-255, have the LAPIC IDs from 0. Guests find the RSDP by searching where
    `base`, a multiple of 16, is by default; elsewhere below 1 MiB their loader must be told of it.
    `extra_devices` stand in the DSDT after the PC's own. Raises `ValueError`.
    """
    if not 1 <= cpus <= 255:
        raise ValueError(f"{cpus} processors: LAPIC IDs are 8 bits wide with 255 as broadcast, so 1-255 can be")
    if base < 0 or base % 16:
        raise ValueError(f"ACPI tables at {base:#x}: guests look for the RSDP at multiples of 16 only")
    image = bytearray(_RSDP.size)

    def place(table: bytes, alignment: int = 16) -> int:
        image.extend(bytes(-(base + len(image)) % alignment))
        image.extend(table)
        return base + len(image) - len(table)

    facs = place(_facs(), 64)
    dsdt = place(_table("DSDT", 2, _dsdt(cpus, extra_devices)))
    listed = [place(_table("FACP", 6, _fadt(facs, dsdt))), place(_table("APIC", 6, _madt(cpus)))]
    listed.append(place(_table("HPET", 1, _hpet())))
    rsdt = place(_table("RSDT", 1, struct.pack(f"<{len(listed)}I", *listed)))
    xsdt = place(_table("XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    if base + len(image) > _END:
        raise ValueError(f"ACPI tables of {len(image):#x} bytes at {base:#x} do not end by {_END:#x}")
    image[: _RSDP.size] = _rsdp(rsdt, xsdt)
    return bytes(image)


_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
"""Signature, Length, Revision, Checksum, OEMID, OEM Table ID, OEM Revision, Creator ID, Creator Revision (5.2.6)."""

_RSDP: Final = struct.Struct("<8sB6sBIIQB3x")
"""Signature, Checksum, OEMID, Revision, RsdtAddress, Length, XsdtAddress, Extended Checksum (5.2.5.3)."""
RSDP_SIZE: Final = _RSDP.size
"""In bytes: what stands at the beginning of `tables`."""


def _checksum(data: bytes) -> int:
    """The byte that makes the sum of `data` and itself zero."""
    return -sum(data) & 0xFF


def _table(signature: str, revision: int, body: bytes) -> bytes:
    """A System Description Table: the header, with the checksum right, and `body`."""
    length = _HEADER.size + len(body)

    def header(checksum: int) -> bytes:
        return _HEADER.pack(
            signature.encode(), length, revision, checksum, _OEM_ID, _OEM_TABLE_ID, 1, _CREATOR_ID, 1
        )  # fmt: skip

    return header(_checksum(header(0) + body)) + body


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    """The Root System Description Pointer. The RSDT is for guests that know no XSDT."""

    def rsdp(checksum: int, extended: int) -> bytes:
        return _RSDP.pack(b"RSD PTR ", checksum, _OEM_ID, 2, rsdt, _RSDP.size, xsdt, extended)

    checksum = _checksum(rsdp(0, 0)[:20])  # the ACPI 1.0 part
    return rsdp(checksum, _checksum(rsdp(checksum, 0)))


def _facs() -> bytes:
    """The Firmware ACPI Control Structure (5.2.10), version 2: no waking vectors, the Global Lock free."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _gas(port: int, bits: int, access_size: int) -> bytes:
    """A Generic Address Structure (5.2.3.2) in I/O space; access size 1 byte, 2 word, 3 dword."""
    return struct.pack("<BBBBQ", 1, bits, 0, access_size, port)


def _fadt(facs: int, dsdt: int) -> bytes:
    """The Fixed ACPI Description Table (5.2.9), version 6.5, after its header."""
    pm1a_evt, pm1a_cnt, pm_tmr = layout.ACPI_PM + PM1_STS, layout.ACPI_PM + PM1_CNT, layout.ACPI_PM + PM_TMR
    none = bytes(12)  # the GAS of a register block that is not there
    flags = _WBINVD | _PROC_C1 | _SLP_BUTTON | _FIX_RTC | _TMR_VAL_EXT | _RESET_REG_SUP
    return b"".join((
        struct.pack("<II", facs, dsdt),  # FIRMWARE_CTRL, DSDT
        struct.pack("<BBH", 0, 0, layout.IRQ_SCI),  # reserved, Preferred_PM_Profile: unspecified, SCI_INT
        struct.pack("<IBBBB", 0, 0, 0, 0, 0),  # SMI_CMD: always in ACPI mode; ACPI_ENABLE to PSTATE_CNT
        struct.pack("<II", pm1a_evt, 0),  # PM1a_EVT_BLK, PM1b_EVT_BLK
        struct.pack("<II", pm1a_cnt, 0),  # PM1a_CNT_BLK, PM1b_CNT_BLK
        struct.pack("<IIII", 0, pm_tmr, 0, 0),  # PM2_CNT_BLK, PM_TMR_BLK, GPE0_BLK, GPE1_BLK
        struct.pack("<BBBB", 4, 2, 0, 4),  # PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN
        struct.pack("<BBBB", 0, 0, 0, 0),  # GPE0_BLK_LEN, GPE1_BLK_LEN, GPE1_BASE, CST_CNT
        struct.pack("<HH", 101, 1001),  # P_LVL2_LAT, P_LVL3_LAT: above 100 and 1000 us, no C2 and no C3
        struct.pack("<HHBB", 0, 0, 0, 0),  # FLUSH_SIZE, FLUSH_STRIDE: WBINVD works; DUTY_OFFSET, DUTY_WIDTH
        struct.pack("<BBB", 0, 0, 0x32),  # DAY_ALRM, MON_ALRM, CENTURY: indexes into the RTC's RAM
        struct.pack("<HBI", _LEGACY_DEVICES | _8042, 0, flags),  # IAPC_BOOT_ARCH, reserved, Flags
        _gas(layout.RESET_CONTROL, 8, 1),  # RESET_REG
        struct.pack("<BHB", 6, 0, 5),  # RESET_VALUE, ARM_BOOT_ARCH, FADT Minor Version
        struct.pack("<QQ", 0, dsdt),  # X_FIRMWARE_CTRL: must be zero beside a FIRMWARE_CTRL; X_DSDT
        _gas(pm1a_evt, 32, 2), none,  # X_PM1a_EVT_BLK, X_PM1b_EVT_BLK
        _gas(pm1a_cnt, 16, 2), none,  # X_PM1a_CNT_BLK, X_PM1b_CNT_BLK
        none, _gas(pm_tmr, 32, 3), none, none,  # X_PM2_CNT_BLK, X_PM_TMR_BLK, X_GPE0_BLK, X_GPE1_BLK
        none, none,  # SLEEP_CONTROL_REG, SLEEP_STATUS_REG: of hardware-reduced ACPI
        b"iobus".ljust(8, b"\0"),  # Hypervisor Vendor Identity
    ))  # fmt: skip


def _madt(cpus: int) -> bytes:
    """The Multiple APIC Description Table (5.2.12) after its header."""
    pcat_compat = 1  # there are two 8259s to be masked before the APICs are used
    parts = [struct.pack("<II", layout.LAPIC, pcat_compat)]
    # Processor Local APIC: ACPI Processor UID, APIC ID, flags: enabled.
    parts += [struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(cpus)]
    # I/O APIC: ID, reserved, address, global system interrupt base.
    parts.append(struct.pack("<BBBBII", 1, 12, layout.IOAPIC_ID, 0, layout.IOAPIC, 0))
    # Interrupt Source Override: bus ISA, source, global system interrupt, flags.
    parts.append(struct.pack("<BBBBIH", 2, 10, 0, layout.IRQ_TIMER, layout.TIMER_GSI, _EDGE_HIGH))
    parts.append(struct.pack("<BBBBIH", 2, 10, 0, layout.IRQ_SCI, layout.IRQ_SCI, _LEVEL_HIGH))
    # Local APIC NMI: all processors, flags, LINT1.
    parts.append(struct.pack("<BBBHB", 4, 6, 0xFF, _EDGE_HIGH, 1))
    return b"".join(parts)


def _hpet() -> bytes:
    """The HPET description table (IA-PC HPET Specification 1.0a, section 3.2.4) after its header."""
    address = struct.pack("<BBBBQ", 0, 64, 0, 0, layout.HPET)  # a GAS in memory space
    # HPET Number, Main Counter Minimum Clock_tick in Periodic Mode, page protection: none.
    return struct.pack("<I", hpet.ID) + address + struct.pack("<BHB", 0, hpet.SHORTEST_REPEAT, 0)


def _dsdt(cpus: int, extra_devices: Sequence[AcpiDevice]) -> bytes:
    """The terms of the Differentiated System Description Table."""
    processors = [AcpiDevice(f"C{cpu:03X}", "ACPI0007", uid=cpu) for cpu in range(cpus)]
    devices = [*processors, *DEVICES, *extra_devices]
    names = [device.name for device in devices]
    for device in extra_devices:
        if names.count(device.name) > 1:
            raise ValueError(f"ACPI device {device.name!r} ({device.hid}): there are two of this name below \\_SB")
    # SLP_TYP of PM1a_CNT and PM1b_CNT for soft off, two elements reserved (7.4.2).
    s5 = aml.package(aml.integer(S5_SLP_TYP), aml.integer(S5_SLP_TYP), aml.integer(0), aml.integer(0))
    return aml.name("_S5_", s5) + aml.scope("_SB_", *(device.encode() for device in devices))
