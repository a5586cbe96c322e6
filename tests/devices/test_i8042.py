"""The keyboard controller by the IBM PS/2 Hardware Interface Technical Reference; any accesses to all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ps2_rig import AUXB, CMD, OBF, SYS, TRANSLATED, Board

from iobus.bus import Bus


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


def test_the_host_knows_when_the_guest_takes_keys() -> None:
    """Not while it has one to read, nor with the keyboard or its interface off: what is typed then waits or is lost."""
    board = Board()
    assert board.kbc.takes_keys
    board.kbc.press(0x1E)
    assert not board.kbc.takes_keys
    board.drain()
    assert board.kbc.takes_keys
    board.command(0xAD)
    assert not board.kbc.takes_keys
    board.command(0xAE)
    board.data(0xF5)
    board.drain()
    assert not board.kbc.takes_keys
    board.data(0xF4)
    board.drain()
    assert board.kbc.takes_keys


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
        st.tuples(st.just("move"), st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(-20, 20)),
        st.tuples(st.just("buttons"), st.lists(st.booleans(), min_size=5, max_size=5)),
        st.tuples(st.just("time"), st.integers(0, 3_000_000_000)),
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
            case "move", int(dx), int(dy), int(wheel):
                kbc.move(dx, dy, wheel)
            case "buttons", [left, right, middle, back, forward]:
                kbc.set_buttons(left=left, right=right, middle=middle, back=back, forward=forward)
            case "time", int(ns):
                board.clock.advance(ns)
            case _:
                kbc.reset()
        state = kbc.state
        full, aux = board.status() & OBF, board.status() & AUXB
        assert board.keyboard_pin.level == bool(full and not aux and state.ram[0] & 1)
        assert board.mouse_pin.level == bool(full and aux and state.ram[0] & 2)
        assert max(len(state.answers), len(state.keyboard.codes), len(state.keyboard.replies)) <= 16
    other = Board()
    other.clock.advance(board.clock.now())
    other.kbc.restore(kbc.save())
    assert other.kbc.save() == kbc.save()
    assert other.keyboard_pin.level == board.keyboard_pin.level
    assert other.drain() == board.drain()
    for both in (board, other):
        both.clock.advance(2_000_000_000)  # what repeats in the one does in the other
    assert other.kbc.save() == kbc.save()
