"""The VGA's registers: their names, the bits each has, and what the device remembers.

The ground floor of `vga.py` (ports), `vga_memory.py` (the window into display memory) and
`vga_screen.py` (what is shown). After the IBM PS/2 Hardware Interface Technical Reference, "Video
Subsystem", and the FreeVGA project's "Hardware Level VGA and SVGA Video Programming Information", whose
names these are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.state import U8, U32, Length, Range, State, StateError

# Ports. 3Bx answer with a monochrome display, 3Dx with a colour one: miscellaneous output, bit 0.
MONO: Final = 0x3B4
COLOUR: Final = 0x3D4
CRTC_INDEX: Final = 0x3D4
CRTC_DATA: Final = 0x3D5
INPUT_STATUS_1: Final = 0x3DA
"""Read; feature control when written."""
ATTRIBUTE_INDEX: Final = 0x3C0
"""Index and data in turn when written."""
ATTRIBUTE_DATA: Final = 0x3C1
MISC_OUTPUT: Final = 0x3C2
"""Written; input status 0 when read."""
ENABLE: Final = 0x3C3
SEQUENCER_INDEX: Final = 0x3C4
SEQUENCER_DATA: Final = 0x3C5
PEL_MASK: Final = 0x3C6
DAC_READ_INDEX: Final = 0x3C7
"""Written; the DAC's state when read."""
DAC_WRITE_INDEX: Final = 0x3C8
DAC_DATA: Final = 0x3C9
FEATURE_READ: Final = 0x3CA
MISC_READ: Final = 0x3CC
GRAPHICS_INDEX: Final = 0x3CE
GRAPHICS_DATA: Final = 0x3CF

# Miscellaneous output.
IO_COLOUR: Final = 1 << 0
RAM_ENABLE: Final = 1 << 1
CLOCK_28_MHZ: Final = 1 << 2
MISC_BITS: Final = 0xEF
FEATURE_BITS: Final = 0x0B

# Input status 0 and 1. The sense bit is high: the comparator sees a display's load.
SWITCH_SENSE: Final = 1 << 4
DISPLAY_DISABLED: Final = 1 << 0
VERTICAL_RETRACE: Final = 1 << 3

# Sequencer.
RESET: Final = 0x00
CLOCKING_MODE: Final = 0x01
MAP_MASK: Final = 0x02
CHARACTER_MAP_SELECT: Final = 0x03
MEMORY_MODE: Final = 0x04
SEQUENCER_BITS: Final = bytes.fromhex("03 3d 0f 3f 0e")

RUNNING: Final = 0x03  # RESET: neither reset is asserted
EIGHT_DOTS: Final = 1 << 0  # CLOCKING_MODE
HALF_DOT_CLOCK: Final = 1 << 3
SCREEN_OFF: Final = 1 << 5
SEQUENTIAL: Final = 1 << 2  # MEMORY_MODE
CHAIN_4: Final = 1 << 3

# Graphics controller.
SET_RESET: Final = 0x00
ENABLE_SET_RESET: Final = 0x01
COLOR_COMPARE: Final = 0x02
DATA_ROTATE: Final = 0x03
READ_MAP_SELECT: Final = 0x04
GRAPHICS_MODE: Final = 0x05
MISCELLANEOUS: Final = 0x06
COLOR_DONT_CARE: Final = 0x07
BIT_MASK: Final = 0x08
GRAPHICS_BITS: Final = bytes.fromhex("0f 0f 0f 1f 03 7b 0f 0f ff")

READ_MODE_1: Final = 1 << 3  # GRAPHICS_MODE
HOST_ODD_EVEN: Final = 1 << 4
GRAPHICS: Final = 1 << 0  # MISCELLANEOUS
CHAIN_ODD_EVEN: Final = 1 << 1

