"""The keyboard controller, keyboard and mouse by the IBM PS/2 Hardware Interface Technical Reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import Bus
from iobus.devices.i8042 import I8042, PAUSE
from iobus.irq import Pin

OBF, SYS, CMD, AUXB = 0x01, 0x04, 0x08, 0x20
TRANSLATED, RAW = 0x47, 0x07  # command bytes with both interrupts on


class Board:
    def __init__(self) -> None:
        self.resets = 0
        self.irq1: list[bool] = []
        self.irq12: list[bool] = []
        self.keyboard_pin = Pin(self.irq1.append)
        self.mouse_pin = Pin(self.irq12.append)
        self.kbc = I8042(self.keyboard_pin.line("keyboard"), self.mouse_pin.line("mouse"), self.reset)

    def reset(self) -> None:
        self.resets += 1

    def status(self) -> int:
        return self.kbc.command.read(0, 1)

    def read(self) -> int:
        return self.kbc.data.read(0, 1)

    def command(self, command: int, *data: int) -> None:
        self.kbc.command.write(0, 1, command)
        for byte in data:
            self.data(byte)

    def data(self, *data: int) -> None:
        for byte in data:
            self.kbc.data.write(0, 1, byte)

    def mouse(self, *data: int) -> None:
        for byte in data:
            self.command(0xD4, byte)

    def drain(self) -> list[int]:
        """All that is to be read, keyboard's and mouse's."""
        data = []
        while self.status() & OBF:
            data.append(self.read())
        return data

    def ask(self, command: int, *data: int) -> int:
        self.command(command, *data)
        assert self.status() & OBF
        return self.read()


# The controller.


def test_status_after_power_on() -> None:
    """Nothing to read, nothing in the input buffer, the lock open, and POST's system flag."""
    board = Board()
    assert board.status() == 0x14


def test_status_tells_commands_from_data() -> None:
    """Bit 3: whether the last write was to port 0x64 or to 0x60."""
    board = Board()
    board.command(0xAE)
    assert board.status() & CMD
    board.data(0xEE)
    assert not board.status() & CMD


def test_command_byte_reads_back() -> None:
    """Command 0x60 writes it and 0x20 reads it; bit 2 is the system flag of the status."""
    board = Board()
    board.command(0x60, 0x70)
    assert board.ask(0x20) == 0x70
    assert not board.status() & SYS
    board.command(0x60, 0x74)
    assert board.status() & SYS


def test_controller_ram() -> None:
    """Commands 0x21-0x3F and 0x61-0x7F reach the 31 bytes after the command byte."""
    board = Board()
    for address in range(1, 32):
        board.command(0x60 | address, 0xA0 ^ address)
    assert [board.ask(0x20 | address) for address in range(1, 32)] == [0xA0 ^ address for address in range(1, 32)]


def test_self_test_and_interface_tests() -> None:
    """0xAA answers 0x55 and sets the system flag; 0xA9 and 0xAB answer 0: no fault."""
    board = Board()
    board.command(0x60, 0x00)
    assert board.ask(0xAA) == 0x55
    assert board.status() & SYS
    assert board.ask(0xA9) == 0x00
    assert board.ask(0xAB) == 0x00
    assert board.ask(0xA4) == 0xF1


def test_disabling_and_enabling_the_interfaces() -> None:
    """AD/AE are command byte bit 4, A7/A8 bit 5; E0 shows the clock lines."""
    board = Board()
    board.command(0x60, 0x00)
    for command, value, clocks in ((0xAD, 0x10, 2), (0xA7, 0x30, 0), (0xAE, 0x20, 1), (0xA8, 0x00, 3)):
        board.command(command)
        assert board.ask(0x20) == value
        assert board.ask(0xE0) == clocks


def test_a_disabled_interface_sends_nothing_until_enabled() -> None:
    """The keyboard keeps its codes while the clock is held low; a byte to it enables its interface."""
    board = Board()
    board.command(0xAD)
    board.kbc.press(0x1E)
    assert not board.status() & OBF
    board.command(0xAE)
    assert board.drain() == [0x1E]
    board.command(0xAD)
    board.data(0xEE)
    assert board.drain() == [0xEE]
    assert board.ask(0x20) & 0x10 == 0


