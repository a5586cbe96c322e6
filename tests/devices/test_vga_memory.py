"""The VGA's window into display memory: addressing, write modes, read modes, by the technical reference and FreeVGA."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vga_rig import GRAPHICS, HOLE, SEQUENCER, TEXT, Board

WINDOWS = [(0, 0xA0000, 0xC0000), (1, 0xA0000, 0xB0000), (2, 0xB0000, 0xB8000), (3, 0xB8000, 0xC0000)]


@pytest.mark.parametrize(("select", "start", "end"), WINDOWS)
def test_memory_map_select(select: int, start: int, end: int) -> None:
    """Graphics miscellaneous bits 3-2 choose the window; addresses outside it are not decoded."""
    board = Board()
    board.set(GRAPHICS, 6, select << 2)
    for address in (0xA0000, 0xAFFFF, 0xB0000, 0xB7FFF, 0xB8000, 0xBFFFF):
        inside = start <= address < end
        assert (board.mmio.read(address, 1) is not NotImplemented) == inside
        assert (board.poke(address, 0) is not NotImplemented) == inside


def test_memory_can_be_switched_off() -> None:
    """Miscellaneous output bit 1: without it memory is not decoded."""
    board = Board()
    board.out(0x3C2, 0x65)
    assert board.mmio.read(TEXT, 2) is NotImplemented
    assert board.poke(TEXT, 0x0741, 2) is NotImplemented
    board.out(0x3C2, 0x67)
    assert board.peek(TEXT, 2) == 0x0720


@given(st.integers(0, 0x7FF8), st.sampled_from((1, 2, 4, 8)), st.binary(min_size=8, max_size=8))
def test_text_is_read_as_it_was_written(offset: int, size: int, data: bytes) -> None:
    """In text mode the window is plain memory, for accesses of any size and alignment."""
    board = Board()
    board.poke(TEXT + offset, int.from_bytes(data[:size], "little"), size)
    got = bytes(board.peek(TEXT + offset + index) for index in range(size))
    assert got == data[:size]
    assert board.peek(TEXT + offset, size) == int.from_bytes(data[:size], "little")


def test_odd_even_puts_characters_in_plane_0_and_attributes_in_plane_1() -> None:
    """Both at the even address; planes 2 and 3, which hold the font, are not touched."""
    board = Board()
    board.fill(0x100, 0, 0, 0x22, 0x33)
    board.poke(TEXT + 0x100, 0x1F41, 2)
    assert [board.plane(plane, 0x100) for plane in range(4)] == [0x41, 0x1F, 0x22, 0x33]
    board.poke(TEXT + 0x101, 0x2E)
    assert [board.plane(plane, 0x100) for plane in range(4)] == [0x41, 0x2E, 0x22, 0x33]
    assert [board.plane(plane, 0x101) for plane in range(4)] == [0, 0, 0, 0]


def test_odd_even_takes_planes_in_pairs() -> None:
    """Even addresses write planes 0 and 2, odd ones 1 and 3, as far as the map mask lets them."""
    board = Board()
    board.set(SEQUENCER, 2, 0x0F)
    board.poke(TEXT + 6, 0x11)
    board.poke(TEXT + 7, 0x22)
    assert [board.plane(plane, 6) for plane in range(4)] == [0x11, 0x22, 0x11, 0x22]
    board.set(SEQUENCER, 2, 0x06)
    board.poke(TEXT + 6, 0x3333, 2)
    assert [board.plane(plane, 6) for plane in range(4)] == [0x11, 0x33, 0x33, 0x22]


Change = tuple[tuple[int, int], int]
TEXT_MODE = {
    (SEQUENCER, 2): 3, (SEQUENCER, 4): 2, (GRAPHICS, 0): 0, (GRAPHICS, 1): 0, (GRAPHICS, 3): 0, (GRAPHICS, 4): 0,
    (GRAPHICS, 5): 0x10, (GRAPHICS, 6): 0x0E, (GRAPHICS, 8): 0xFF,
}  # fmt: skip
OTHERWISE = {
    (SEQUENCER, 2): (1, 4, 0x0F), (SEQUENCER, 4): (6, 0x0A), (GRAPHICS, 0): (5,), (GRAPHICS, 1): (1, 0x0C),
    (GRAPHICS, 3): (3, 0x18), (GRAPHICS, 4): (1, 2), (GRAPHICS, 5): (0, 0x11, 0x12, 0x13, 0x18),
    (GRAPHICS, 6): (0x0C, 0x02, 0x00), (GRAPHICS, 8): (0x3C,),
}  # fmt: skip
CHANGES = [(register, value) for register, values in OTHERWISE.items() for value in values]


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("first", [None, *CHANGES], ids=str)
@pytest.mark.parametrize("second", [None, ((GRAPHICS, 0), 5), ((GRAPHICS, 6), 0x02), ((SEQUENCER, 2), 0x0F)], ids=str)
def test_a_wide_access_is_its_bytes(first: Change | None, second: Change | None, size: int) -> None:
    """In text mode, and with registers that make it another: memory, values and latches are those of byte accesses."""
    boards = wide, narrow = Board(), Board()
    data = bytes(range(0x91, 0x91 + size))
    for board in boards:
        for (port, index), value in (TEXT_MODE | dict(change for change in (first, second) if change)).items():
            board.set(port, index, value)
        for address in range(0x10, 0x20):
            board.fill(address, address, address ^ 0x5A, address ^ 0x3C, address ^ 0xFF)
        board.mmio.read(TEXT + 0x1C, 1)  # fills the latches
    wide.poke(TEXT + 0x12, int.from_bytes(data, "little"), size)
    for index in range(size):
        narrow.poke(TEXT + 0x12 + index, data[index])
    assert wide.vga.state.memory == narrow.vga.state.memory
    got = bytes(narrow.peek(TEXT + 0x12 + index) for index in range(size))
    assert wide.peek(TEXT + 0x12, size) == int.from_bytes(got, "little")
    assert wide.vga.state.latches == narrow.vga.state.latches


def test_read_map_select_chooses_the_pair_in_odd_even() -> None:
    """Its bit 1 stands, A0 replaces bit 0."""
    board = Board()
    board.fill(0x10, 0xA0, 0xA1, 0xA2, 0xA3)
    assert (board.peek(TEXT + 0x10), board.peek(TEXT + 0x11)) == (0xA0, 0xA1)
    board.set(GRAPHICS, 4, 2)
    assert (board.peek(TEXT + 0x10), board.peek(TEXT + 0x11)) == (0xA2, 0xA3)


def test_a_font_is_loaded_into_plane_2() -> None:
    """As Linux and video BIOSes do: sequential, map mask 4, memory at 0xA0000; then text mode again, text intact."""
    board = Board()
    board.write("hello")
    for port, index, value in (
        (SEQUENCER, 0, 1), (SEQUENCER, 2, 4), (SEQUENCER, 4, 7), (SEQUENCER, 0, 3),
        (GRAPHICS, 4, 2), (GRAPHICS, 5, 0), (GRAPHICS, 6, 0),
    ):  # fmt: skip
        board.set(port, index, value)
    for address in range(0x2000):
        board.poke(HOLE + address, address % 251)
    assert [board.peek(HOLE + address) for address in range(0x2000)] == [address % 251 for address in range(0x2000)]
    for port, index, value in (
        (SEQUENCER, 0, 1), (SEQUENCER, 2, 3), (SEQUENCER, 4, 3), (SEQUENCER, 0, 3),
        (GRAPHICS, 4, 0), (GRAPHICS, 5, 0x10), (GRAPHICS, 6, 0x0E),
    ):  # fmt: skip
        board.set(port, index, value)
    assert bytes(board.vga.state.memory[2 : 4 * 0x2000 : 4]) == bytes(address % 251 for address in range(0x2000))
    assert board.vga.screen().lines[0].startswith("hello ")


def test_chain_4_spreads_four_addresses_over_the_planes() -> None:
    """Mode 13h: address bits 1-0 are the plane, both for writes and for reads."""
    board = Board()
    board.set(SEQUENCER, 2, 0x0F)
    board.set(SEQUENCER, 4, 0x0E)
    board.set(GRAPHICS, 5, 0x40)
    board.set(GRAPHICS, 6, 0x05)
    board.poke(HOLE + 0x40, 0x44332211, 4)
    assert [board.plane(plane, 0x40) for plane in range(4)] == [0x11, 0x22, 0x33, 0x44]
    assert board.peek(HOLE + 0x40, 4) == 0x44332211


def test_the_128_kib_window_reaches_both_bytes_in_odd_even() -> None:
    """With the odd/even chain on, A16 takes the place of A0."""
    board = Board()
    board.set(SEQUENCER, 2, 0x0F)
    board.set(GRAPHICS, 6, 0x02)
    board.poke(HOLE + 0x20, 0x11)
    board.poke(HOLE + 0x10020, 0x22)
    assert (board.plane(0, 0x20), board.plane(0, 0x21)) == (0x11, 0x22)
    assert (board.peek(HOLE + 0x20), board.peek(HOLE + 0x10020)) == (0x11, 0x22)


def test_map_mask_keeps_planes_from_being_written() -> None:
    """Each of its bits lets writes into a plane."""
    board = Board()
    board.planar()
    for mask in range(16):
        board.fill(5, 0, 0, 0, 0)
        board.set(SEQUENCER, 2, mask)
        board.poke(HOLE + 5, 0xFF)
        assert [board.plane(plane, 5) for plane in range(4)] == [0xFF * (mask >> plane & 1) for plane in range(4)]


def test_write_mode_0() -> None:
    """Rotated data or set/reset, combined with the latches by the function, where the bit mask is 1."""
    board = Board()
    board.planar()
    board.fill(0, 0x0F, 0x0F, 0x0F, 0x0F)
    board.peek(HOLE)  # fills the latches
    board.set(GRAPHICS, 0, 0b0010)
    board.set(GRAPHICS, 1, 0b0011)  # planes 0 and 1 from set/reset
    board.set(GRAPHICS, 3, 4)  # rotate right by 4
    board.set(GRAPHICS, 8, 0x3C)
    board.poke(HOLE + 1, 0x5A)  # rotated: 0xA5
    assert [board.plane(plane, 1) for plane in range(4)] == [0x03, 0x3F, 0x27, 0x27]
    for function, expected in ((1, 0x04), (2, 0xAF), (3, 0xAB)):  # AND, OR, XOR of 0xA4 with the latches' 0x0F
        board.set(GRAPHICS, 1, 0)
        board.set(GRAPHICS, 3, function << 3)
        board.set(GRAPHICS, 8, 0xFF)
        board.poke(HOLE + 1, 0xA4)
        assert [board.plane(plane, 1) for plane in range(4)] == [expected] * 4


def test_write_mode_1_copies_the_latches() -> None:
    """Whatever the CPU writes: what was read last goes to the address, in the planes of the map mask."""
    board = Board()
    board.planar(graphics_mode=1)
    board.fill(7, 1, 2, 3, 4)
    board.set(SEQUENCER, 2, 0b1101)
    board.peek(HOLE + 7)
    board.poke(HOLE + 9, 0xFF)
    assert [board.plane(plane, 9) for plane in range(4)] == [1, 0, 3, 4]


def test_write_mode_2_writes_a_colour() -> None:
    """The data's bits 3-0 are a colour for the pixels of the bit mask; the others come from the latches."""
    board = Board()
    board.planar(graphics_mode=2)
    board.fill(0, 0xF0, 0xF0, 0xF0, 0xF0)
    board.peek(HOLE)
    board.set(GRAPHICS, 8, 0x18)
    board.poke(HOLE, 0b0101)
    assert [board.plane(plane, 0) for plane in range(4)] == [0xF8, 0xE0, 0xF8, 0xE0]


