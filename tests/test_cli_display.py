"""`--display text`: what the terminal shows, by a terminal emulator; keys; the terminal restored. Guests made here."""

from __future__ import annotations

import signal
import struct
import sys
from pathlib import Path

import pyte
import pytest
from cli_rig import HANG, LOAD, POWER_OFF, Files, Terminal, run_guest, say, terminal

from iobus.cli.display import keys_typed, picture
from iobus.clock import SteppedClock
from iobus.devices import vga_registers as reg
from iobus.devices.vga import Vga
from iobus.devices.vga_screen import Screen
from iobus.pc.keyboard import KEYS

sys.path.insert(0, str(Path(__file__).parent / "devices"))
from vga_rig import CRTC, GRAPHICS, SEQUENCER, Board


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# The picture.


def emulate(screen: Screen, size: tuple[int, int], serial: bytes = b"", status: str = "") -> pyte.Screen:
    """A terminal of `size` that was given the picture."""
    shown = pyte.Screen(*size)
    stream = pyte.Stream(shown)
    rows = picture(screen, size, serial, status)
    assert len(rows) == size[1]
    for at, row in enumerate(rows, 1):
        stream.feed(f"\x1b[{at};1H{row}")
    return shown


def test_the_picture_is_the_screen_and_a_status_line() -> None:
    """On a terminal of 80 by 26 all of it fits."""
    board = Board()
    board.write("first", at=0)
    board.write("last", at=24 * 80 + 76)
    shown = emulate(board.vga.screen(), (80, 26), status="iobus: something happened")
    assert shown.display[:25] == list(board.vga.screen().lines)
    assert shown.display[25].startswith(" Ctrl-A X leaves  iobus: something happened")
    assert all(shown.buffer[25][x].reverse for x in range(80))


