"""ACPI's tables for firmware to place: the three fw_cfg files that QEMU's "linker/loader" interface is made of.

Stands beside `acpi.py`, whose tables it takes apart. Firmware puts the tables where it has room and so must adjust
what is in them: `etc/table-loader` is a list of commands that say how. By QEMU's hw/acpi/bios-linker-loader.c, which
is the interface's definition: allocate room for a file; add a file's address to a pointer; compute a checksum.
"""

from __future__ import annotations

import struct
from typing import Final

from iobus.pc import acpi

TABLES: Final = "etc/acpi/tables"
RSDP: Final = "etc/acpi/rsdp"
LOADER: Final = "etc/table-loader"

_COMMAND: Final = 128
"""The size of a command, in bytes; what it does not use is zero."""
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_FSEG = 1, 2
"""Where: anywhere in RAM, or in the BIOS area, where the RSDP is searched for."""

_HEADER: Final = 36
"""Bytes of a system description table's header: its length at 4, its checksum at 9."""
_ALIGNMENT: Final = 64
"""The FACS's, the strictest of all tables."""
_RSDT_ADDRESS, _XSDT_ADDRESS = 16, 24
_RSDP_CHECKSUM, _RSDP_EXTENDED_CHECKSUM, _RSDP_OLD_SIZE = 8, 32, 20
# Pointers of the FADT: FIRMWARE_CTRL, DSDT, X_DSDT, and their sizes.
_FADT_POINTERS: Final = ((36, 4), (40, 4), (140, 8))


def files(cpus: int) -> dict[str, bytes]:
    """Return the three files by name, for a PC with `cpus` processors."""
    image = bytearray(acpi.tables(cpus, base=0))
    rsdt, xsdt = (int.from_bytes(image[at : at + 4], "little") for at in (_RSDT_ADDRESS, _XSDT_ADDRESS))
    rsdp, shift = image[: acpi.RSDP_SIZE], _ALIGNMENT  # the tables' file begins where the RSDP, and its padding, end

    commands = [_allocate(RSDP, 16, _ZONE_FSEG), _allocate(TABLES, _ALIGNMENT, _ZONE_HIGH)]
    tables = [rsdt, xsdt, *_entries(image, rsdt, 4)]
    pointers = [(table + _HEADER + 4 * index, 4) for table in (rsdt,) for index in range(_count(image, table, 4))]
    pointers += [(table + _HEADER + 8 * index, 8) for table in (xsdt,) for index in range(_count(image, table, 8))]
    for table in tables[2:]:
        if image[table : table + 4] == b"FACP":
            pointers += [(table + at, size) for at, size in _FADT_POINTERS]
            tables.append(int.from_bytes(image[table + 40 : table + 44], "little"))  # the DSDT; a FACS has no checksum
    for at, size in pointers:
        _shift(image, at, size, shift)
        commands.append(_add_pointer(TABLES, TABLES, at - shift, size))
    for table in tables:
        image[table + 9] = 0
        length = int.from_bytes(image[table + 4 : table + 8], "little")
        commands.append(_add_checksum(TABLES, table + 9 - shift, table - shift, length))
    for at, size in ((_RSDT_ADDRESS, 4), (_XSDT_ADDRESS, 8)):
        _shift(rsdp, at, size, shift)
        commands.append(_add_pointer(RSDP, TABLES, at, size))
    rsdp[_RSDP_CHECKSUM] = rsdp[_RSDP_EXTENDED_CHECKSUM] = 0
    commands.append(_add_checksum(RSDP, _RSDP_CHECKSUM, 0, _RSDP_OLD_SIZE))
    commands.append(_add_checksum(RSDP, _RSDP_EXTENDED_CHECKSUM, 0, acpi.RSDP_SIZE))
    return {TABLES: bytes(image[shift:]), RSDP: bytes(rsdp), LOADER: b"".join(commands)}


def _count(image: bytearray, table: int, size: int) -> int:
    """How many pointers an RSDT or XSDT has."""
    return (int.from_bytes(image[table + 4 : table + 8], "little") - _HEADER) // size


def _entries(image: bytearray, table: int, size: int) -> list[int]:
    at = [table + _HEADER + size * index for index in range(_count(image, table, size))]
    return [int.from_bytes(image[where : where + size], "little") for where in at]


def _shift(image: bytearray, at: int, size: int, by: int) -> None:
    """A pointer into the image becomes an offset in the tables' file, to which firmware adds the address."""
    value = int.from_bytes(image[at : at + size], "little") - by
    image[at : at + size] = value.to_bytes(size, "little")


def _name(file: str) -> bytes:
    return file.encode().ljust(56, b"\0")


def _allocate(file: str, alignment: int, zone: int) -> bytes:
    return (struct.pack("<I", _ALLOCATE) + _name(file) + struct.pack("<IB", alignment, zone)).ljust(_COMMAND, b"\0")


def _add_pointer(destination: str, source: str, offset: int, size: int) -> bytes:
    body = _name(destination) + _name(source) + struct.pack("<IB", offset, size)
    return (struct.pack("<I", _ADD_POINTER) + body).ljust(_COMMAND, b"\0")


def _add_checksum(file: str, result: int, start: int, length: int) -> bytes:
    body = _name(file) + struct.pack("<III", result, start, length)
    return (struct.pack("<I", _ADD_CHECKSUM) + body).ljust(_COMMAND, b"\0")
