"""The mouse by the IBM PS/2 Hardware Interface Technical Reference, and Microsoft's extensions, through its port."""

from __future__ import annotations

import pytest
from ps2_rig import AUXB, Board


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


# Microsoft's extensions.


def knock(board: Board, *rates: int) -> int:
    """Set sample rates one after the other; return the device ID."""
    for rate in rates:
        board.mouse(0xF3, rate)
    board.drain()
    board.mouse(0xF2)
    acknowledge, device_id = board.drain()
    assert acknowledge == 0xFA
    return device_id


def test_a_mouse_without_a_wheel_says_nothing_of_it() -> None:
    """ID 0: three bytes, and the wheel alone makes no report, nor do the side buttons."""
    board = Board()
    assert knock(board, 200, 100, 100) == 0
    board.mouse(0xF4)
    board.drain()
    board.kbc.move(0, 0, wheel=3)
    board.kbc.set_buttons(back=True)
    assert board.drain() == []
    board.kbc.move(1, 0)
    assert board.drain() == [0x08, 1, 0]


def test_the_wheel() -> None:
    """200, 100, 80 make ID 3 and reports of four bytes; the wheel counts from -8 to 7, the rest follows."""
    board = Board()
    assert knock(board, 200, 100, 80) == 3
    board.mouse(0xF4)
    board.drain()
    board.kbc.move(1, -1, wheel=1)
    assert board.drain() == [0x28, 1, 0xFF, 0x01]
    board.kbc.move(0, 0, wheel=-10)
    assert board.drain() == [0x08, 0, 0, 0xF8, 0x08, 0, 0, 0xFE]
    board.kbc.set_buttons(forward=True)
    assert board.drain() == []


def test_five_buttons() -> None:
    """200, 200, 80 make ID 4: the wheel in four bits, the side buttons in bits 4 and 5."""
    board = Board()
    assert knock(board, 200, 100, 80) == 3
    assert knock(board, 200, 200, 80) == 4
    board.mouse(0xF4)
    board.drain()
    board.kbc.set_buttons(left=True, forward=True)
    assert board.drain() == [0x09, 0, 0, 0x20]
    board.kbc.set_buttons(back=True)
    assert board.drain() == [0x08, 0, 0, 0x10]
    board.kbc.move(0, 0, wheel=-1)
    assert board.drain() == [0x08, 0, 0, 0x1F]


def test_a_reset_makes_it_a_plain_mouse() -> None:
    """FF: ID 0 again; the rates set before do not count."""
    board = Board()
    board.mouse(0xF3, 200, 0xF3, 100)
    board.mouse(0xFF)
    board.drain()
    assert knock(board, 80) == 0
    assert knock(board, 200, 100, 80) == 3
    board.mouse(0xFF)
    assert board.drain() == [0xFA, 0xAA, 0x00]
    assert knock(board) == 0