def test_colours_are_the_terminals_sixteen() -> None:
    """The PC's blue is the terminal's blue, and red its red; bit 7 blinks, or brightens the background."""
    names = ["black", "blue", "green", "cyan", "red", "magenta", "brown", "white"]  # brown is pyte's yellow
    board = Board()
    for attribute in range(256):
        board.write("x", at=attribute, attribute=attribute)
    for blink in (True, False):
        board.set_attribute(0x10, 0x0C if blink else 0x04)
        shown = emulate(board.vga.screen(), (80, 26))
        for attribute in range(256):
            cell = shown.buffer[attribute // 80][attribute % 80]
            bright_background = "bright" * (attribute >> 7 and not blink)
            assert cell.fg == "bright" * (attribute >> 3 & 1) + names[attribute & 7]
            background = cell.bg.replace("bfight", "bright")  # pyte's spelling of one of them
            assert background == bright_background + names[attribute >> 4 & 7]
            assert cell.blink == bool(blink and attribute & 0x80)


def test_a_small_terminal_shows_what_is_around_the_cursor() -> None:
    """The upper left while the cursor is in it, else the rows down to the cursor's; columns are cut off."""
    board = Board()
    for row in range(25):
        board.write(f"row {row} " + "." * 70, at=80 * row)
    shown = emulate(board.vga.screen(), (20, 10))
    assert [line.split()[1] for line in shown.display[:9]] == [str(row) for row in range(9)]
    assert all(len(line) == 20 for line in shown.display) and shown.display[9].startswith(" Ctrl-A X leaves")
    board.set(CRTC, 0x0E, 20 * 80 >> 8)
    board.set(CRTC, 0x0F, 20 * 80 & 0xFF)
    shown = emulate(board.vga.screen(), (20, 10))
    assert [line.split()[1] for line in shown.display[:9]] == [str(row) for row in range(12, 21)]
    assert len(picture(board.vga.screen(), (5, 1), b"", "")) == 1


def test_a_tall_terminal_has_the_serial_line_below() -> None:
    """Its last lines, of which nothing but text is shown."""
    serial = b"old\r\n" * 10 + b"\x1b[2J\x1b[31mred\x1b[0m \x07bell\r\nlast \xff\xc3\xa4"
    shown = emulate(Board().vga.screen(), (80, 30), serial)
    assert [line.rstrip() for line in shown.display[25:29]] == ["-- serial line --", "old", "red bell", "last \ufffdä"]
    assert emulate(Board().vga.screen(), (80, 26), serial).display[25].startswith(" Ctrl-A X")
    assert emulate(Board().vga.screen(), (80, 30)).display[25].isspace()


def test_what_is_not_shown_is_not_drawn() -> None:
    """A blanked screen is empty, a graphics mode is told."""
    board = Board()
    board.write("secret")
    board.set(SEQUENCER, 1, 0x20)
    assert emulate(board.vga.screen(), (80, 26)).display[0].isspace()
    board.set(GRAPHICS, 6, 0x05)
    assert "graphics mode" in emulate(board.vga.screen(), (80, 26)).display[0]


def test_any_screen_can_be_drawn() -> None:
    """Of any height and width, on any terminal."""
    vga = Vga(SteppedClock())
    vga.text_mode()
    for columns, height in ((255, 0), (0, 31), (131, 7)):
        vga.state.crtc[reg.HORIZONTAL_DISPLAY_END] = columns
        vga.state.crtc[reg.MAXIMUM_SCAN_LINE] = height
        for size in ((1, 1), (2, 2), (80, 24), (300, 500)):
            assert len(picture(vga.screen(), size, b"x\ny\n", "")) == size[1]


# Keys.


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("aB~", ["a", "B", "~"]),
        ("\r\t\x7f\x03", ["\r", "\t", "\x7f", "\x03"]),
        ("\x1b", ["\x1b"]),
        ("\x1b\x1b", ["\x1b", "\x1b"]),
        ("\x1b[A\x1b[B\x1b[C\x1b[D", ["ArrowUp", "ArrowDown", "ArrowRight", "ArrowLeft"]),
        ("\x1bOH\x1bOF\x1b[1~\x1b[4~", ["Home", "End", "Home", "End"]),
        ("\x1bOP\x1bOS\x1b[15~\x1b[21~\x1b[24~", ["F1", "F4", "F5", "F10", "F12"]),
        ("\x1b[[A\x1b[[E", ["F1", "F5"]),
        ("\x1b[2~\x1b[3~\x1b[5~\x1b[6~", ["Insert", "Delete", "PageUp", "PageDown"]),
        ("\x1b[1;5C\x1b[1;2A\x1b[3;7~", ["Control+ArrowRight", "Shift+ArrowUp", "Alt+Control+Delete"]),
        ("\x1b[Z", ["Shift+Tab"]),
        ("\x1bx\x1bX\x1b+", ["Alt+x", "Alt+X", "Alt++"]),
        ("é\x1bé\u20ac", []),
        ("\x1b[99~\x1b[200~", []),
    ],
)
def test_what_terminals_send_for_keys(typed: str, keys: list[str]) -> None:
    """Characters, xterm's and the Linux console's sequences, with modifiers; what has no key is left out."""
    assert list(keys_typed(typed)) == keys
    for key in keys:
        for name in key.replace("++", "+").split("+"):
            assert len(name) <= 1 or name in KEYS


# The command. The guest shows "up", then each scan code as a character, until Q is pressed.

UP = b"\xbf" + struct.pack("<I", 0xB8000) + b"\x66\xc7\x07u\x07\x66\xc7\x47\x02p\x0a\x81\xc7" + struct.pack("<I", 160)
CODES = bytes.fromhex("e464 a801 74fa e460 8807 c6470107 83c702 3c10 75eb")
"""In a loop: wait for OBF in port 0x64, read port 0x60, write it and attribute 7 at RDI; until 0x10."""


