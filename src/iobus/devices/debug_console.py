"""The debug console: a port whose every byte written is a character of the guest's log.

Stands among the devices; `pc/host_interface.py` puts it at port 0x402, where SeaBIOS and OVMF write their logs.
It reads as 0xE9, by which firmware finds out that it is there (Bochs and QEMU's isa-debugcon).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from iobus.bus import Device

PRESENT: Final = 0xE9


class DebugConsole(Device):
    """One port; `output` gets the bytes."""

    name = "debug-console"
    length: Final = 1

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def read(self, offset: int, size: int) -> int:
        return PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        self._output(value.to_bytes(size, "little"))