def test_output_port() -> None:
    """D0 reads it, D1 writes A20 (bit 1); bits 4 and 5 show a full output buffer."""
    board = Board()
    assert board.ask(0xD0) & 0x33 == 0x03
    board.command(0xD1, 0xDD)
    assert board.ask(0xD0) & 0x03 == 0x01
    board.command(0xD1, 0xDF)
    assert board.ask(0xD0) & 0x03 == 0x03
    assert board.resets == 0


def test_output_port_bit_0_resets() -> None:
    """Written 0 by D1, the machine's reset line goes low."""
    board = Board()
    board.command(0xD1, 0xDE)
    assert board.resets == 1


def test_pulsing_the_reset_line() -> None:
    """F0-FF pulse those of output port bits 0-3 low whose bit is 0; bit 0 is reset. Linux writes FE."""
    board = Board()
    board.command(0xFE)
    assert board.resets == 1
    for command in range(0xF0, 0x100):
        board.command(command)
    assert board.resets == 1 + 8


def test_writing_the_output_buffers() -> None:
    """D2 and D3 put a byte in the output buffer as if the keyboard or the mouse had sent it, interrupt included."""
    board = Board()
    board.command(0xD2, 0x12)
    assert board.status() & (OBF | AUXB) == OBF
    assert board.keyboard_pin.level
    assert board.read() == 0x12
    board.command(0xD3, 0x34)
    assert board.status() & (OBF | AUXB) == OBF | AUXB
    assert board.mouse_pin.level
    assert not board.keyboard_pin.level
    assert board.read() == 0x34
    assert not board.mouse_pin.level


def test_interrupts_follow_the_command_byte() -> None:
    """Bits 0 and 1 enable the two; a byte already there interrupts when enabled."""
    board = Board()
    board.command(0x60, 0x00)
    board.kbc.press(0x1E)
    assert not board.keyboard_pin.level
    board.command(0x60, 0x01)
    assert board.keyboard_pin.level


def test_each_byte_makes_an_edge() -> None:
    """The line goes low when the output buffer is read, and high again with the next byte."""
    board = Board()
    board.kbc.press(0xE048)
    assert board.irq1 == [True]
    assert board.read() == 0xE0
    assert board.irq1 == [True, False, True]
    assert board.read() == 0x48
    assert board.irq1 == [True, False, True, False]
    assert board.read() == 0x48  # the buffer keeps its value


def test_a_command_abandons_one_that_waits_for_data() -> None:
    """The data byte is of the last command."""
    board = Board()
    board.command(0x60)
    board.command(0xD2)
    board.data(0x77)
    assert board.read() == 0x77
    assert board.ask(0x20) == TRANSLATED


def test_unread_answers_are_bounded() -> None:
    """A guest that asks without reading gets what was kept, and the controller works on."""
    board = Board()
    for _ in range(1000):
        board.command(0xAA)
    answers = board.drain()
    assert set(answers) == {0x55}
    assert len(answers) < 20
    assert board.ask(0xAB) == 0


def test_linux_probe() -> None:
    """What Linux's i8042 driver does to find both ports, step by step, polled and by the mouse's interrupt."""
    board = Board()
    assert board.drain() == []
    assert board.ask(0x20) == board.ask(0x20)  # the command byte must read stable
    board.command(0x60, TRANSLATED & ~0x03 | 0x30)
    # AUX loop, the external test of the mouse port, and the bit-5 test of A7 and A8
    board.command(0xD3, 0x5A)
    assert board.status() & (OBF | AUXB) == OBF | AUXB
    assert board.read() == 0x5A
    board.command(0xA8)
    board.command(0xA7)
    assert board.ask(0x20) & 0x20
    board.command(0xA8)
    assert not board.ask(0x20) & 0x20
    # delivery of IRQ 12
    board.command(0x60, TRANSLATED & ~0x01 | 0x10)
    board.command(0xD3, 0xA5)
    assert board.irq12 == [True]
    assert board.status() & AUXB
    assert board.read() == 0xA5
    # MUX: none here, the loop gives back what is sent
    for byte in (0xF0, 0x56, 0xA4):
        board.command(0xD3, byte)
        assert board.read() == byte
    # keyboard: identify and set up
    board.command(0x60, TRANSLATED)
    board.data(0xF2)
    assert board.drain() == [0xFA, 0xAB, 0x41]
    board.data(0xED)
    assert board.drain() == [0xFA]
    board.data(0x00)
    assert board.drain() == [0xFA]
    # mouse: reset, identify
    board.mouse(0xFF)
    assert board.status() & AUXB
    assert board.drain() == [0xFA, 0xAA, 0x00]
    board.mouse(0xF2)
    assert board.drain() == [0xFA, 0x00]