def displayed(it: Terminal, size: tuple[int, int]) -> pyte.Screen:
    """What the alternate screen of the terminal shows, from all that came so far."""
    shown = pyte.Screen(*size)
    pyte.ByteStream(shown).feed(it.shown.split(b"\x1b[?1049l")[0])
    return shown


def test_a_session(files: Files) -> None:
    """The screen is drawn, with the cursor; typed keys are scan codes; at the end the text stays."""
    size = (100, 40)
    kernel = files.kernel(say("serial") + UP + CODES + POWER_OFF)
    with terminal("boot", "--kernel", kernel, "--display", "text", size=size) as it:
        it.wait_for(b"\x1b[0;92;40mp")
        it.wait_for(b"serial")
        shown = displayed(it, size)
        assert shown.display[0].rstrip() == "up" and shown.buffer[0][1].fg == "brightgreen"
        assert (shown.cursor.y, shown.cursor.x, shown.cursor.hidden) == (0, 0, False)
        assert shown.display[26].startswith("serial")
        it.type(b"a\x1bOP")
        it.wait_for("▲₧;╗".encode())  # 1E 9E, and F1's 3B BB
        assert displayed(it, size).display[1].rstrip() == "▲₧;╗"
        it.type(b"q")
        assert it.end() == 0
        assert it.shown.split(b"\x1b[?1049l")[1].decode() == "up\r\n▲₧;╗►\r\n"
        assert it.mode() == it.before


@pytest.mark.parametrize(
    ("how", "code", "status", "words"),
    [
        (b"\x01x", HANG, 0, b""),
        (signal.SIGTERM, HANG, 128 + 15, b""),
        (signal.SIGINT, HANG, 130, b"iobus: interrupted\r\n"),
        (None, LOAD, 4, b"ZeroDivisionError"),
    ],
)
def test_the_terminal_is_restored_however_it_ends(
    files: Files, how: bytes | int | None, code: bytes, status: int, words: bytes
) -> None:
    """Ctrl-A X, signals and errors leave the alternate screen, and what is said comes after it."""
    device = files.device(
        "class Mine:\n def read(self, o, s): return 1 // 0 if self else 0\n def write(self, o, s, v): pass\n"
    )
    with terminal("boot", "--kernel", files.kernel(UP + code), "--display", "text", "--device", device) as it:
        it.wait_for(b"\x1b[?1049h")
        if how is not None:
            it.wait_for(b"\x1b[0;92;40mp")
            assert it.mode() != it.before
        if isinstance(how, bytes):
            it.type(how)
        elif how is not None:
            it.process.send_signal(how)
        assert it.end() == status
        drawn, left = it.shown.split(b"\x1b[?1049l")
        assert drawn.endswith(b"\x1b[?25h") and left.startswith(b"up\r\n")
        assert words in left and words not in drawn.replace(left, b"") if words else left == b"up\r\n"
        assert it.mode() == it.before


def test_without_a_terminal_the_text_comes_at_the_end(files: Files) -> None:
    """Standard output is the serial line's; the screen follows, on a line of its own, with no control sequence."""
    done = run_guest(files, say("serial") + UP + say("!") + POWER_OFF, "--display", "text")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"serial!\nup\n", b"")


def test_lines_of_ours_do_not_disturb_the_picture(files: Files) -> None:
    """A trace to the same terminal: the last line is the status line's, all come when the screen is left."""
    kernel = files.kernel(UP + CODES + LOAD + POWER_OFF)
    with terminal("boot", "--kernel", kernel, "--display", "text", "--unclaimed", "ones", "--trace") as it:
        it.wait_for(b"Ctrl-A X leaves  ")
        it.type(b"q")
        assert it.end() == 0
        drawn, left = it.shown.split(b"\x1b[?1049l")
        assert drawn.count(b"\n") == 0
        assert left.count(b"\r\n") > 1 and b"0xd0000000 4 0xffffffff (unclaimed) rip=" in left
