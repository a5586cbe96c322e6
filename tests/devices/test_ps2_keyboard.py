"""The keyboard by the IBM PS/2 Hardware Interface Technical Reference, seen through the controller."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ps2_rig import RAW, TRANSLATED, Board

from iobus.clock import Clock
from iobus.devices.ps2_keyboard import PAUSE, Keyboard


def test_keyboard_reset() -> None:
    """FF: acknowledge, then the basic assurance test's AA; LEDs and the code set go back."""
    board = Board()
    board.data(0xF0, 0x01, 0xED, 0x07)
    board.drain()
    assert board.kbc.state.keyboard.leds == 7
    board.data(0xFF)
    assert board.drain() == [0xFA, 0xAA]
    assert board.kbc.state.keyboard.leds == 0
    board.command(0x60, RAW)
    board.kbc.press(0x1E)
    assert board.drain() == [0x1C]


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xF2], [0xFA, 0xAB, 0x83]),
        ([0xEE], [0xEE]),
        ([0xF3, 0x20], [0xFA]),
        ([0xF4], [0xFA]),
        ([0xF5], [0xFA]),
        ([0xF6], [0xFA]),
        ([0xFA], [0xFA]),
        ([0xF0, 0x00], [0xFA, 0x02]),
        ([0xF0, 0x07], [0xFE]),
        ([0xEF], [0xFE]),
        ([0x12], [0xFE]),
        ([0xED, 0xF2], [0xFA, 0xAB, 0x83]),  # a command where an option is due is the command
    ],
)
def test_keyboard_commands(sent: list[int], answer: list[int]) -> None:
    """Untranslated answers to each command; an invalid one asks for a resend."""
    board = Board()
    board.command(0x60, RAW)
    for byte in sent[:-1]:
        board.data(byte)
        assert board.drain() == [0xFA]
    board.data(sent[-1])
    assert board.drain() == answer


def test_keyboard_resend() -> None:
    """FE: the byte sent last, again."""
    board = Board()
    board.data(0xEE)
    board.drain()
    board.data(0xFE)
    assert board.drain() == [0xEE]


def test_disabled_keyboard_sends_no_keys() -> None:
    """F5 stops scanning, F4 starts it with an empty buffer."""
    board = Board()
    board.data(0xF5)
    board.drain()
    assert board.kbc.press(0x1E) is False
    assert board.drain() == []
    board.data(0xF4)
    assert board.drain() == [0xFA]
    assert board.kbc.press(0x1E) is True
    assert board.drain() == [0x1E]


# A few keys whose codes the reference's tables give: set 1 make, set 2 make.
KEYS = [(0x01, 0x76), (0x1E, 0x1C), (0x1C, 0x5A), (0x39, 0x29), (0x3B, 0x05), (0x41, 0x83), (0x58, 0x07), (0x2A, 0x12)]


@pytest.mark.parametrize(("set_1", "set_2"), KEYS)
def test_key_codes(set_1: int, set_2: int) -> None:
    """Set 2 as it comes, translated to set 1, and set 1 by the keyboard itself; E0 stands before each."""
    for prefix in ([], [0xE0]):
        code = set_1 | (0xE000 if prefix else 0)
        for command_byte, scan_set, make, release in (
            (RAW, 2, [set_2], [0xF0, set_2]),
            (TRANSLATED, 2, [set_1], [set_1 | 0x80]),
            (RAW, 1, [set_1], [set_1 | 0x80]),
        ):
            board = Board()
            board.data(0xF0, scan_set)
            board.drain()
            board.command(0x60, command_byte)
            board.kbc.press(code)
            assert board.drain() == prefix + make
            board.kbc.release(code)
            assert board.drain() == prefix + release


@given(st.integers(1, 0x7F), st.booleans())
def test_translation_undoes_set_2_for_every_key(low: int, release: bool) -> None:
    """The keyboard's set 2 and the controller's translation together give set 1."""
    board = Board()
    (board.kbc.release if release else board.kbc.press)(low)
    assert board.drain() == [low | 0x80 if release else low]


def test_a_release_code_says_nothing_of_the_next_key() -> None:
    """The translation's F0 counts for one code."""
    board = Board()
    board.kbc.release(0x1E)
    board.kbc.press(0x1F)
    assert board.drain() == [0x9E, 0x1F]


def test_pause() -> None:
    """E1 1D 45 E1 9D C5, all at the press; nothing at the release."""
    board = Board()
    board.kbc.press(PAUSE)
    assert board.drain() == [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]
    board.kbc.release(PAUSE)
    assert board.drain() == []