def test_write_mode_3_masks_set_reset_by_the_data() -> None:
    """The rotated data AND the bit mask is the mask; set/reset is the colour, enabled or not."""
    board = Board()
    board.planar(graphics_mode=3)
    board.fill(0, 0, 0, 0, 0xFF)
    board.peek(HOLE)
    board.set(GRAPHICS, 0, 0b0110)
    board.set(GRAPHICS, 3, 1)
    board.set(GRAPHICS, 8, 0x0F)
    board.poke(HOLE, 0x78)  # rotated 0x3C, masked 0x0C
    assert [board.plane(plane, 0) for plane in range(4)] == [0x00, 0x0C, 0x0C, 0xF3]


def test_read_mode_1_compares_colours() -> None:
    """A bit is 1 where the pixel is the colour compared with, in the planes that are cared for."""
    board = Board()
    board.planar(graphics_mode=8)
    board.fill(3, 0b11001100, 0b10101010, 0b11110000, 0b11111111)
    board.set(GRAPHICS, 2, 0b0001)  # plane 0 set, planes 1 and 2 clear, plane 3
    board.set(GRAPHICS, 7, 0b0111)  # does not matter
    assert board.peek(HOLE + 3) == 0b00000100
    board.set(GRAPHICS, 7, 0)
    assert board.peek(HOLE + 3) == 0xFF


@given(st.integers(0, 0xFFFF), st.lists(st.integers(0, 255), min_size=4, max_size=4), st.integers(0, 3))
def test_planar_memory_holds_what_each_plane_was_given(address: int, values: list[int], plane: int) -> None:
    """One plane at a time by the map mask, read back by read map select: what saving and restoring a screen needs."""
    board = Board()
    board.planar()
    for number, value in enumerate(values):
        board.set(SEQUENCER, 2, 1 << number)
        board.poke(HOLE + address, value)
    board.set(GRAPHICS, 4, plane)
    assert board.peek(HOLE + address) == values[plane]
