"""The PS/2 keyboard, as the controller sees it: scan codes, commands, typematic repeat.

Part of `i8042.py`, which is the controller with this and `ps2_mouse.py` plugged in. After the IBM PS/2
Hardware Interface Technical Reference, "101- and 102-Key Keyboards": its three scan code sets, its 16-byte
buffer, every command. A key is named by its make code in scan code set 1, with the prefix: 0x1E, 0xE048.

What differs: a byte takes no time on its way, the basic assurance test neither; the cursor keys do not send
the shift codes around theirs that depend on Num Lock and Shift. Set 3 begins with every key typematic and
with a release code, as its set-default command documents, whatever the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.clock import Clock
from iobus.state import U8, Length, Range, State, StateError, Time

ACK: Final = 0xFA
RESEND: Final = 0xFE
BAT_PASSED: Final = 0xAA
RELEASED: Final = 0xF0
PAUSE: Final = 0xE11D45
"""The Pause key: its make code is E1 1D 45, and it has no release."""

# IBM's keyboard holds 16 bytes of codes. As bytes take no time here, Linux's probe, which reads until
# nothing is left and gives up after 16, must come to the end: of these, the overrun code, and the output buffer.
_CODES: Final = 14

# What the controller makes of a byte of scan code set 2: the technical reference's table of scan codes
# in sets 1 and 2. From 0x85 on a byte stands for itself.
TRANSLATION: Final = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59  65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d  69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61  6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f  52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
    "80 81 82 41 54"
) + bytes(range(0x85, 0x100))
# The other way. Of the two codes that give F7 and SysRq, the later one is what keyboards send.
_SET_2: Final = {translated: code for code, translated in enumerate(TRANSLATION[:0x85]) if code and translated < 0x80}

# Set 3 has one byte for every key: set 2's for the typewriter keys and the digits of the keypad, others for these.
_SET_3: Final = {code: _SET_2[code] for code in (*range(0x02, 0x37), 0x39, *range(0x47, 0x54))} | {
    0x01: 0x08, 0x1D: 0x11, 0x2B: 0x5C, 0x38: 0x19, 0x3A: 0x14, 0x56: 0x13,  # Esc, Ctrl, \, Alt, Caps Lock, 102nd
    0x3B: 0x07, 0x3C: 0x0F, 0x3D: 0x17, 0x3E: 0x1F, 0x3F: 0x27, 0x40: 0x2F,  # F1 to F6
    0x41: 0x37, 0x42: 0x3F, 0x43: 0x47, 0x44: 0x4F, 0x57: 0x56, 0x58: 0x5E,  # F7 to F12
    0x45: 0x76, 0x46: 0x5F, 0x37: 0x7E, 0x4A: 0x84, 0x4E: 0x7C,  # Num Lock, Scroll Lock, keypad * - +
    0xE01C: 0x79, 0xE035: 0x77, 0xE01D: 0x58, 0xE038: 0x39,  # keypad Enter and /, right Ctrl, right Alt
    0xE047: 0x6E, 0xE048: 0x63, 0xE049: 0x6F, 0xE04B: 0x61, 0xE04D: 0x6A,  # Home, up, Page Up, left, right
    0xE04F: 0x65, 0xE050: 0x60, 0xE051: 0x6D, 0xE052: 0x67, 0xE053: 0x64,  # End, down, Page Down, Insert, Delete
    0xE037: 0x57, PAUSE: 0x62, 0xE05B: 0x8B, 0xE05C: 0x8C, 0xE05D: 0x8D,  # Print Screen, Pause, Windows keys, menu
}  # fmt: skip

# What a key of scan code set 3 sends besides its make code.
_TYPEMATIC: Final = 1 << 0
_BREAK: Final = 1 << 1
_ALL_KEYS: Final = {0xF7: _TYPEMATIC, 0xF8: _BREAK, 0xF9: 0, 0xFA: _TYPEMATIC | _BREAK}
_SOME_KEYS: Final = {0xFB: _TYPEMATIC, 0xFC: _BREAK, 0xFD: 0}


def _is_key(code: int) -> bool:
    return code == PAUSE or (code >> 8 in (0, 0xE0) and 0 < code & 0xFF < 0x80)


@dataclass
class KeyboardState(State):
    """What the keyboard remembers."""

    replies: Annotated[list[U8], Length(0, 3)] = field(default_factory=list)
    """Its answer to the last command, as far as it is not sent."""
    codes: Annotated[list[U8], Length(0, _CODES + 1)] = field(default_factory=list)
    """Scan code bytes not sent yet."""
    last: U8 = BAT_PASSED
    """The byte it sent last."""
    mid_code: bool = False
    """That byte was a prefix: the code's end goes before any reply."""
    command: U8 = 0
    """The command whose option byte is awaited, or 0."""
    scan_set: Annotated[int, Range(1, 3)] = 2
    scanning: bool = True
    leds: Annotated[int, Range(0, 7)] = 0
    """Scroll Lock, Num Lock, Caps Lock from bit 0."""
    typematic: Annotated[int, Range(0, 0x7F)] = 0x2B
    """Delay and rate: 500 ms, 10.9 characters a second."""
    types: bytearray = field(default_factory=lambda: bytearray([_TYPEMATIC | _BREAK]) * 0x100, repr=False)
    """By scan code of set 3: whether it repeats and whether its release is told."""
    held: int = 0
    """The key that repeats: the last one pressed, as long as it is down; or 0."""
    repeat_at: Time | None = None
    """When it repeats next, in ns."""

    def check(self) -> None:
        if self.held and not _is_key(self.held):
            raise StateError(f"KeyboardState.held: {self.held:#x} is no key's make code")
        if bool(self.held) != (self.repeat_at is not None):
            raise StateError(f"KeyboardState: key {self.held:#x} is held and repeats at {self.repeat_at}: both or none")


