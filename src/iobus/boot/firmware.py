"""Firmware images: a file whose bytes are a ROM that ends at 4 GiB. `read_firmware`.

Stands on `handover.py`. There is nothing to load: `pc/firmware.py` puts the ROM in the PC, and the CPU starts at the
reset vector, 16 bytes below 4 GiB, in real mode.
"""

from __future__ import annotations

import os
from typing import Final

from iobus.boot.handover import BootError, read_file
from iobus.memory import PAGE_SIZE
from iobus.pc.firmware import LARGEST

_RESET_VECTOR: Final = -16


def read_firmware(path: str | os.PathLike[str]) -> bytes:
    """Return the ROM. Raises `BootError` where the file is none."""
    data = read_file(path, "firmware")
    if not data or len(data) % PAGE_SIZE or len(data) > LARGEST:
        raise BootError(
            f"firmware {path} has {len(data)} bytes; a ROM image has 4 KiB to 8 MiB, in whole pages of 4096 bytes"
        )
    if not any(data[_RESET_VECTOR:]):
        raise BootError(f"firmware {path} has nothing but zeros in its last 16 bytes, where the CPU starts")
    return data
