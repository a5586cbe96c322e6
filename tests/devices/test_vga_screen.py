"""What the VGA shows: text, cursor, scrolling, colours, fonts, by the technical reference; pictures of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vga_rig import CRTC, GRAPHICS, SEQUENCER, Board

from iobus.devices.vga_screen import Cursor, PictureError, Screen

EGA = [  # the 16 colours of text on a PC
    (0, 0, 0), (0, 0, 170), (0, 170, 0), (0, 170, 170), (170, 0, 0), (170, 0, 170), (170, 85, 0), (170, 170, 170),
    (85, 85, 85), (85, 85, 255), (85, 255, 85), (85, 255, 255), (255, 85, 85), (255, 85, 255), (255, 255, 85),
    (255, 255, 255),
]  # fmt: skip


def set_word(board: Board, index: int, value: int) -> None:
    board.set(CRTC, index, value >> 8)
    board.set(CRTC, index + 1, value & 0xFF)


def test_the_screen_that_firmware_leaves() -> None:
    """80 by 25, empty, light grey on black, an underline cursor at home, PC colours, no font."""
    screen = Board().vga.screen()
    assert (screen.columns, screen.rows, screen.cell, screen.blanked) == (80, 25, (9, 16), False)
    assert screen.lines == (" " * 80,) * 25 and str(screen) == ""
    assert screen.attributes == b"\x07" * 2000
    assert screen.cursor == Cursor(row=0, column=0, first_line=13, last_line=14)
    assert list(screen.palette) == EGA
    assert not any(screen.fonts[0]) and not any(screen.fonts[1])


def test_text_and_attributes_of_each_cell() -> None:
    """Row by row; code page 437 as Unicode, its control codes as the symbols of the character ROM."""
    board = Board()
    board.write("Zeile 1: äöü ╔═╗ │", at=0)
    board.write("second row", at=80, attribute=0x4E)
    board.poke(0xB8000 + 2 * 160, 0x0701, 2)
    screen = board.vga.screen()
    assert str(screen) == "Zeile 1: äöü ╔═╗ │\nsecond row\n☺"
    assert screen.attributes[80:91] == b"\x4e" * 10 + b"\x07"
    assert len(screen.lines) == 25 and all(len(line) == 80 for line in screen.lines)


@pytest.mark.parametrize("start", [0, 1, 80, 0x1234, 0x3FFF])
def test_the_start_address_scrolls(start: int) -> None:
    """CRT controller 0x0C and 0x0D: the cell at the upper left, in characters from the window's beginning."""
    board = Board()
    board.write("top", at=min(start, 0x3FFD))
    set_word(board, 0x0C, start)
    set_word(board, 0x0E, start + 83)
    screen = board.vga.screen()
    assert screen.lines[0].startswith("top"[start - min(start, 0x3FFD) :])
    assert screen.cursor is not None and (screen.cursor.row, screen.cursor.column) == (1, 3)


def test_the_address_counter_wraps_at_64_kib() -> None:
    """A screen that begins at the end of the planes goes on at their beginning."""
    board = Board()
    board.write("wrapped", at=0)
    set_word(board, 0x0C, 0xFFF0)
    assert board.vga.screen().lines[0][16:23] == "wrapped"
    set_word(board, 0x0C, 0x7FF0)  # counter bit 15 becomes address bit 0: the odd bytes, which text does not use
    assert board.vga.screen().lines[0][16:23] == " " * 7


def test_the_offset_is_the_distance_of_rows() -> None:
    """CRT controller 0x13, in units of two characters: rows may be wider than what is shown."""
    board = Board()
    board.set(CRTC, 0x13, 64)
    board.write("row 1", at=128)
    assert board.vga.screen().lines[1].startswith("row 1")


def test_line_compare_splits_the_screen() -> None:
    """After that scan line rows come from address 0 again: a part that does not scroll."""
    board = Board()
    board.write("fixed", at=0)
    board.write("scrolled", at=800)
    set_word(board, 0x0C, 800)
    line = 20 * 16 - 1
    board.set(CRTC, 0x11, 0x0E)
    board.set(CRTC, 0x18, line & 0xFF)
    board.set(CRTC, 0x07, board.get(CRTC, 0x07) & ~0x10 | (line >> 8 & 1) << 4)
    board.set(CRTC, 0x09, board.get(CRTC, 0x09) & ~0x40)
    screen = board.vga.screen()
    assert screen.lines[0].startswith("scrolled") and screen.lines[20].startswith("fixed")


