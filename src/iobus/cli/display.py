"""`--display text`: the guest's text screen drawn in the terminal, and the terminal's keys on its keyboard.

Above `console.py`, whose `Console` it takes the place of: `TextDisplay` has the same methods. With a terminal as
standard output the screen is drawn there, on the alternate screen, some 25 times a second where it has changed;
the serial line's last output is below it where there is room. Otherwise standard output is the serial line's, as
without a display. Either way the screen's text is printed when the guest has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Final

from iobus.cli.console import STDOUT, Console, write_all
from iobus.cli.ending import LAST_RESORT
from iobus.devices.vga_screen import Screen
from iobus.pc.keyboard import can_type
from iobus.pc.pc import Pc

_REDRAW_SECONDS: Final = 0.04
_SERIAL_KEPT: Final = 16384  # bytes of the serial line's output, of which the last lines are shown

_SAID_KEPT: Final = 100  # lines of our own, for when the screen is left

_ENTER: Final = b"\x1b[?1049h\x1b[2J\x1b[?25l"
_LEAVE: Final = b"\x1b[0m\x1b[?25h\x1b[?1049l"

_ANSI: Final = (0, 4, 2, 6, 1, 5, 3, 7)
"""A terminal's number of each of the PC's eight colours: red and blue are the other way round."""

# What a terminal sends for keys that are no characters (xterm's control sequences, VT220 style function keys).
_FINAL: Final = {
    "A": "ArrowUp", "B": "ArrowDown", "C": "ArrowRight", "D": "ArrowLeft", "H": "Home", "F": "End",
    "P": "F1", "Q": "F2", "R": "F3", "S": "F4",
}  # fmt: skip
_NUMBERED: Final = {
    1: "Home", 2: "Insert", 3: "Delete", 4: "End", 5: "PageUp", 6: "PageDown", 7: "Home", 8: "End",
    11: "F1", 12: "F2", 13: "F3", 14: "F4", 15: "F5", 17: "F6", 18: "F7", 19: "F8", 20: "F9", 21: "F10",
    23: "F11", 24: "F12",
}  # fmt: skip
_MODIFIERS: Final = ("Shift", "Alt", "Control")  # of the parameter less 1, from bit 0
_KEY: Final = re.compile(
    r"\x1b\[(?:1;(?P<m1>\d+))?(?P<final>[A-DFHPQRS])|\x1bO(?P<ss3>[A-DFHPQRS])|\x1b\[\[(?P<linux>[A-E])"
    r"|\x1b\[(?P<number>\d+)(?:;(?P<m2>\d+))?~|(?P<backtab>\x1b\[Z)|\x1b(?P<alt>[^\x1b])|(?P<char>.)",
    re.DOTALL,
)
_CONTROL_SEQUENCE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.?|[^\n -~\x80-\U0010ffff]")


def keys_typed(typed: str) -> Iterator[str]:
    """Yield the names of the keys, as `HostKeyboard.press` takes them, that a terminal sent as `typed`.

    What no key of the guest's keyboard types is left out.
    """
    for match in _KEY.finditer(typed):
        groups = match.groupdict()
        held = [name for bit, name in enumerate(_MODIFIERS) if int(groups["m1"] or groups["m2"] or 1) - 1 >> bit & 1]
        if letter := groups["final"] or groups["ss3"]:
            yield "+".join([*held, _FINAL[letter]])
        elif groups["linux"]:
            yield f"F{ord(groups['linux']) - 0x40}"
        elif groups["number"]:
            if int(groups["number"]) in _NUMBERED:
                yield "+".join([*held, _NUMBERED[int(groups["number"])]])
        elif groups["backtab"]:
            yield "Shift+Tab"
        elif groups["alt"]:
            if can_type(groups["alt"]):
                yield f"Alt+{groups['alt']}"
        elif can_type(groups["char"]):
            yield groups["char"]


class TextDisplay(Console):
    """As `Console`, with the guest's text screen; what is typed goes to the guest's keyboard."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = os.isatty(STDOUT)
        self._open = False  # guarded by _lock, as what follows
        self._serial = bytearray()
        self._status = ""
        self._said: deque[str] = deque(maxlen=_SAID_KEPT)

    def output(self, data: bytes) -> None:
        """Take what the guest sends on its serial line."""
        if not self._drawn:
            super().output(data)
            return
        with self._lock:
            self._serial += data
            del self._serial[:-_SERIAL_KEPT]

    def say(self, line: str) -> None:
        """Show a line of our own: below the screen, and on standard error when that is left."""
        with self._lock:
            if self._open and self._shared:
                self._status = line
                self._said.append(line)
                return
        super().say(line)

    @contextlib.contextmanager
    def open(self, pc: Pc) -> Iterator[None]:
        """Draw the screen of `pc` and connect the terminal's keys; the terminal is restored however this is left."""
        try:
            with self._terminal(pc) if self._drawn else contextlib.nullcontext(), super().open(pc):
                yield
        finally:
            self._print(str(pc.screen()))

    def _greet(self) -> None:
        if not self._drawn:  # the status line says it all the time
            super()._greet()

    def _type(self, keys: bytes) -> None:
        pc = self._pc
        assert pc is not None
        for key in keys_typed(keys.decode(errors="replace")):
            # Not here: a device that hangs has the lock.
            pc.machine.clock.call_soon(partial(pc.keyboard.press, key))

    def _print(self, text: str) -> None:
        with self._lock:
            if self.lost is None and text:
                start = "\n" if self._mid_line else ""
                with contextlib.suppress(OSError):
                    write_all(STDOUT, _encoded(f"{start}{text}\n"))

    @contextlib.contextmanager
    def _terminal(self, pc: Pc) -> Iterator[None]:
        """The alternate screen, and a thread that draws on it."""
        done = threading.Event()
        drawer = threading.Thread(target=self._draw, args=(pc, done), name="iobus-display", daemon=True)
        try:
            with self._lock:
                self._open = True
            with LAST_RESORT.before(lambda: write_all(STDOUT, _LEAVE)):
                write_all(STDOUT, _ENTER)
                drawer.start()
                yield
        finally:
            done.set()
            if drawer.ident is not None:
                drawer.join()
            with self._lock, contextlib.suppress(OSError):  # the terminal itself may be gone
                self._open = False
                write_all(STDOUT, _LEAVE)
            for line in self._said:
                super().say(line)

    # The drawing thread.

    def _draw(self, pc: Pc, done: threading.Event) -> None:
        rows: list[str] = []
        size, before = (0, 0), None
        while not done.is_set():
            screen = pc.screen()  # takes the machine lock: not with ours, which is a leaf
            with self._lock:
                now = screen, _terminal_size(), bytes(self._serial), self._status
            if now != before:
                before, erase = now, now[1] != size
                size, old = now[1], [] if erase else rows
                rows = picture(*now)
                changed = [
                    f"\x1b[{at};1H\x1b[K{row}\x1b[0m"
                    for at, (row, shown) in enumerate(itertools.zip_longest(rows, old), 1)
                    if row != shown
                ]
                try:
                    write_all(STDOUT, _encoded("\x1b[2J" * erase + "".join(changed) + _cursor(screen, size)))
                except OSError as exc:
                    self.lost = exc
                    self._stop()
                    return
            done.wait(_REDRAW_SECONDS)


