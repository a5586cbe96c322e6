"""A `Screen`: what the VGA shows in a text mode, as text, as attributes, as a picture.

Part of `vga.py`, whose state `Screen.of` reads as the CRT and attribute controllers would; plain data
afterwards, to be compared and kept. Pictures need the package Pillow (the extra `iobus[display]`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from iobus.bus import IobusError
from iobus.devices import vga_registers as reg
from iobus.devices.vga_registers import Frame, VgaState

# Code page 437: what a PC's character ROM shows. Its first 32 characters and 0x7F are symbols here, not controls.
_SYMBOLS: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_UNICODE: Final = _SYMBOLS + bytes(range(0x20, 0x7F)).decode("ascii") + "⌂" + bytes(range(0x80, 0x100)).decode("cp437")

FONT_SIZE: Final = 256 * 32
"""Bytes of a character set: a byte for each of a character's up to 32 scan lines, the leftmost dot highest."""

Colour = tuple[int, int, int]


class PictureError(IobusError):
    """A picture cannot be made: the sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the cursor is shown."""

    row: int
    column: int
    first_line: int
    """Its uppermost scan line within the character, from 0."""
    last_line: int


@dataclass(frozen=True, slots=True)
class Screen:
    """What a text screen shows. `str(screen)` is its text."""

    columns: int = 0
    rows: int = 0
    """Both 0 in a graphics mode, which is not shown."""
    characters: bytes = field(default=b"", repr=False)
    """A character code for each cell, row by row."""
    attributes: bytes = field(default=b"", repr=False)
    """Foreground in bits 0-3, background in bits 4-6; bit 7 blinks, or belongs to the background."""
    cursor: Cursor | None = None
    """None where it is off or outside the screen."""
    blanked: bool = False
    """The display is off; the text is what it would show."""
    blink: bool = True
    """Whether bit 7 of an attribute is for blinking."""
    cell: tuple[int, int] = (9, 16)
    """Dots across (8 or 9) and scan lines (1 to 32) of a character."""
    palette: tuple[Colour, ...] = ()
    """Red, green and blue, each 0 to 255, of the 16 colours of attributes."""
    fonts: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)
    """The character sets for attribute bit 3 clear and set, of `FONT_SIZE` bytes; all zero: none was loaded."""
    line_graphics: bool = True
    """The ninth dot of characters 0xC0-0xDF repeats the eighth."""

    @classmethod
    def of(cls, state: VgaState) -> Screen:
        """Return what the registers and the memory of `state` show."""
        mode = state.attribute[reg.ATTRIBUTE_MODE]
        if state.graphics[reg.MISCELLANEOUS] & reg.GRAPHICS or mode & 1:
            return cls(blanked=_blanked(state))
        frame = Frame.of(state)
        maximum = state.crtc[reg.MAXIMUM_SCAN_LINE]
        height = (maximum & 0x1F) + 1
        tall = 2 * height if maximum & reg.SCAN_DOUBLING else height
        rows = max(1, frame.lines // tall)
        start, pitch = state.crtc_word(reg.START_ADDRESS), 2 * state.crtc[reg.OFFSET]
        split = _line_compare(state)
        first_split = -(-(split + 1) // tall)  # the row from which the second, unscrolled part is shown
        counters = [start + row * pitch if row < first_split else (row - first_split) * pitch for row in range(rows)]
        lines = [_row(state, counter & 0xFFFF, frame.columns) for counter in counters]
        return cls(
            columns=frame.columns,
            rows=rows,
            characters=b"".join(characters for characters, _ in lines),
            attributes=b"".join(attributes for _, attributes in lines),
            cursor=_cursor(state, frame.columns, counters, height),
            blanked=_blanked(state),
            blink=bool(mode & reg.BLINK),
            cell=(frame.dots, height),
            palette=tuple(_colour(state, index) for index in range(16)),
            fonts=_fonts(state),
            line_graphics=bool(mode & reg.LINE_GRAPHICS),
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """The rows as text, each `columns` characters long."""
        text = "".join([_UNICODE[code] for code in self.characters])
        return tuple(text[at : at + self.columns] for at in range(0, len(text), self.columns or 1))

    def __str__(self) -> str:
        """The text, without the blanks at the ends of rows and the empty rows at the end."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")

    def colours(self, attribute: int) -> tuple[int, int]:
        """Return the foreground and the background of an attribute, as indexes into `palette`."""
        return attribute & 0xF, attribute >> 4 & (0x7 if self.blink else 0xF)

    def png(self, path: str | os.PathLike[str]) -> None:
        """Write the screen, with the cursor, as a PNG picture.

        Characters are drawn with the guest's own font where it has loaded one, else with Pillow's. Raises
        `PictureError` without Pillow or without text to show, `OSError` where `path` cannot be written.
        """
        if not self.rows:
            raise PictureError("the guest's display is in a graphics mode: only text modes can be drawn")
        try:
            from PIL import Image
        except ImportError:
            raise PictureError("a picture of the screen needs the package Pillow: pip install pillow") from None
        width, height = self.cell
        image = Image.frombytes("P", (self.columns * width, self.rows * height), self._pixels())
        image.putpalette([part for colour in self.palette for part in colour])
        image.save(path, "PNG")

    def _pixels(self) -> bytes:
        """A palette index for each dot."""
        size = self.columns * self.rows * self.cell[0] * self.cell[1]
        if self.blanked:
            return bytes(size)
        width, height = self.cell
        sets = [font if any(font) else _pillow_font(height, self.characters) for font in self.fonts]
        drawn: dict[tuple[int, int, int], bytes] = {}
        pixels = bytearray()
        for row in range(self.rows):
            cells = range(row * self.columns, (row + 1) * self.columns)
            for line in range(height):
                for cell in cells:
                    code, attribute = self.characters[cell], self.attributes[cell]
                    dots = sets[attribute >> 3 & 1][32 * code + line]
                    cursor = self.cursor
                    if cursor is not None and cell == cursor.row * self.columns + cursor.column:
                        dots = 0xFF if cursor.first_line <= line <= cursor.last_line else dots
                    ninth = dots & 1 if self.line_graphics and 0xC0 <= code <= 0xDF else 0
                    key = dots, ninth, attribute
                    if key not in drawn:
                        both = self.colours(attribute)[::-1]
                        drawn[key] = bytes(both[bit] for bit in _bits(dots << 1 | ninth))[:width]
                    pixels += drawn[key]
        return bytes(pixels)


def _pillow_font(height: int, characters: bytes) -> bytes:
    """A character set of Pillow's own small font, with those of `characters`."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default_imagefont()  # 6 dots by 11
    drawn = bytearray(FONT_SIZE)
    for code in set(characters):
        image = Image.new("1", (8, height))
        ImageDraw.Draw(image).text((1, (height - 11) // 2), _drawable(_UNICODE[code]), fill=1, font=font)
        drawn[32 * code : 32 * code + height] = image.tobytes()
    return bytes(drawn)


def _drawable(character: str) -> str:
    """The character, or what stands for it among the 256 of Pillow's font."""
    if ord(character) < 0x100:
        return character
    for likeness, those in (("|", "│║"), ("-", "─═"), ("#", "░▒▓█▄▌▐▀■")):
        if character in those:
            return likeness
    return "+" if "\u2500" <= character <= "\u257f" else "?"


def _bits(nine: int) -> list[int]:
    return [nine >> bit & 1 for bit in range(8, -1, -1)]


def _blanked(state: VgaState) -> bool:
    sequencer = state.sequencer
    return (
        sequencer[reg.RESET] != reg.RUNNING
        or bool(sequencer[reg.CLOCKING_MODE] & reg.SCREEN_OFF)
        or not state.attribute_index & reg.PALETTE_SOURCE
        or not state.crtc[reg.CRTC_MODE] & reg.RETRACES
    )


def _line_compare(state: VgaState) -> int:
    """The scan line after which the memory address starts again at 0."""
    crtc = state.crtc
    return crtc[reg.LINE_COMPARE] | (crtc[reg.OVERFLOW] >> 4 & 1) << 8 | (crtc[reg.MAXIMUM_SCAN_LINE] >> 6 & 1) << 9


def _row(state: VgaState, counter: int, columns: int) -> tuple[bytes, bytes]:
    """The characters and attributes that the memory address counter finds from `counter` on."""
    memory = state.memory
    double = state.crtc[reg.UNDERLINE_LOCATION] & reg.DOUBLEWORD
    shift = 2 if double else 0 if state.crtc[reg.CRTC_MODE] & reg.BYTE_MODE else 1
    carry = 14 if double else 15 if state.crtc[reg.CRTC_MODE] & reg.ADDRESS_WRAP else 13
    if counter + columns <= 0x10000 >> shift and (not shift or counter + columns <= 1 << carry):
        at, end, step = counter << shift + 2, counter + columns << shift + 2, 4 << shift
        return bytes(memory[at:end:step]), bytes(memory[at + 1 : end : step])
    counters = [index & 0xFFFF for index in range(counter, counter + columns)]
    # Bits above the counter's 16 are lost; the vacated lowest address bit is one of the counter's.
    places = [4 * (index << shift & 0xFFFF | (index >> carry & 1 if shift else 0)) for index in counters]
    return bytes(memory[at] for at in places), bytes(memory[at + 1] for at in places)


def _cursor(state: VgaState, columns: int, counters: list[int], height: int) -> Cursor | None:
    start, end = state.crtc[reg.CURSOR_START], state.crtc[reg.CURSOR_END] & 0x1F
    first = start & 0x1F
    if start & reg.CURSOR_DISABLE or first > end or first >= height:
        return None
    location = state.crtc_word(reg.CURSOR_LOCATION)
    for row, counter in enumerate(counters):
        column = location - counter & 0xFFFF
        if column < columns:
            return Cursor(row, column, first, min(end, height - 1))
    return None


def _colour(state: VgaState, index: int) -> Colour:
    """The colour that attribute value `index` gives: palette, colour select, mask, DAC."""
    attribute = state.attribute
    value = attribute[index & attribute[reg.COLOR_PLANE_ENABLE]]
    select = attribute[reg.COLOR_SELECT]
    if attribute[reg.ATTRIBUTE_MODE] & reg.PALETTE_54:
        value = value & 0xF | (select & 3) << 4
    value = (value | (select >> 2 & 3) << 6) & state.pel_mask
    red, green, blue = (part << 2 | part >> 4 for part in state.dac[3 * value : 3 * value + 3])
    return red, green, blue


def _fonts(state: VgaState) -> tuple[bytes, bytes]:
    """The two character sets in plane 2 that are selected."""
    select = state.sequencer[reg.CHARACTER_MAP_SELECT]
    sets = []
    for number in (select & 3 | select >> 2 & 4, select >> 2 & 3 | select >> 3 & 4):
        # The sets are 16 KiB apart; those from 4 on lie 8 KiB above.
        at = (number & 3) * 0x4000 + (number >> 2) * 0x2000
        sets.append(bytes(state.memory[4 * at + 2 : 4 * (at + FONT_SIZE) : 4]))
    return sets[0], sets[1]