# The keyboard.


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


# The mouse.


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xFF], [0xFA, 0xAA, 0x00]),
        ([0xF2], [0xFA, 0x00]),
        ([0xF4], [0xFA]),
        ([0xF5], [0xFA]),
        ([0xF6], [0xFA]),
        ([0xEA], [0xFA]),
        ([0xF3, 200], [0xFA]),
        ([0xF3, 33], [0xFE]),
        ([0xE8, 3], [0xFA]),
        ([0xE8, 4], [0xFE]),
        ([0xE9], [0xFA, 0x00, 0x02, 100]),
        ([0xEB], [0xFA, 0x08, 0x00, 0x00]),
        ([0x55], [0xFE]),
    ],
)
def test_mouse_commands(sent: list[int], answer: list[int]) -> None:
    """Answers of a mouse with its defaults: stream mode, disabled, 4 counts/mm, 100 reports/s, 1:1."""
    board = Board()
    for byte in sent[:-1]:
        board.mouse(byte)
        assert board.drain() == [0xFA]
    board.mouse(sent[-1])
    assert board.status() & AUXB
    assert board.drain() == answer


def test_mouse_status_shows_what_was_set() -> None:
    """E9: remote, enabled and scaling; left, middle, right; resolution; rate."""
    board = Board()
    board.mouse(0xF3, 40, 0xE8, 1, 0xE7, 0xF4, 0xF0)
    board.kbc.set_buttons(left=True)
    board.drain()
    board.mouse(0xE9)
    assert board.drain() == [0xFA, 0x74, 0x01, 40]
    board.mouse(0xF6, 0xE9)
    assert board.drain()[-3:] == [0x04, 0x02, 100]


def test_a_second_invalid_byte_is_an_error() -> None:
    """First FE asks for it again; then FC gives up."""
    board = Board()
    board.mouse(0xE8, 9)
    assert board.drain()[-1] == 0xFE
    board.mouse(9)
    assert board.drain() == [0xFC]
    board.mouse(0xF2)
    assert board.drain() == [0xFA, 0x00]


def test_an_option_sent_again_is_taken() -> None:
    """After FE the right option still belongs to the command."""
    board = Board()
    board.mouse(0xE8, 9, 3)
    assert board.drain()[-1] == 0xFA
    assert board.kbc.state.mouse.resolution == 3


def test_mouse_reports_in_stream_mode_once_enabled() -> None:
    """Three bytes: buttons, signs and a 1; movement right; movement up. With IRQ 12 for each."""
    board = Board()
    board.kbc.move(5, 5)
    assert board.drain() == []
    board.mouse(0xF4)
    assert board.drain() == [0xFA]
    board.irq12.clear()
    board.kbc.move(3, -2)
    assert board.status() & AUXB
    assert board.drain() == [0x28, 3, 0xFE]
    assert board.irq12 == [True, False] * 3
    board.kbc.set_buttons(right=True, middle=True)
    assert board.drain() == [0x0E, 0, 0]
    board.kbc.set_buttons()
    assert board.drain() == [0x08, 0, 0]


def test_large_movements_take_several_reports() -> None:
    """Nine-bit counts: the rest follows, none is lost."""
    board = Board()
    board.mouse(0xF4)
    board.drain()
    board.kbc.move(-600, 0)
    data = board.drain()
    reports = [data[at : at + 3] for at in range(0, len(data), 3)]
    assert sum(report[1] - (256 if report[0] & 0x10 else 0) for report in reports) == -600


def test_remote_mode_reports_when_asked() -> None:
    """F0: no report by itself; EB fetches one."""
    board = Board()
    board.mouse(0xF0, 0xF4)
    board.drain()
    board.kbc.move(7, 1)
    assert board.drain() == []
    board.mouse(0xEB)
    assert board.drain() == [0xFA, 0x08, 7, 1]