def test_a_full_keyboard_ends_with_the_overrun_code() -> None:
    """Keys that do not fit are lost, and 00 (FF when translated) says so once; then it goes on."""
    board = Board()
    taken = [board.kbc.press(0x1E) for _ in range(100)]
    assert not taken[-1]
    kept = taken.count(True)
    codes = board.drain()
    assert codes == [0x1E] * kept + [0xFF]
    assert len(codes) <= 16  # Linux's probe gives up when it reads more
    assert board.kbc.press(0x1E)
    assert board.drain() == [0x1E]


def test_a_reply_does_not_split_a_release_code() -> None:
    """F0 and the code belong together, also when a command comes in between."""
    board = Board()
    board.command(0x60, RAW)
    board.kbc.release(0x1E)
    board.data(0xEE)
    assert board.drain() == [0xF0, 0x1C, 0xEE]


@pytest.mark.parametrize("code", [0, 0x80, 0xE000, 0xE0F0, 0x11E, -1])
def test_no_such_key(code: int) -> None:
    """A host's mistake is told, and the guest sees nothing of it."""
    board = Board()
    with pytest.raises(ValueError, match="make code of scan code set 1"):
        board.kbc.press(code)
    assert board.drain() == []


# Scan code set 3.

SET_3 = [
    (0x01, 0x08), (0x3B, 0x07), (0x58, 0x5E), (0x0F, 0x0D), (0x1D, 0x11), (0xE01D, 0x58), (0x38, 0x19), (0xE038, 0x39),
    (0x1C, 0x5A), (0x2A, 0x12), (0x36, 0x59), (0x3A, 0x14), (0x2B, 0x5C), (0x45, 0x76), (0x4A, 0x84), (0xE01C, 0x79),
    (0xE048, 0x63), (0xE053, 0x64), (0xE05B, 0x8B), (0x1E, 0x1C), (0x39, 0x29), (0x53, 0x71), (PAUSE, 0x62),
]  # fmt: skip


@pytest.mark.parametrize(("key", "code"), SET_3)
def test_scan_code_set_3(key: int, code: int) -> None:
    """One byte for every key, F0 and that byte at its release, Pause included."""
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 3, 0xF0)
    board.drain()
    board.data(0)
    assert board.drain() == [0xFA, 3]
    board.kbc.press(key)
    assert board.drain() == [code]
    board.kbc.release(key)
    assert board.drain() == [0xF0, code]


def test_every_key_of_set_3_has_a_code_of_its_own() -> None:
    """No two keys share a code, and a key that the set does not have sends nothing."""
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 3)
    board.drain()
    sent = []
    for key in [*range(1, 0x80), *range(0xE001, 0xE080), PAUSE]:
        assert board.kbc.press(key)
        data = board.drain()
        assert len(data) <= 1
        sent += data
    assert len(sent) == len(set(sent)) == 105  # 101 keys, the 102nd, two Windows keys, menu


@pytest.mark.parametrize(
    ("command", "repeats", "tells_release"),
    [(0xF7, True, False), (0xF8, False, True), (0xF9, False, False), (0xFA, True, True)],
)
def test_key_types_of_set_3(command: int, repeats: bool, tells_release: bool) -> None:
    """F7 typematic, F8 make and break, F9 make, FA all of it; F6 makes it all again."""
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 3, command)
    board.drain()
    board.kbc.press(0x1E)
    board.clock.advance(510_000_000)
    assert board.drain() == ([0x1C, 0x1C] if repeats else [0x1C])
    board.kbc.release(0x1E)
    assert board.drain() == ([0xF0, 0x1C] if tells_release else [])
    board.data(0xF6, 0xF0, 3)
    board.drain()
    board.kbc.press(0x1E)
    board.kbc.release(0x1E)
    assert board.drain() == [0x1C, 0xF0, 0x1C]


def test_key_types_of_single_keys() -> None:
    """FB, FC, FD take a list of codes, each acknowledged; the next command ends it."""
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 3)
    board.drain()
    for byte in (0xFD, 0x1C, 0x32, 0xFC, 0x21, 0xEE):
        board.data(byte)
        assert board.drain() == [0xEE if byte == 0xEE else 0xFA]
    for key in (0x1E, 0x30, 0x2E, 0x20):  # A, B, C, D
        board.kbc.press(key)
        board.kbc.release(key)
    assert board.drain() == [0x1C, 0x32, 0x21, 0xF0, 0x21, 0x23, 0xF0, 0x23]


def test_key_types_are_of_set_3_only() -> None:
    """In set 2 every key tells its release."""
    board = Board()
    board.data(0xF9)
    board.drain()
    board.kbc.press(0x1E)
    board.kbc.release(0x1E)
    assert board.drain() == [0x1E, 0x9E]


# Typematic.

MS = 1_000_000


