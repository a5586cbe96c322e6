"""The host's hands on the PC's keyboard: keys by name, text by the US layout.

Above `devices/i8042.py`, which has the keyboard itself. Keys have the names of the W3C's UI Events
("Enter", "ArrowUp", "F1", and a character for itself). A key goes to the guest when it has read what came
before it, so that text of any length arrives whole: a real keyboard, which holds 16 bytes, would lose the rest.
It goes there with its release, so that it does not repeat before a busy guest.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from iobus.devices.i8042 import I8042
from iobus.devices.ps2_keyboard import PAUSE
from iobus.machine import Machine

_ROWS: Final = (  # first make code, the keys' characters, and those with Shift
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
)
_SHIFT: Final = 0x2A
_CONTROL: Final = 0x1D

_KEYPAD: Final = zip("789456123", (0x47, 0x48, 0x49, 0x4B, 0x4C, 0x4D, 0x4F, 0x50, 0x51), strict=True)

KEYS: Final[dict[str, int]] = {char: first + at for first, plain, _ in _ROWS for at, char in enumerate(plain)} | {
    "Escape": 0x01, "Backspace": 0x0E, "Tab": 0x0F, "Enter": 0x1C,
    "CapsLock": 0x3A, "NumLock": 0x45, "ScrollLock": 0x46,
    "Control": _CONTROL, "Shift": _SHIFT, "Alt": 0x38, "Meta": 0xE05B,
    "ControlRight": 0xE01D, "ShiftRight": 0x36, "AltRight": 0xE038, "MetaRight": 0xE05C, "ContextMenu": 0xE05D,
    "Home": 0xE047, "ArrowUp": 0xE048, "PageUp": 0xE049, "ArrowLeft": 0xE04B, "ArrowRight": 0xE04D, "End": 0xE04F,
    "ArrowDown": 0xE050, "PageDown": 0xE051, "Insert": 0xE052, "Delete": 0xE053, "PrintScreen": 0xE037, "Pause": PAUSE,
    "NumpadMultiply": 0x37, "NumpadSubtract": 0x4A, "NumpadAdd": 0x4E, "NumpadDecimal": 0x53, "NumpadDivide": 0xE035,
    "NumpadEnter": 0xE01C, "IntlBackslash": 0x56, "F11": 0x57, "F12": 0x58,
    **{f"F{number}": 0x3A + number for number in range(1, 11)},
    **{f"Numpad{digit}": code for digit, code in _KEYPAD}, "Numpad0": 0x52,
}  # fmt: skip
"""The keys by name: each its make code in scan code set 1."""

_CHARACTERS: Final = (
    {char: (code,) for char, code in KEYS.items() if len(char) == 1}
    | {char: (_SHIFT, first + at) for first, _, shifted in _ROWS for at, char in enumerate(shifted) if char != " "}
    # Control characters: with Ctrl, as a terminal makes them. Those that have a key of their own come last.
    | {chr(code & 0x1F): (_CONTROL, KEYS[chr(code).lower()]) for code in range(0x41, 0x5E)}
    | {"\0": (_CONTROL, KEYS[" "]), "\x1e": (_CONTROL, KEYS["6"]), "\x1f": (_CONTROL, KEYS["-"])}
    | {"\n": (KEYS["Enter"],), "\r": (KEYS["Enter"],), "\t": (KEYS["Tab"],)}
    | {"\x1b": (KEYS["Escape"],), "\b": (KEYS["Backspace"],), "\x7f": (KEYS["Backspace"],)}
)
"""What is held down for a character, in order."""

_Stroke = tuple[tuple[int, bool], ...]
"""Make codes, each with whether the key is released, that a guest gets together."""
_AT_ONCE: Final = 3
"""Keys pressed and released in one stroke: as many as the keyboard's buffer holds, whichever they are."""
_NEXT_NS: Final = 2_000_000
"""Between two keys that the guest reads at once: about the time their bytes are on a real wire."""
_BUSY_NS: Final = 10_000_000
"""Until a guest that had not read the last key is tried again."""


class HostKeyboard:
    """The keyboard of a PC, from the host's side. All methods may be called from any thread, and return at once."""

    def __init__(self, controller: I8042, machine: Machine) -> None:
        self._controller = controller
        self._lock = machine.lock
        self._clock = machine.clock
        self._timer = machine.clock.timer(self._send, "typing")
        self._waiting: deque[_Stroke] = deque()  # guarded by machine.lock

    def type(self, text: str) -> None:
        """Type `text`: each of its characters is pressed and released, with Shift or Ctrl where it takes it.

        Line feed and carriage return are Enter, and the other control characters what a terminal sends for
        Ctrl and a key. Raises `ValueError`, and types nothing, where the US layout has no key for a character.
        """
        for char in text:
            if char not in _CHARACTERS:
                raise ValueError(f"character {char!r} is on no key of the US layout: only ASCII can be typed")
        self._put(_stroke(_CHARACTERS[char]) for char in text)

    def press(self, keys: str) -> None:
        """Press and release a key, or keys held together: "a", "A", "Enter", "Control+Alt+Delete".

        Raises `ValueError` for a name that is no key's.
        """
        codes: list[int] = []
        for name in re.split(r"(?<!^)\+(?!$)", keys):
            codes += _CHARACTERS[name] if name in _CHARACTERS else (_code(name),)
        stroke = _stroke(codes)
        self._put([stroke] if len(codes) <= _AT_ONCE else [(event,) for event in stroke])

    def down(self, key: str) -> None:
        """Press a key of `KEYS` and hold it: it repeats. Raises `ValueError`."""
        self._put([((_code(key), False),)])

    def up(self, key: str) -> None:
        """Release a key of `KEYS`. Raises `ValueError`."""
        self._put([((_code(key), True),)])

    def clear(self) -> None:
        """Forget what the guest has not taken yet."""
        with self._lock:
            self._waiting.clear()
            self._timer.cancel()

    def _put(self, strokes: Iterable[_Stroke]) -> None:
        with self._lock:
            self._waiting.extend(strokes)
            if self._timer.deadline is None:
                self._send()

    def _send(self) -> None:
        """Give the guest the next stroke if it takes one, and come back for the rest."""
        wait = _BUSY_NS
        if self._waiting and self._controller.takes_keys:
            for code, release in self._waiting.popleft():
                if release:
                    self._controller.release(code)
                else:
                    self._controller.press(code)
            wait = _NEXT_NS
        if self._waiting:
            self._timer.arm(self._clock.now() + wait)


def can_type(character: str) -> bool:
    """Return whether the US layout has `character`, so that `type` and `press` take it."""
    return character in _CHARACTERS


def _code(name: str) -> int:
    if name not in KEYS:
        names = ", ".join(name for name in KEYS if len(name) > 1)
        raise ValueError(f"key {name!r}: give a character that a key types without Shift, or one of {names}")
    return KEYS[name]


def _stroke(codes: Sequence[int]) -> _Stroke:
    """Each key pressed in order, and released in the other."""
    return (*((code, False) for code in codes), *((code, True) for code in reversed(codes)))
