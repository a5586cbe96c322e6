"""What a BIOS leaves in RAM and in the CMOS for those that come after it: sizes, a few addresses, interrupt vectors.

Stands beside `acpi.py`; `pc.py` puts it in place. Kernels that are loaded without firmware look here too: Xen and
GNU Mach for the end of low memory, all for the EBDA; and Xen asks BIOS services that, there being no BIOS, all answer
"not supported". By IBM's PS/2 and PC BIOS Interface Technical Reference ("BIOS Data Areas and ROM Tables") and, for
CMOS bytes beyond the PC/AT's, what SeaBIOS and QEMU agree on.
"""

from __future__ import annotations

import struct
from typing import Final

from iobus.pc import layout

_SERIAL_PORTS: Final = 0x400
_EBDA_SEGMENT: Final = 0x40E
_EQUIPMENT: Final = 0x410
_BASE_MEMORY: Final = 0x413

_COPROCESSOR, _POINTING_DEVICE, _ONE_SERIAL_PORT = 1 << 1, 1 << 2, 1 << 9
EQUIPMENT: Final = _COPROCESSOR | _POINTING_DEVICE | _ONE_SERIAL_PORT

_BIOS_SEGMENT: Final = 0xF000
_IRET_AT: Final = 0xFF53
"""Where every PC's BIOS has an IRET, of interrupts that nobody serves."""
_IRET: Final = b"\xcf"
_FAIL: Final = bytes.fromhex("55 89e5 804e0601 5d cf")
"""push bp; mov bp, sp; or byte ptr [bp + 6], 1; pop bp; iret: the caller gets the carry flag, which is an error."""
_SERVICES: Final = range(0x10, 0x1B)
"""The BIOS's services, by interrupt vector: video, disk, memory, keyboard, ..."""

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20


def pieces() -> list[tuple[int, bytes]]:
    """Return what is in RAM: guest physical address and bytes."""
    vectors = [(_IRET_AT + (1 if vector in _SERVICES else 0)) | _BIOS_SEGMENT << 16 for vector in range(256)]
    return [
        (0, struct.pack("<256I", *vectors)),
        ((_BIOS_SEGMENT << 4) + _IRET_AT, _IRET + _FAIL),
        (_SERIAL_PORTS, struct.pack("<H", layout.COM1)),
        (_EBDA_SEGMENT, struct.pack("<H", layout.EBDA >> 4)),
        (_EQUIPMENT, struct.pack("<H", EQUIPMENT)),
        (_BASE_MEMORY, struct.pack("<H", layout.EBDA // _KIB)),
        (layout.EBDA, bytes([(layout.VGA_HOLE[0] - layout.EBDA) // _KIB])),  # its own size in KiB
    ]


def cmos(memory: int, cpus: int) -> dict[int, int]:
    """Return the CMOS bytes that tell of `memory` bytes of RAM and of the CPUs, by index."""
    low = min(memory, layout.RAM_BELOW_4G)
    fields = {
        0x15: (640, 2),  # KiB of base memory
        0x17: (min((low - _MIB) // _KIB, 0xFFFF), 2),  # KiB above 1 MiB
        0x30: (min((low - _MIB) // _KIB, 0xFFFF), 2),  # the same, as found by the BIOS
        0x34: (max(low - 16 * _MIB, 0) >> 16, 2),  # 64 KiB units above 16 MiB
        0x5B: (max(memory - layout.RAM_BELOW_4G, 0) >> 16, 3),  # the same above 4 GiB
        0x5F: (cpus - 1, 1),
        0x14: (EQUIPMENT & 0xFF, 1),
    }
    return {
        index + offset: byte
        for index, (value, size) in fields.items()
        for offset, byte in enumerate(value.to_bytes(size, "little"))
    }