def test_scaling_2_to_1() -> None:
    """The reference's table: 0 1 1 3 6 9, then twice the count; in stream mode."""
    board = Board()
    board.mouse(0xE7, 0xF4)
    board.drain()
    for count, scaled in ((1, 1), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12), (100, 200)):
        board.kbc.move(count, 0)
        assert board.drain() == [0x08, scaled, 0]


def test_wrap_mode_echoes() -> None:
    """EE: every byte comes back but EC, which ends it, and FF, which resets."""
    board = Board()
    board.mouse(0xEE)
    board.drain()
    board.mouse(0xF4)
    assert board.drain() == [0xF4]
    board.mouse(0xEC)
    assert board.drain() == [0xFA]
    board.mouse(0xF2)
    assert board.drain() == [0xFA, 0x00]


def test_mouse_resend() -> None:
    """FE: the last reply or report, again and whole."""
    board = Board()
    board.mouse(0xF4)
    board.drain()
    board.kbc.move(1, 1)
    assert board.drain() == [0x08, 1, 1]
    board.mouse(0xFE)
    assert board.drain() == [0x08, 1, 1]


# All of it.


def test_reset_and_restore() -> None:
    """A reset clears lines and devices; a restore brings them back, with the devices' own state."""
    board, other = Board(), Board()
    board.kbc.press(0x1E)
    board.kbc.press(0x1F)
    board.mouse(0xF4)
    other.kbc.restore(board.kbc.save())
    board.kbc.reset()
    assert not board.keyboard_pin.level
    assert board.status() == 0x14
    assert other.keyboard_pin.level
    assert other.drain() == [0x1E, 0x1F, 0xFA]
    other.kbc.move(1, 0)
    assert other.drain() == [0x08, 1, 0]


@pytest.mark.parametrize("port", ["data", "command"])
def test_resetting_a_port_resets_the_controller(port: str) -> None:
    """A machine resets what is attached to its buses, and those are the two ports."""
    board = Board()
    board.command(0x60, 0x00)
    board.command(0xD1, 0x01)
    board.mouse(0xF4)
    getattr(board.kbc, port).reset()
    assert board.status() == 0x14
    assert board.ask(0x20) == TRANSLATED
    assert board.ask(0xD0) & 0x03 == 0x03
    assert not board.kbc.state.mouse.enabled


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.sampled_from((0x60, 0x64)), st.sampled_from((1, 2, 4, 8))),
        st.tuples(
            st.just("write"), st.sampled_from((0x60, 0x64)), st.sampled_from((1, 1, 1, 2, 4)), st.integers(0, 2**32 - 1)
        ),
        st.tuples(st.just("mouse"), st.integers(0, 255)),
        st.tuples(st.just("key"), st.integers(1, 0x7F), st.booleans()),
        st.tuples(st.just("move"), st.integers(-1000, 1000), st.integers(-1000, 1000)),
        st.tuples(st.just("reset")),
    ),
    max_size=60,
)


@given(STEPS)
def test_any_guest_and_host(steps: list[tuple[object, ...]]) -> None:
    """Nothing raises, values fit, lines follow the status, queues stay short, the state survives a restore."""
    board = Board()
    kbc = board.kbc
    bus = Bus(0x10000)
    bus.attach(kbc.data, 0x60)
    bus.attach(kbc.command, 0x64)
    for step in steps:
        match step:
            case "read", int(port), int(size):
                bus.read(port, size)
            case "write", int(port), int(size), int(value):
                bus.write(port, size, value & (1 << 8 * size) - 1)
            case "mouse", int(value):
                board.mouse(value)
            case "key", int(code), bool(release):
                (kbc.release if release else kbc.press)(code)
            case "move", int(dx), int(dy):
                kbc.move(dx, dy)
            case _:
                kbc.reset()
        state = kbc.state
        full, aux = board.status() & OBF, board.status() & AUXB
        assert board.keyboard_pin.level == bool(full and not aux and state.ram[0] & 1)
        assert board.mouse_pin.level == bool(full and aux and state.ram[0] & 2)
        assert max(len(state.answers), len(state.keyboard.codes), len(state.keyboard.replies)) <= 16
    other = Board()
    other.kbc.restore(kbc.save())
    assert other.kbc.save() == kbc.save()
    assert other.keyboard_pin.level == board.keyboard_pin.level
    assert other.drain() == board.drain()