# CRT controller.
HORIZONTAL_TOTAL: Final = 0x00
HORIZONTAL_DISPLAY_END: Final = 0x01
VERTICAL_TOTAL: Final = 0x06
OVERFLOW: Final = 0x07
MAXIMUM_SCAN_LINE: Final = 0x09
CURSOR_START: Final = 0x0A
CURSOR_END: Final = 0x0B
START_ADDRESS: Final = 0x0C  # high byte; low at +1
CURSOR_LOCATION: Final = 0x0E  # high byte; low at +1
VERTICAL_RETRACE_START: Final = 0x10
VERTICAL_RETRACE_END: Final = 0x11
VERTICAL_DISPLAY_END: Final = 0x12
OFFSET: Final = 0x13
UNDERLINE_LOCATION: Final = 0x14
CRTC_MODE: Final = 0x17
LINE_COMPARE: Final = 0x18
CRTC_BITS: Final = bytes.fromhex("ff ff ff ff ff ff ff ff 7f ff 3f 7f ff ff ff ff ff ff ff ff 7f ff ff ef ff")

LINE_COMPARE_8: Final = 1 << 4  # OVERFLOW: the one bit of it that PROTECT leaves writable
SCAN_DOUBLING: Final = 1 << 7  # MAXIMUM_SCAN_LINE
CURSOR_DISABLE: Final = 1 << 5  # CURSOR_START
PROTECT: Final = 1 << 7  # VERTICAL_RETRACE_END: registers 0 to 7 cannot be written
DOUBLEWORD: Final = 1 << 6  # UNDERLINE_LOCATION
ADDRESS_WRAP: Final = 1 << 5  # CRTC_MODE: word mode brings counter bit 15, not 13, to address bit 0
BYTE_MODE: Final = 1 << 6
RETRACES: Final = 1 << 7

# Attribute controller: 0 to 0x0F are the palette.
ATTRIBUTE_MODE: Final = 0x10
COLOR_PLANE_ENABLE: Final = 0x12
COLOR_SELECT: Final = 0x14
ATTRIBUTE_BITS: Final = b"\x3f" * 16 + bytes.fromhex("ef ff 3f 0f 0f")

PALETTE_SOURCE: Final = 1 << 5  # of the index: the palette is the display's
LINE_GRAPHICS: Final = 1 << 2  # ATTRIBUTE_MODE
BLINK: Final = 1 << 3
PALETTE_54: Final = 1 << 7

PLANE_SIZE: Final = 0x10000
"""Bytes in each of the four planes."""


@dataclass
class VgaState(State):
    """Display memory and every register."""

    memory: bytearray = field(default_factory=lambda: bytearray(4 * PLANE_SIZE), repr=False)
    """Byte `a` of plane `p` is at 4 * a + p: what the latches hold lies together."""
    latches: U32 = 0
    """The four planes' bytes as last read, plane 0 lowest."""
    enabled: bool = True
    """Video subsystem enable: without it nothing but that register is decoded."""
    misc: U8 = 0
    feature: Annotated[int, Range(0, FEATURE_BITS)] = 0
    crtc_index: U8 = 0
    crtc: list[U8] = field(default_factory=lambda: [0] * len(CRTC_BITS))
    sequencer_index: U8 = 0
    sequencer: list[U8] = field(default_factory=lambda: [0] * len(SEQUENCER_BITS))
    graphics_index: U8 = 0
    graphics: list[U8] = field(default_factory=lambda: [0] * len(GRAPHICS_BITS))
    attribute_index: Annotated[int, Range(0, 0x3F)] = 0
    """With PALETTE_SOURCE."""
    attribute_data_next: bool = False
    """The flip-flop: the next write to port 0x3C0 is data."""
    attribute: list[U8] = field(default_factory=lambda: [0] * len(ATTRIBUTE_BITS))
    pel_mask: U8 = 0xFF
    dac_index: U8 = 0
    dac_reading: bool = False
    dac_colour: Annotated[list[Annotated[int, Range(0, 0x3F)]], Length(0, 2)] = field(default_factory=list)
    """What was written of a colour, whose third part makes it the palette's."""
    dac_part: Annotated[int, Range(0, 2)] = 0
    """Which part of a colour is read next: 0 red, 1 green, 2 blue."""
    dac: bytearray = field(default_factory=lambda: bytearray(3 * 256))
    """Red, green, blue of each colour, 6 bits each."""

    def check(self) -> None:
        for name, bits in (
            ("crtc", CRTC_BITS), ("sequencer", SEQUENCER_BITS), ("graphics", GRAPHICS_BITS),
            ("attribute", ATTRIBUTE_BITS), ("dac", b"\x3f" * len(self.dac)),
        ):  # fmt: skip
            for index, (value, mask) in enumerate(zip(getattr(self, name), bits, strict=True)):
                if value & ~mask:
                    raise StateError(f"VgaState.{name}[{index}]: {value:#x} has bits that cannot be set")

    def crtc_word(self, high: int) -> int:
        """Return the value of the register pair whose high byte is at index `high`."""
        return self.crtc[high] << 8 | self.crtc[high + 1]