def test_a_key_repeats_as_long_as_it_is_down() -> None:
    """After 500 ms by default, then 10.9 times a second: every 91.7 ms."""
    board = Board()
    board.kbc.press(0x1E)
    assert board.drain() == [0x1E]
    board.clock.advance(499 * MS)
    assert board.drain() == []
    repeats = []
    for _ in range(10_000):
        board.clock.advance(MS // 10)
        repeats += [board.clock.now()] * len(board.drain())
    assert abs(repeats[0] - 500 * MS) < MS
    assert all(abs(later - earlier - 91.7 * MS) < MS for earlier, later in itertools.pairwise(repeats))
    assert len(repeats) == 11
    board.kbc.release(0x1E)
    board.drain()
    board.clock.advance(1000 * MS)
    assert board.drain() == []


@pytest.mark.parametrize(
    ("byte", "delay", "rate"), [(0x00, 250, 30.0), (0x20, 500, 30.0), (0x4B, 750, 10.9), (0x7F, 1000, 2.0)]
)
def test_typematic_delay_and_rate(byte: int, delay: int, rate: float) -> None:
    """F3: bits 6-5 the delay in quarters of a second, bits 4-0 the rate, (8 + A) * 2^B * 4.17 ms a period."""
    board = Board()
    board.data(0xF3, byte)
    board.drain()
    board.kbc.press(0x1E)
    board.drain()
    board.clock.advance(delay * MS - 1)
    assert board.drain() == []
    board.clock.advance(1)
    assert board.drain() == [0x1E]
    board.clock.advance(round(990 / rate) * MS)
    assert board.drain() == []
    board.clock.advance(round(20 / rate) * MS)
    assert board.drain() == [0x1E]


def test_the_last_key_pressed_repeats() -> None:
    """Another key takes over; its release ends the repeat, though the first key is still down."""
    board = Board()
    board.kbc.press(0x1E)
    board.clock.advance(400 * MS)
    board.kbc.press(0x1F)
    board.drain()
    board.clock.advance(450 * MS)
    assert board.drain() == []
    board.clock.advance(100 * MS)
    assert set(board.drain()) == {0x1F}
    board.kbc.release(0x1E)
    board.drain()
    board.clock.advance(100 * MS)
    assert set(board.drain()) == {0x1F}
    board.kbc.release(0x1F)
    board.drain()
    board.clock.advance(1000 * MS)
    assert board.drain() == []


@pytest.mark.parametrize("end", [(0xF5,), (0xF6,), (0xFF,), (0xF4,), (0xF0, 2)])
def test_commands_that_clear_the_keyboard_end_the_repeat(end: tuple[int, ...]) -> None:
    """Its buffer and the typematic key go together."""
    board = Board()
    board.kbc.press(0x1E)
    board.data(*end)
    board.drain()
    board.clock.advance(2000 * MS)
    assert board.drain() == []


def test_pause_does_not_repeat() -> None:
    """In set 2 it is all said at the press."""
    board = Board()
    board.kbc.press(PAUSE)
    board.drain()
    board.clock.advance(2000 * MS)
    assert board.drain() == []


def test_a_key_held_for_ever_fills_the_buffer_once() -> None:
    """A guest that does not read finds the buffer full of it, the overrun code last, and can go on."""
    board = Board()
    board.kbc.press(0x1E)
    board.clock.advance(1000_000 * MS)
    codes = board.drain()
    assert set(codes[:-1]) == {0x1E} and codes[-1] == 0xFF and len(codes) <= 16
    board.clock.advance(92 * MS)
    assert board.drain() == [0x1E]


class JumpingClock(Clock):
    """Time that goes on between two looks at it, as the host's does when the machine is not given the CPU."""

    time = 0

    def now(self) -> int:
        return self.time

    def jump(self, ns: int) -> None:
        self.time += ns
        self.run_due()


def test_repeats_that_were_missed_are_not_made_up_for() -> None:
    """After a long pause the key repeats once, and then at the times it would have."""
    clock = JumpingClock()
    keyboard = Keyboard(clock, lambda: None)
    keyboard.key(0x1E, False)
    clock.jump(10_000 * MS)
    assert keyboard.state.codes == [0x1C, 0x1C]
    clock.jump(0)
    assert keyboard.state.codes == [0x1C, 0x1C]
    clock.jump(92 * MS)
    assert keyboard.state.codes == [0x1C, 0x1C, 0x1C]


def test_a_repeat_interrupts() -> None:
    """IRQ 1 is raised by the repeated code as by the first."""
    board = Board()
    board.kbc.press(0x1E)
    board.drain()
    board.irq1.clear()
    board.clock.advance(500 * MS)
    assert board.irq1 == [True]