def test_the_height_of_characters_makes_the_number_of_rows() -> None:
    """Maximum scan line 7 in 400 lines is 80 by 50; fewer columns by horizontal display end."""
    board = Board()
    board.set(CRTC, 0x09, 0x47)
    board.write("last", at=49 * 80)
    screen = board.vga.screen()
    assert (screen.columns, screen.rows, screen.cell) == (80, 50, (9, 8))
    assert screen.lines[49].startswith("last")
    board.set(CRTC, 0x11, 0x0E)
    board.set(CRTC, 0x01, 39)
    board.set(SEQUENCER, 1, 0x09)
    board.set(CRTC, 0x09, 0x47 | 0x80)  # each line twice
    screen = board.vga.screen()
    assert (screen.columns, screen.rows, screen.cell) == (40, 25, (8, 8))


@pytest.mark.parametrize(
    ("start", "end", "location", "cursor"),
    [
        (0x00, 0x0F, 81, Cursor(1, 1, 0, 15)),
        (0x0D, 0x1F, 0, Cursor(0, 0, 13, 15)),
        (0x2D, 0x0E, 0, None),  # off
        (0x0E, 0x0D, 0, None),  # begins after its end
        (0x10, 0x1F, 0, None),  # begins below the character
        (0x0D, 0x0E, 2000, None),  # below the screen
        (0x0D, 0x6E, 1999, Cursor(24, 79, 13, 14)),  # skew is no part of the line
    ],
)
def test_the_cursor(start: int, end: int, location: int, cursor: Cursor | None) -> None:
    """Cursor start bits 4-0 and 5 (off), cursor end bits 4-0, cursor location."""
    board = Board()
    board.set(CRTC, 0x0A, start)
    board.set(CRTC, 0x0B, end)
    set_word(board, 0x0E, location)
    assert board.vga.screen().cursor == cursor


def test_bit_7_of_an_attribute_blinks_or_is_background() -> None:
    """Attribute mode bit 3."""
    board = Board()
    assert board.vga.screen().colours(0xCE) == (0xE, 0x4)
    board.set_attribute(0x10, 0x04)
    assert board.vga.screen().colours(0xCE) == (0xE, 0xC)


def test_colours_go_through_palette_colour_select_mask_and_dac() -> None:
    """Attribute value, palette register, colour select for the upper bits, PEL mask, DAC."""
    board = Board()

    def set_dac(index: int, *colour: int) -> None:
        board.out(0x3C8, index)
        for part in colour:
            board.out(0x3C9, part)

    set_dac(0x3F, 0, 63, 21)
    assert board.vga.screen().palette[15] == (0, 255, 85)
    set_dac(0xEA, 63, 0, 63)
    board.set_attribute(3, 0x1A)
    board.set_attribute(0x14, 0x0E)
    board.set_attribute(0x10, 0x80)  # bits 5-4 from colour select 1-0 too
    assert board.vga.screen().palette[3] == (255, 0, 255)
    board.out(0x3C6, 0x3F)
    set_dac(0x2A, 1, 2, 3)
    assert board.vga.screen().palette[3] == (4, 8, 12)
    board.set_attribute(0x12, 0x0C)  # colour planes 0 and 1 off: 3 is 0
    assert board.vga.screen().palette[3] == board.vga.screen().palette[0]


@pytest.mark.parametrize(
    ("how", "port", "index", "value"),
    [
        ("screen off", SEQUENCER, 1, 0x20),
        ("held in reset", SEQUENCER, 0, 0x01),
        ("no retraces", CRTC, 0x17, 0x23),
    ],
)
def test_a_blanked_screen(how: str, port: int, index: int, value: int) -> None:
    """The text stays, and the screen says that it is not shown."""
    board = Board()
    board.write("still here")
    board.set(port, index, value)
    screen = board.vga.screen()
    assert screen.blanked and str(screen) == "still here"


def test_the_palette_source_bit_blanks() -> None:
    """Attribute index bit 5 clear: the palette is the CPU's, not the display's."""
    board = Board()
    board.inb(0x3DA)
    board.out(0x3C0, 0x00)
    assert board.vga.screen().blanked