class Keyboard:
    """A PS/2 keyboard. `more` is called when it has something to send of its own accord: a key repeats."""

    def __init__(self, clock: Clock, more: Callable[[], None]) -> None:
        self._clock = clock
        self._more = more
        self._timer = clock.timer(self._repeat, "typematic")
        self.state = KeyboardState()

    def restored(self) -> None:
        """Take up `state`, which was replaced."""
        if self.state.repeat_at is None:
            self._timer.cancel()
        else:
            self._timer.arm(self.state.repeat_at)

    def key(self, code: int, release: bool) -> bool:
        """Hold the code of a key pressed or released; False where it is lost.

        Raises `ValueError` for what is no key's make code.
        """
        if not _is_key(code):
            raise ValueError(
                f"key code {code:#x}: use a make code of scan code set 1, 0x01-0x7f or 0xe001-0xe07f, or PAUSE"
            )
        state = self.state
        if not state.scanning:
            return False
        if not release:
            self._hold(code)
        elif code == state.held:
            self._hold(0)
        return self._queue(self._bytes(code, release))

    def send(self) -> int | None:
        """The next byte for the controller, if there is one."""
        state = self.state
        if state.replies and not (state.mid_code and state.codes):
            state.last = state.replies.pop(0)
        elif state.codes:
            state.last = state.codes.pop(0)
            state.mid_code = state.last in (0xE0, 0xE1, RELEASED)
        else:
            return None
        return state.last

    def receive(self, value: int) -> None:
        """Take a byte from the controller; what is left of an earlier reply is dropped."""
        state = self.state
        command, state.command = state.command, 0
        state.replies = [ACK]
        if command and value < 0xED:
            self._option(command, value)
        elif value == 0xFF:  # reset, then the basic assurance test
            self._set_defaults()
            state.scanning, state.leds = True, 0
            state.replies = [ACK, BAT_PASSED]
        elif value == 0xFE:
            state.replies = [state.last]
        elif value in _ALL_KEYS:
            state.types[:] = bytes([_ALL_KEYS[value]]) * len(state.types)
        elif value in (0xF5, 0xF6):  # defaults, and stop or go on
            self._set_defaults()
            state.scanning = value == 0xF6
        elif value == 0xF4:
            self._clear()
            state.scanning = True
        elif value == 0xF2:
            state.replies = [ACK, 0xAB, 0x83]
        elif value in (0xED, 0xF0, 0xF3) or value in _SOME_KEYS:
            state.command = value
        elif value == 0xEE:  # echo
            state.replies = [0xEE]
        else:
            state.replies = [RESEND]

    def _option(self, command: int, value: int) -> None:
        state = self.state
        if command == 0xED:
            state.leds = value & 7
        elif command == 0xF3:
            state.typematic = value & 0x7F
        elif command in _SOME_KEYS:
            state.types[value] = _SOME_KEYS[command]
            state.command = command  # a list of keys, which the next command ends
        elif value == 0:
            state.replies = [ACK, state.scan_set]
        elif value in (1, 2, 3):
            self._clear()
            state.scan_set = value
        else:
            state.replies, state.command = [RESEND], command

    def _set_defaults(self) -> None:
        self._clear()
        state, fresh = self.state, KeyboardState()
        state.scan_set, state.typematic, state.types = fresh.scan_set, fresh.typematic, fresh.types

    def _clear(self) -> None:
        """Empty the buffer, and let no key repeat."""
        self.state.codes.clear()
        self._hold(0)

    def _bytes(self, code: int, release: bool) -> bytes:
        """What the key sends in the scan code set that is selected."""
        low, state = code & 0xFF, self.state
        if state.scan_set == 3:
            key = _SET_3.get(code)
            if key is None or (release and not state.types[key] & _BREAK):
                return b""
            return bytes((RELEASED, key)) if release else bytes((key,))
        if code == PAUSE:
            make = b"\xe1\x1d\x45\xe1\x9d\xc5" if state.scan_set == 1 else b"\xe1\x14\x77\xe1\xf0\x14\xf0\x77"
            return b"" if release else make
        prefix = b"\xe0" if code >> 8 else b""
        if state.scan_set == 1:
            return prefix + bytes((low | (0x80 if release else 0),))
        return prefix + (b"\xf0" if release else b"") + bytes((_SET_2[low],))

    def _queue(self, data: bytes) -> bool:
        """Keep scan codes until they can be sent; the overrun code instead, and False, where there is no room."""
        state = self.state
        if len(state.codes) + len(data) > _CODES:
            overrun = 0xFF if state.scan_set == 1 else 0x00
            if state.codes[-1] != overrun:
                state.codes.append(overrun)
            return False
        state.codes.extend(data)
        return True

    # Typematic.

    def _hold(self, code: int) -> None:
        """Let the key of `code` repeat after the delay, and no other; none where it is 0."""
        state = self.state
        state.held, state.repeat_at = 0, None
        if code and self._repeats(code):
            state.held = code
            state.repeat_at = self._clock.now() + ((state.typematic >> 5 & 3) + 1) * 250_000_000
        self.restored()

    def _repeats(self, code: int) -> bool:
        state = self.state
        if state.scan_set == 3:
            return code in _SET_3 and bool(state.types[_SET_3[code]] & _TYPEMATIC)
        return code != PAUSE

    def _repeat(self) -> None:
        state = self.state
        if state.repeat_at is None:
            return
        self._queue(self._bytes(state.held, False))
        rate = state.typematic & 0x1F
        period = (8 + (rate & 7) << (rate >> 3)) * 4_170_000
        missed = (self._clock.now() - state.repeat_at) // period
        state.repeat_at += (missed + 1) * period
        self._timer.arm(state.repeat_at)
        self._more()
