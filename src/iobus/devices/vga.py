"""The VGA: its ports, and what a host sees of it. Text modes are shown; graphics modes only remembered.

Stands beside the other devices of the PC. After the IBM PS/2 Hardware Interface Technical Reference, "Video
Subsystem", and FreeVGA. Its parts: `vga_registers.py` names the registers and holds the state,
`vga_memory.py` is the window at 0xA0000, `vga_screen.py` makes a `Screen` of it all.

Every register of the IBM VGA can be read and written, and every path to display memory works. What is not
there: the vertical retrace interrupt (on a PC it is not wired), panning by less than a character, and a
picture of graphics modes. Palette registers can be written while the display uses them, as on the
technical reference's Type 2 subsystem.
"""

from __future__ import annotations

from typing import Final

from iobus.bus import Device, Value
from iobus.clock import Clock
from iobus.devices import vga_registers as reg
from iobus.devices.vga_memory import VgaMemory
from iobus.devices.vga_registers import Frame, VgaState
from iobus.devices.vga_screen import Screen
from iobus.state import Stateful


class Vga(Stateful):
    """A VGA with 256 KiB. Attach each of `ports` at its `base`, implementing bytes, and `memory` at 0xA0000.

    Resetting any of them, as a machine does with what is on its buses, resets the VGA whole: every
    register is zero, and memory is not decoded until firmware, or `text_mode`, sets a mode.
    """

    state: VgaState

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.state = VgaState()
        self.memory: Final = VgaMemory(self.state, self.reset)
        self.ports: Final = (
            VgaPorts("vga-mono", 0x3B4, 7, self),
            VgaPorts("vga", 0x3C0, 16, self),
            VgaPorts("vga-colour", 0x3D4, 7, self),
        )

    def reset(self) -> None:
        self.state = VgaState()
        self.restored()

    def restored(self) -> None:
        self.memory.configure(self.state)

    def text_mode(self) -> None:
        """Set text mode 3, 80 by 25, and clear the screen, as a PC's firmware leaves it. No font is loaded."""
        reg.set_text_mode(self.state)
        self.memory.configure(self.state)

    def screen(self) -> Screen:
        """Return what is shown at this moment."""
        return Screen.of(self.state)

    def read_port(self, port: int) -> Value:
        """Read the byte at I/O address `port`; `NotImplemented` where the VGA does not decode it."""
        state = self.state
        if not state.enabled:
            return 0 if port == reg.ENABLE else NotImplemented
        match self._decode(port):
            case reg.CRTC_INDEX:
                return state.crtc_index
            case reg.CRTC_DATA:
                return _register(state.crtc, state.crtc_index)
            case reg.INPUT_STATUS_1:
                state.attribute_data_next = False
                return self._input_status_1()
            case reg.ATTRIBUTE_INDEX:
                return state.attribute_index
            case reg.ATTRIBUTE_DATA:
                return _register(state.attribute, state.attribute_index & 0x1F)
            case reg.MISC_OUTPUT:
                return reg.SWITCH_SENSE
            case reg.ENABLE:
                return 1
            case reg.SEQUENCER_INDEX:
                return state.sequencer_index
            case reg.SEQUENCER_DATA:
                return _register(state.sequencer, state.sequencer_index)
            case reg.PEL_MASK:
                return state.pel_mask
            case reg.DAC_READ_INDEX:
                return 3 if state.dac_reading else 0
            case reg.DAC_WRITE_INDEX:
                return state.dac_index
            case reg.DAC_DATA:
                return self._read_dac()
            case reg.FEATURE_READ:
                return state.feature
            case reg.MISC_READ:
                return state.misc
            case reg.GRAPHICS_INDEX:
                return state.graphics_index
            case reg.GRAPHICS_DATA:
                return _register(state.graphics, state.graphics_index)
        return NotImplemented  # type: ignore[no-any-return]

    def write_port(self, port: int, value: int) -> object:
        """Write the byte `value` at I/O address `port`; `NotImplemented` where the VGA does not decode it."""
        state = self.state
        if not state.enabled and port != reg.ENABLE:
            return NotImplemented
        match self._decode(port):
            case reg.CRTC_INDEX:
                state.crtc_index = value
            case reg.CRTC_DATA:
                self._write_crtc(value)
            case reg.INPUT_STATUS_1:
                state.feature = value & reg.FEATURE_BITS
            case reg.ATTRIBUTE_INDEX:
                self._write_attribute(value)
            case reg.MISC_OUTPUT:
                state.misc = value & reg.MISC_BITS
                self.memory.configure(state)
            case reg.ENABLE:
                state.enabled = bool(value & 1)
                self.memory.configure(state)
            case reg.SEQUENCER_INDEX:
                state.sequencer_index = value
            case reg.SEQUENCER_DATA:
                _set_register(state.sequencer, state.sequencer_index, value, reg.SEQUENCER_BITS)
                self.memory.configure(state)
            case reg.PEL_MASK:
                state.pel_mask = value
            case reg.DAC_READ_INDEX | reg.DAC_WRITE_INDEX:
                state.dac_index, state.dac_part = value, 0
                state.dac_colour.clear()
                state.dac_reading = port == reg.DAC_READ_INDEX
            case reg.DAC_DATA:
                self._write_dac(value)
            case reg.GRAPHICS_INDEX:
                state.graphics_index = value
            case reg.GRAPHICS_DATA:
                _set_register(state.graphics, state.graphics_index, value, reg.GRAPHICS_BITS)
                self.memory.configure(state)
            case reg.ATTRIBUTE_DATA | reg.FEATURE_READ | reg.MISC_READ:  # read-only
                pass
            case _:
                return NotImplemented
        return None

    def _decode(self, port: int) -> int:
        """Return the port with 3Bx, where they are selected, as 3Dx; 0 where 3Bx or 3Dx is not selected."""
        if reg.ATTRIBUTE_INDEX <= port <= reg.GRAPHICS_DATA:
            return port
        colour = port >= reg.COLOUR
        if colour != bool(self.state.misc & reg.IO_COLOUR):
            return 0
        return port if colour else port + reg.COLOUR - reg.MONO

    def _input_status_1(self) -> int:
        """Where the beam is, as if frames had been drawn since time began."""
        state = self.state
        frame = Frame.of(state)
        line_ns = frame.line_ns(state)
        line, within = divmod(self._clock.now() % (line_ns * frame.total_lines), line_ns)
        if (line - frame.retrace_start) % frame.total_lines < frame.retrace_lines:
            return reg.DISPLAY_DISABLED | reg.VERTICAL_RETRACE
        shown = line < frame.lines and within * frame.total_columns < frame.columns * line_ns
        return 0 if shown else reg.DISPLAY_DISABLED

    def _write_crtc(self, value: int) -> None:
        state = self.state
        index = state.crtc_index
        if index <= reg.OVERFLOW and state.crtc[reg.VERTICAL_RETRACE_END] & reg.PROTECT:
            if index == reg.OVERFLOW:
                others = state.crtc[index] & ~reg.LINE_COMPARE_8
                state.crtc[index] = others | value & reg.LINE_COMPARE_8
            return
        _set_register(state.crtc, index, value, reg.CRTC_BITS)

    def _write_attribute(self, value: int) -> None:
        state = self.state
        if state.attribute_data_next:
            _set_register(state.attribute, state.attribute_index & 0x1F, value, reg.ATTRIBUTE_BITS)
        else:
            state.attribute_index = value & 0x3F
        state.attribute_data_next = not state.attribute_data_next

    def _read_dac(self) -> int:
        state = self.state
        value = state.dac[3 * state.dac_index + state.dac_part]
        state.dac_part += 1
        if state.dac_part == 3:
            state.dac_part, state.dac_index = 0, state.dac_index + 1 & 0xFF
        return value

    def _write_dac(self, value: int) -> None:
        state = self.state
        state.dac_colour.append(value & 0x3F)
        if len(state.dac_colour) == 3:
            state.dac[3 * state.dac_index : 3 * state.dac_index + 3] = bytes(state.dac_colour)
            state.dac_colour.clear()
            state.dac_index = state.dac_index + 1 & 0xFF


class VgaPorts(Device):
    """A range of the VGA's ports, from `base`."""

    def __init__(self, name: str, base: int, length: int, vga: Vga) -> None:
        self.name = name
        self.base: Final = base
        self.length: Final = length
        self._vga = vga

    def reset(self) -> None:
        self._vga.reset()

    def read(self, offset: int, size: int) -> Value:
        return self._vga.read_port(self.base + offset)

    def write(self, offset: int, size: int, value: int) -> object:
        return self._vga.write_port(self.base + offset, value)


def _register(registers: list[int], index: int) -> int:
    """The register at `index`; 0 where there is none."""
    return registers[index] if index < len(registers) else 0


def _set_register(registers: list[int], index: int, value: int, bits: bytes) -> None:
    """Set those bits of the register at `index` that there are; nothing where there is none."""
    if index < len(registers):
        registers[index] = value & bits[index]