def picture(screen: Screen, size: tuple[int, int], serial: bytes, status: str) -> list[str]:
    """Return the rows of a terminal of `size` (columns and lines): screen, serial line, status line.

    Where the screen is the larger one its upper left is shown, or what is above the cursor.
    """
    columns, lines = size
    top, count = _shown_rows(screen, lines)
    if screen.rows:
        text = ("",) * screen.rows if screen.blanked else screen.lines
        rows = [_row(screen, row, text[row][:columns]) for row in range(top, top + count)]
    else:
        rows = ["(The guest's display is in a graphics mode, which is not drawn.)"[:columns]]
    free = lines - 1 - len(rows)
    said = _CONTROL_SEQUENCE.sub("", serial.decode(errors="replace")).splitlines()
    if free >= 2 and said:
        rows.append("\x1b[2m" + "-- serial line --"[:columns])
        rows += [line[:columns] for line in said[-(free - 1) :]]
    rows += [""] * (lines - 1 - len(rows))
    return [*rows, "\x1b[7m" + f" Ctrl-A X leaves  {status}"[:columns].ljust(columns)]


def _shown_rows(screen: Screen, lines: int) -> tuple[int, int]:
    """The first row of the screen that is drawn, and how many are; the last line is the status line's."""
    count = max(0, min(screen.rows, lines - 1))
    cursor = 0 if screen.cursor is None else screen.cursor.row
    return max(0, cursor - count + 1), count


def _row(screen: Screen, row: int, text: str) -> str:
    """A row with its colours."""
    attributes = screen.attributes[row * screen.columns :]
    parts: list[str] = []
    for attribute, run in itertools.groupby(zip(attributes, text, strict=False), key=lambda cell: cell[0]):
        foreground, background = screen.colours(attribute)
        blink = ";5" if screen.blink and attribute & 0x80 else ""
        parts.append(
            f"\x1b[0;{(90 if foreground & 8 else 30) + _ANSI[foreground & 7]}"
            f";{(100 if background & 8 else 40) + _ANSI[background & 7]}{blink}m"
        )
        parts += (character for _, character in run)
    return "".join(parts)


def _cursor(screen: Screen, size: tuple[int, int]) -> str:
    """Put the terminal's cursor where the guest's is, or hide it."""
    top, count = _shown_rows(screen, size[1])
    cursor = screen.cursor
    if cursor is None or screen.blanked or cursor.column >= size[0] or not top <= cursor.row < top + count:
        return "\x1b[?25l"
    return f"\x1b[{cursor.row - top + 1};{cursor.column + 1}H\x1b[?25h"


def _terminal_size() -> tuple[int, int]:
    """Columns and lines of the terminal; a usual one's where it does not know them."""
    with contextlib.suppress(OSError):
        columns, lines = os.get_terminal_size(STDOUT)
        if columns and lines:
            return columns, lines
    return 80, 26


def _encoded(text: str) -> bytes:
    return text.encode(sys.stdout.encoding or "utf-8", errors="replace")
