"""The VGA's window into display memory: four planes of 64 KiB behind 0xA0000-0xBFFFF.

Part of `vga.py`, which attaches it and calls `configure` when a register has changed what an address means.
After the IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem", and FreeVGA, "Accessing the
VGA Display Memory" and "Graphics Registers": which plane and which byte of it an address is (chain 4,
odd/even, sequential), what a write makes of the latches and the CPU's data (write modes 0 to 3), what a
read returns (read modes 0 and 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from iobus.bus import Device, Value
from iobus.devices.vga_registers import (
    BIT_MASK,
    CHAIN_4,
    CHAIN_ODD_EVEN,
    COLOR_COMPARE,
    COLOR_DONT_CARE,
    DATA_ROTATE,
    ENABLE_SET_RESET,
    GRAPHICS_MODE,
    HOST_ODD_EVEN,
    MAP_MASK,
    MEMORY_MODE,
    MISCELLANEOUS,
    RAM_ENABLE,
    READ_MAP_SELECT,
    READ_MODE_1,
    SEQUENTIAL,
    SET_RESET,
    VgaState,
)

_WINDOWS: Final = ((0, 0x20000), (0, 0x10000), (0x10000, 0x18000), (0x18000, 0x20000))
"""By the memory map select, from 0xA0000: its first address and the end."""

_PLANES: Final = tuple(sum(0xFF << 8 * plane for plane in range(4) if mask >> plane & 1) for mask in range(16))
"""A mask of planes as a mask of the latches' bits."""
_EACH: Final = 0x01010101
"""A byte times this is that byte in each plane."""


class VgaMemory(Device):
    """Attach it at 0xA0000. Addresses outside the window that is selected are not decoded."""

    name = "vga-memory"
    length: Final = 0x20000

    def __init__(self, state: VgaState, reset: Callable[[], None]) -> None:
        self._reset = reset
        self.configure(state)

    def reset(self) -> None:
        self._reset()

    def configure(self, state: VgaState) -> None:
        """Follow `state`, whose registers may have changed."""
        self._state, self._memory = state, state.memory
        graphics, mode = state.graphics, state.sequencer[MEMORY_MODE]
        start, end = _WINDOWS[graphics[MISCELLANEOUS] >> 2 & 3]
        decoded = state.enabled and state.misc & RAM_ENABLE
        self._start, self._end = (start, end) if decoded else (0, 0)
        # Text: an even address is a character in plane 0, an odd one its attribute in plane 1, and the CPU's
        # data goes there, and comes from there, as it is. A console writes it by the thousand: not to be slow.
        text = (
            not mode & CHAIN_4 and bool(graphics[MISCELLANEOUS] & CHAIN_ODD_EVEN) and end - start <= 0x10000
        )  # fmt: skip
        self._text_written = (
            text
            and not mode & SEQUENTIAL
            and state.sequencer[MAP_MASK] == 0b0011
            and not graphics[GRAPHICS_MODE] & 3
            and not graphics[DATA_ROTATE]
            and not graphics[ENABLE_SET_RESET] & 0b0011
            and graphics[BIT_MASK] == 0xFF
        )
        self._text_read = (
            text
            and graphics[GRAPHICS_MODE] & (READ_MODE_1 | HOST_ODD_EVEN) == HOST_ODD_EVEN
            and graphics[READ_MAP_SELECT] < 2
        )

    def read(self, offset: int, size: int) -> Value:
        if not self._start <= offset <= self._end - size:
            return NotImplemented  # type: ignore[no-any-return]
        value = 0
        if self._text_read and not (offset | size) & 1:
            at = 4 * (offset - self._start)
            for shift in range(0, 8 * size, 16):
                value |= (self._memory[at] | self._memory[at + 1] << 8) << shift
                at += 8
            self._state.latches = int.from_bytes(self._memory[at - 8 : at - 4], "little")
            return value
        for index in range(size):
            value |= self._read(offset - self._start + index) << 8 * index
        return value

    def write(self, offset: int, size: int, value: int) -> object:
        if not self._start <= offset <= self._end - size:
            return NotImplemented
        if self._text_written and not (offset | size) & 1:
            at = 4 * (offset - self._start)
            for shift in range(0, 8 * size, 16):
                self._memory[at] = value >> shift & 0xFF
                self._memory[at + 1] = value >> shift + 8 & 0xFF
                at += 8
            return None
        for index in range(size):
            self._write(offset - self._start + index, value >> 8 * index & 0xFF)
        return None

    def _within_plane(self, address: int) -> int:
        """Return which byte of the planes `address`, from the window's start, is."""
        if self._state.sequencer[MEMORY_MODE] & CHAIN_4:
            return address & 0xFFFC
        if self._state.graphics[MISCELLANEOUS] & CHAIN_ODD_EVEN:
            return address & 0xFFFE | address >> 16  # A0, which chose the planes, gives way to A16
        return address & 0xFFFF

    def _read(self, address: int) -> int:
        state, graphics = self._state, self._state.graphics
        at = 4 * self._within_plane(address)
        latches = state.latches = int.from_bytes(self._memory[at : at + 4], "little")
        mode, plane = graphics[GRAPHICS_MODE], graphics[READ_MAP_SELECT]
        if mode & READ_MODE_1:  # a bit for each pixel whose colour, where it matters, is the one compared with
            differs = (latches ^ _PLANES[graphics[COLOR_COMPARE]]) & _PLANES[graphics[COLOR_DONT_CARE]]
            return ~(differs | differs >> 8 | differs >> 16 | differs >> 24) & 0xFF
        if state.sequencer[MEMORY_MODE] & CHAIN_4:
            plane = address & 3
        elif mode & HOST_ODD_EVEN:
            plane = plane & 2 | address & 1
        return latches >> 8 * plane & 0xFF

    def _write(self, address: int, value: int) -> None:
        state, memory_mode = self._state, self._state.sequencer[MEMORY_MODE]
        planes = state.sequencer[MAP_MASK]
        if memory_mode & CHAIN_4:
            planes &= 1 << (address & 3)
        elif not memory_mode & SEQUENTIAL:
            planes &= 0b0101 << (address & 1)
        at = 4 * self._within_plane(address)
        written = _PLANES[planes]
        old = int.from_bytes(self._memory[at : at + 4], "little")
        new = old & ~written | self._data(value) & written
        self._memory[at : at + 4] = new.to_bytes(4, "little")

    def _data(self, value: int) -> int:
        """What a write of `value` brings to the planes, by the write mode."""
        graphics, latches = self._state.graphics, self._state.latches
        mode = graphics[GRAPHICS_MODE] & 3
        if mode == 1:
            return latches
        rotate = graphics[DATA_ROTATE] & 7
        bits = graphics[BIT_MASK]
        set_reset = _PLANES[graphics[SET_RESET]]
        if mode == 2:
            data = _PLANES[value & 0xF]
        else:
            value = (value >> rotate | value << 8 - rotate) & 0xFF
            if mode == 3:
                bits &= value
                data = set_reset
            else:
                fixed = _PLANES[graphics[ENABLE_SET_RESET]]
                data = value * _EACH & ~fixed | set_reset & fixed
        match graphics[DATA_ROTATE] >> 3:
            case 1:
                data &= latches
            case 2:
                data |= latches
            case 3:
                data ^= latches
        mask = bits * _EACH
        return data & mask | latches & ~mask
