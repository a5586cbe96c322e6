"""The PS/2 mouse, as the controller sees it: reports and commands, with Microsoft's wheel and side buttons.

Part of `i8042.py`, which is the controller with this and `ps2_keyboard.py` plugged in. After the IBM PS/2
Hardware Interface Technical Reference, "Mouse". The extensions are those of Microsoft's IntelliMouse: the sample
rates 200, 100, 80 in a row make it a wheel mouse (ID 3), 200, 200, 80 one with five buttons too (ID 4).

It reports as soon as its last report is taken, whatever the rate. Movement that does not fit a report stays for
the next one, so the overflow bits are never set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.devices.ps2_keyboard import ACK, BAT_PASSED, RESEND
from iobus.state import U8, Length, Range, State

ERROR: Final = 0xFC
_WHEEL: Final = 3
_FIVE_BUTTONS: Final = 4
_KNOCKS: Final[dict[tuple[int, ...], int]] = {(200, 100, 80): _WHEEL, (200, 200, 80): _FIVE_BUTTONS}


@dataclass
class MouseState(State):
    """What the mouse remembers."""

    replies: Annotated[list[U8], Length(0, 5)] = field(default_factory=list)
    """Its answer to the last command, as far as it is not sent."""
    report: Annotated[list[U8], Length(0, 4)] = field(default_factory=list)
    """What is left to send of a movement report."""
    last: Annotated[bytes, Length(1, 5)] = bytes((BAT_PASSED,))
    """The reply or report it sent last, for a resend."""
    command: U8 = 0
    """The command whose option byte is awaited, or 0."""
    failed: bool = False
    """The last byte was not understood: another such byte is an error."""
    device_id: Annotated[int, Range(0, 4)] = 0
    rates: Annotated[list[U8], Length(0, 3)] = field(default_factory=list)
    """The last three sample rates set, which may be a knock at the extensions' door."""
    enabled: bool = False
    remote: bool = False
    wrap: bool = False
    scaling: bool = False
    """2:1 in stream mode."""
    resolution: Annotated[int, Range(0, 3)] = 2
    """2 ** this counts a millimetre."""
    rate: U8 = 100
    """Reports a second."""
    buttons: Annotated[int, Range(0, 0x1F)] = 0
    """Left, right, middle, back, forward from bit 0."""
    reported: Annotated[int, Range(0, 0x1F)] = 0
    """The buttons as last reported."""
    dx: int = 0
    dy: int = 0
    """Counts not yet reported, right and up positive."""
    dz: int = 0
    """The wheel's, towards the user positive."""


class Mouse:
    """A PS/2 mouse."""

    def __init__(self) -> None:
        self.state = MouseState()

    def send(self) -> int | None:
        """The next byte for the controller, if there is one."""
        state = self.state
        if state.replies:
            return state.replies.pop(0)
        if not state.report and state.enabled and not (state.remote or state.wrap):
            moved = state.dx or state.dy or (state.dz and state.device_id)
            if not moved and self._buttons() == state.reported:
                return None
            state.report = self._report(state.scaling)
            state.last = bytes(state.report)
        return state.report.pop(0) if state.report else None

    def receive(self, value: int) -> None:
        """Take a byte from the controller; what is left of a reply or report is dropped."""
        state = self.state
        state.report.clear()
        if value == 0xFE:
            state.replies = list(state.last)
            return
        if state.wrap and value not in (0xEC, 0xFF):
            state.replies = [value]
        else:
            replies = self._option(value) if state.command else self._command(value)
            if replies is not None:
                state.replies = [ACK, *replies]
            else:
                state.replies = [ERROR if state.failed else RESEND]
            state.failed = replies is None and not state.failed
        state.last = bytes(state.replies)

    def _option(self, value: int) -> list[int] | None:
        """Take the option byte of a command; None where it is not a valid one, which leaves one more try."""
        state = self.state
        if state.command == 0xF3 and value in (10, 20, 40, 60, 80, 100, 200):
            state.rate = value
            state.rates = [*state.rates, value][-3:]
            state.device_id = _KNOCKS.get(tuple(state.rates), state.device_id)
        elif state.command == 0xE8 and value < 4:
            state.resolution = value
        else:
            if state.failed:
                state.command = 0
            return None
        state.command = 0
        return []

    def _command(self, value: int) -> list[int] | None:
        """Carry out a command and return what follows its acknowledgement; None where it is no command."""
        state = self.state
        replies: list[int] = []
        if value == 0xEB:  # read data
            return self._report(False)
        if value in (0xFF, 0xF6):  # reset, set defaults
            state.rate, state.resolution = 100, 2
            state.enabled = state.remote = state.wrap = state.scaling = False
            if value == 0xFF:
                state.device_id = 0
                state.rates.clear()
                replies = [BAT_PASSED, 0x00]
        elif value in (0xF4, 0xF5):
            state.enabled = value == 0xF4
        elif value in (0xF3, 0xE8):  # sample rate, resolution: the value follows
            state.command = value
        elif value == 0xF2:  # read device type
            replies = [state.device_id]
        elif value in (0xF0, 0xEA):  # remote mode, stream mode
            state.remote = value == 0xF0
        elif value in (0xEE, 0xEC):  # wrap mode on, off
            state.wrap = value == 0xEE
        elif value == 0xE9:  # status request
            mode = state.remote << 6 | state.enabled << 5 | state.scaling << 4
            left, right, middle = state.buttons & 1, state.buttons >> 1 & 1, state.buttons >> 2 & 1
            replies = [mode | left << 2 | middle << 1 | right, state.resolution, state.rate]
        elif value in (0xE7, 0xE6):
            state.scaling = value == 0xE7
        else:
            return None
        state.dx = state.dy = state.dz = 0
        return replies

    def _buttons(self) -> int:
        """The buttons that reports tell."""
        return self.state.buttons & (0x1F if self.state.device_id == _FIVE_BUTTONS else 0x07)

    def _report(self, scaled: bool) -> list[int]:
        state = self.state
        limit = 127 if scaled else 255
        dx, dy = (max(-limit, min(limit, count)) for count in (state.dx, state.dy))
        dz = max(-8, min(7, state.dz))
        state.dx -= dx
        state.dy -= dy
        state.dz = state.dz - dz if state.device_id else 0
        state.reported = self._buttons()
        if scaled:
            dx, dy = _scale(dx), _scale(dy)
        report = [state.buttons & 7 | 1 << 3 | (dx < 0) << 4 | (dy < 0) << 5, dx & 0xFF, dy & 0xFF]
        if state.device_id == _WHEEL:
            report.append(dz & 0xFF)
        elif state.device_id == _FIVE_BUTTONS:
            report.append(dz & 0xF | (state.buttons >> 3 & 3) << 4)
        return report


def _scale(count: int) -> int:
    """2:1 scaling."""
    size = abs(count)
    size = (0, 1, 1, 3, 6, 9)[size] if size < 6 else 2 * size
    return -size if count < 0 else size
