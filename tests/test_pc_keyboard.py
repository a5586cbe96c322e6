"""Typing on the PC's keyboard from the host: keys by name, text of any length, nothing lost. Without a CPU."""

from __future__ import annotations

import pytest

from iobus.clock import SteppedClock
from iobus.pc.keyboard import KEYS
from iobus.pc.pc import Pc

# What US keyboards print for the make codes of scan code set 1, plain and with Shift.
PLAIN = dict(zip((*range(0x02, 0x0E), *range(0x10, 0x1C), *range(0x1E, 0x2A), *range(0x2B, 0x36), 0x39),
                 "1234567890-=qwertyuiop[]asdfghjkl;'`\\zxcvbnm,./ ", strict=True))  # fmt: skip
SHIFTED = dict(zip(PLAIN, '!@#$%^&*()_+QWERTYUIOP{}ASDFGHJKL:"~|ZXCVBNM<>? ', strict=True))
NAMED = {0x1C: "\n", 0x0F: "\t", 0x01: "\x1b", 0x0E: "\b"}


class Guest:
    """A PC whose guest reads the keyboard: `take` gives the scan codes that have come by then."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.pc = Pc(memory=1 << 20, clock=self.clock)

    def take(self, ms: int = 10_000) -> list[int]:
        codes = []
        for _ in range(ms):
            while (status := self.pc.machine.pio.read(0x64, 1)) and isinstance(status, int) and status & 1:
                code = self.pc.machine.pio.read(0x60, 1)
                assert isinstance(code, int)
                codes.append(code)
            self.clock.advance(1_000_000)
        return codes


def characters(codes: list[int]) -> str:
    """What a guest with a US layout makes of scan codes."""
    text, down = "", set()
    for code in codes:
        if code & 0x80:
            down.discard(code & 0x7F)
            continue
        down.add(code)
        if code not in (0x2A, 0x1D):
            char = NAMED.get(code) or (SHIFTED if 0x2A in down else PLAIN)[code]
            text += chr(ord(char.upper()) & 0x1F) if 0x1D in down else char
    assert not down, "keys that stay down"
    return text


def test_text_arrives_whole() -> None:
    """Every character of ASCII, and more of them than a keyboard's buffer holds, in order."""
    guest = Guest()
    text = "".join(map(chr, range(0x20, 0x7F))) + "\n" + "The quick brown fox. " * 20
    guest.pc.keyboard.type(text)
    assert characters(guest.take()) == text


def test_control_characters() -> None:
    """As a terminal sends them: Ctrl and a letter, or the key of their own."""
    guest = Guest()
    guest.pc.keyboard.type("\x03\x04\x1a\x1b\t\b\x7f\r\n\x1c")
    assert characters(guest.take()) == "\x03\x04\x1a\x1b\t\b\b\n\n\x1c"


def test_a_guest_that_does_not_read_gets_no_more() -> None:
    """What is typed waits on the host's side: of a minute's waiting the guest sees nothing, no repeat either."""
    guest = Guest()
    guest.pc.keyboard.type("hello")
    guest.clock.advance(60_000_000_000)
    assert characters(guest.take()) == "hello"


@pytest.mark.parametrize("keys", ["ControlRight+AltRight+Delete", "Control+Alt+Shift+MetaRight+ArrowUp+ArrowDown+a"])
def test_keys_held_together_fit(keys: str) -> None:
    """However many keys and however long their codes: each is told once, pressed and released, with no overrun."""
    guest = Guest()
    guest.pc.keyboard.press(keys)
    codes = [code for code in guest.take() if code != 0xE0]
    names = keys.split("+")
    assert len(codes) == 2 * len(names)
    assert codes == [KEYS[name] & 0x7F for name in names] + [KEYS[name] & 0x7F | 0x80 for name in reversed(names)]


def test_a_guest_that_is_not_ready_loses_nothing() -> None:
    """With the keyboard switched off, as while a driver starts, typed text waits."""
    guest = Guest()
    guest.pc.machine.pio.write(0x60, 1, 0xF5)
    assert guest.take(1) == [0xFA]
    guest.pc.keyboard.type("ls\n")
    assert guest.take(100) == []
    guest.pc.machine.pio.write(0x60, 1, 0xF4)
    codes = guest.take()
    assert codes.pop(0) == 0xFA
    assert characters(codes) == "ls\n"


@pytest.mark.parametrize(
    ("keys", "codes"),
    [
        ("a", [0x1E, 0x9E]),
        ("A", [0x2A, 0x1E, 0x9E, 0xAA]),
        ("+", [0x2A, 0x0D, 0x8D, 0xAA]),
        ("Enter", [0x1C, 0x9C]),
        ("ArrowUp", [0xE0, 0x48, 0xE0, 0xC8]),
        ("F10", [0x44, 0xC4]),
        ("F11", [0x57, 0xD7]),
        ("Numpad5", [0x4C, 0xCC]),
        ("Control+Alt+Delete", [0x1D, 0x38, 0xE0, 0x53, 0xE0, 0xD3, 0xB8, 0x9D]),
        ("Control++", [0x1D, 0x2A, 0x0D, 0x8D, 0xAA, 0x9D]),
        ("Pause", [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]),
    ],
)
def test_press(keys: str, codes: list[int]) -> None:
    """A key, or keys held together, by their names in UI Events; released in the other order."""
    guest = Guest()
    guest.pc.keyboard.press(keys)
    assert guest.take(200) == codes


def test_a_key_that_is_held_repeats() -> None:
    """`down` and `up`: half a second, then about 11 a second."""
    guest = Guest()
    guest.pc.keyboard.down("a")
    codes = guest.take(1000)
    assert set(codes) == {0x1E} and 6 <= len(codes) <= 7
    guest.pc.keyboard.up("a")
    assert guest.take(1000) == [0x9E]


def test_what_was_typed_before_a_reset_is_gone() -> None:
    """As what a keyboard holds."""
    guest = Guest()
    guest.pc.keyboard.type("before")
    guest.pc.reset()
    guest.pc.keyboard.type("after")
    assert characters(guest.take()) == "after"


def test_keys_that_are_not_there() -> None:
    """The sentence names what was wanted, and nothing at all is typed."""
    guest = Guest()
    keyboard = guest.pc.keyboard
    with pytest.raises(ValueError, match="'é' is on no key of the US layout"):
        keyboard.type("caf\xe9")
    for wrong in ("Return", "", "ls", "Control+", "+a", "Control+Return"):
        with pytest.raises(ValueError, match="give a character that a key types without Shift, or one of Escape"):
            keyboard.press(wrong)
    with pytest.raises(ValueError, match="key 'A'"):
        keyboard.down("A")
    assert guest.take(100) == []


def test_every_key_has_a_code_of_its_own() -> None:
    """No name is another's double."""
    assert len(set(KEYS.values())) == len(KEYS) == 105  # 101 keys, the 102nd, two Windows keys, menu