@dataclass(frozen=True, slots=True)
class Frame:
    """The size of the frame, in characters and scan lines, by the CRT controller's registers."""

    columns: int
    lines: int
    """Scan lines displayed."""
    total_columns: int
    """The retrace included."""
    total_lines: int
    retrace_start: int
    """The scan line at which the vertical retrace begins."""
    retrace_lines: int
    dots: int
    """Of a character, across."""

    @classmethod
    def of(cls, state: VgaState) -> Frame:
        crtc, overflow = state.crtc, state.crtc[OVERFLOW]

        def ten_bits(low: int, bit_8: int, bit_9: int) -> int:
            return crtc[low] | (overflow >> bit_8 & 1) << 8 | (overflow >> bit_9 & 1) << 9

        start = ten_bits(VERTICAL_RETRACE_START, 2, 7)
        return cls(
            columns=crtc[HORIZONTAL_DISPLAY_END] + 1,
            lines=ten_bits(VERTICAL_DISPLAY_END, 1, 6) + 1,
            total_columns=crtc[HORIZONTAL_TOTAL] + 5,
            total_lines=ten_bits(VERTICAL_TOTAL, 0, 5) + 2,
            retrace_start=start,
            retrace_lines=(crtc[VERTICAL_RETRACE_END] - start) & 0xF,
            dots=8 if state.sequencer[CLOCKING_MODE] & EIGHT_DOTS else 9,
        )

    def line_ns(self, state: VgaState) -> int:
        """Return how long a scan line takes, in ns."""
        hertz = 28_322_000 if state.misc & CLOCK_28_MHZ else 25_175_000
        if state.sequencer[CLOCKING_MODE] & HALF_DOT_CLOCK:
            hertz //= 2
        return self.total_columns * self.dots * 1_000_000_000 // hertz


# Mode 3 with 400 lines, as IBM's BIOS sets it: 80 columns and 25 rows of characters of 9 by 16 dots.
_MODE_3_SEQUENCER: Final = bytes.fromhex("03 00 03 00 02")
_MODE_3_CRTC: Final = bytes.fromhex(
    "5f 4f 50 82 55 81 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 28 1f 96 b9 a3 ff"
)  # fmt: skip
_MODE_3_GRAPHICS: Final = bytes.fromhex("00 00 00 00 00 10 0e 0f ff")
_MODE_3_ATTRIBUTE: Final = bytes.fromhex(
    "00 01 02 03 04 05 14 07 38 39 3a 3b 3c 3d 3e 3f 0c 00 0f 08 00"
)  # fmt: skip
_MODE_3_MISC: Final = 0x67


def set_text_mode(state: VgaState) -> None:
    """Set mode 3, clear the text and set the palette's first 64 colours, as a video BIOS does."""
    state.enabled, state.misc, state.pel_mask = True, _MODE_3_MISC, 0xFF
    state.sequencer[:] = _MODE_3_SEQUENCER
    state.crtc[:] = _MODE_3_CRTC
    state.graphics[:] = _MODE_3_GRAPHICS
    state.attribute[:] = _MODE_3_ATTRIBUTE
    state.attribute_index, state.attribute_data_next = PALETTE_SOURCE, False
    for colour in range(64):  # EGA's: two bits for each of red, green, blue, the weak one higher
        for part, bit in enumerate((2, 1, 0)):
            state.dac[3 * colour + part] = 42 * (colour >> bit & 1) + 21 * (colour >> bit + 3 & 1)
    state.memory[0 : 4 * 0x8000 : 8] = b" " * 0x4000
    state.memory[1 : 4 * 0x8000 : 8] = b"\x07" * 0x4000