def test_graphics_modes_show_no_text() -> None:
    """Graphics miscellaneous bit 0 or attribute mode bit 0."""
    board = Board()
    board.write("x")
    board.set(GRAPHICS, 6, 0x0F)
    screen = board.vga.screen()
    assert (screen.rows, screen.columns, str(screen), screen.lines) == (0, 0, "", ())
    board.set(GRAPHICS, 6, 0x0E)
    assert board.vga.screen().rows == 25


@pytest.mark.parametrize(
    ("select", "first", "second"),
    [(0x00, 0, 0), (0x05, 1, 1), (0x0E, 2, 3), (0x34, 4, 5), (0x3B, 7, 6), (0x10, 4, 0)],
)
def test_character_map_select(select: int, first: int, second: int) -> None:
    """Sets 0-3 lie 16 KiB apart in plane 2, sets 4-7 8 KiB above them; attribute bit 3 takes the second field."""
    board = Board()
    for number in range(8):
        board.fill((number & 3) * 0x4000 + (number >> 2) * 0x2000 + 32 * 65, 0, 0, 0x10 + number, 0)
    board.set(SEQUENCER, 3, select)
    fonts = board.vga.screen().fonts
    assert (fonts[0][32 * 65], fonts[1][32 * 65]) == (0x10 + first, 0x10 + second)


# Pictures.


def picture(screen: Screen, path: Path) -> Any:
    image = pytest.importorskip("PIL.Image", reason="Pillow, which draws pictures, is not installed")
    screen.png(path)
    return image.open(path).convert("RGB")


def test_a_picture_with_the_guests_font(tmp_path: Path) -> None:
    """Each dot is the font's, in the attribute's colours; the ninth column repeats the eighth for 0xC0-0xDF only."""
    board = Board()
    board.set(CRTC, 0x0A, 0x20)
    for code, dots in ((0x41, 0b10000001), (0xC4, 0b00000001)):
        board.fill(32 * code, 0, 0, dots, 0)
    board.write("A─", attribute=0x1E)
    image = picture(board.vga.screen(), tmp_path / "screen.png")
    assert image.size == (720, 400)
    yellow, blue = EGA[14], EGA[1]
    assert [image.getpixel((x, 0)) for x in range(9)] == [yellow, *([blue] * 6), yellow, blue]
    assert [image.getpixel((x, 0)) for x in range(9, 18)] == [*([blue] * 7), yellow, yellow]
    assert [image.getpixel((x, 1)) for x in range(18)] == [blue] * 18


def test_the_cursor_in_a_picture(tmp_path: Path) -> None:
    """Its lines are full, in the foreground colour of its cell."""
    board = Board()
    board.write(" ", attribute=0x0C)
    image = picture(board.vga.screen(), tmp_path / "screen.png")
    column = [image.getpixel((0, y)) for y in range(16)]
    assert column == [EGA[0]] * 13 + [EGA[12]] * 2 + [EGA[0]]


def test_a_picture_without_a_font_of_the_guests(tmp_path: Path) -> None:
    """Pillow's font stands in: every visible character leaves dots, also in 8 lines, and blanks leave none."""
    board = Board()
    board.set(CRTC, 0x0A, 0x20)
    board.set(CRTC, 0x09, 0x47)
    text = "Az09@~é│═╬█≡"
    board.write(text + " ")
    image = picture(board.vga.screen(), tmp_path / "screen.png")
    for index in range(len(text) + 1):
        cell = image.crop((9 * index, 0, 9 * index + 9, 8))
        assert (cell.getbbox() is not None) == (index < len(text))


def test_a_blanked_picture_is_black(tmp_path: Path) -> None:
    """What is not shown is not drawn."""
    board = Board()
    board.write("secret", attribute=0x70)
    board.set(SEQUENCER, 1, 0x20)
    assert picture(board.vga.screen(), tmp_path / "screen.png").getbbox() is None


def test_no_picture_of_a_graphics_mode(tmp_path: Path) -> None:
    """Said in a sentence, and nothing is written."""
    board = Board()
    board.set(GRAPHICS, 6, 0x05)
    with pytest.raises(PictureError, match="graphics mode"):
        board.vga.screen().png(tmp_path / "screen.png")
    assert not (tmp_path / "screen.png").exists()


def test_a_picture_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(PictureError, match="needs the package Pillow: pip install pillow"):
        Board().vga.screen().png(tmp_path / "screen.png")
