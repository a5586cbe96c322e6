"""The VGA's registers by the IBM PS/2 Hardware Interface Technical Reference and FreeVGA; any accesses at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vga_rig import CRTC, GRAPHICS, HOLE, MONO_CRTC, SEQUENCER, TEXT, Board

from iobus.bus import Bus

# Of each register, the bits that exist, by FreeVGA's pages on the registers.
CRTC_BITS = [0xFF] * 8 + [0x7F, 0xFF, 0x3F, 0x7F] + [0xFF] * 8 + [0x7F, 0xFF, 0xFF, 0xEF, 0xFF]
SEQUENCER_BITS = [0x03, 0x3D, 0x0F, 0x3F, 0x0E]
GRAPHICS_BITS = [0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF]
ATTRIBUTE_BITS = [0x3F] * 16 + [0xEF, 0xFF, 0x3F, 0x0F, 0x0F]


@pytest.mark.parametrize(("port", "bits"), [(CRTC, CRTC_BITS), (SEQUENCER, SEQUENCER_BITS), (GRAPHICS, GRAPHICS_BITS)])
def test_indexed_registers_read_back_the_bits_they_have(port: int, bits: list[int]) -> None:
    """Every register of the VGA is readable; reserved bits read 0, and so does an index without a register."""
    board = Board()
    board.set(CRTC, 0x11, 0x00)  # lift the write protection
    for index, mask in enumerate(bits):
        for value in (0x00, 0xFF, 0x55):
            if (port, index) != (CRTC, 0x11):
                board.set(port, index, value)
                assert board.get(port, index) == value & mask
    board.set(port, len(bits), 0xFF)
    assert board.get(port, len(bits)) == 0
    assert board.inb(port) == len(bits)


def test_attribute_registers_take_index_and_data_in_turn() -> None:
    """Port 0x3C0 is index, then data; reading input status 1 makes it the index again; 0x3C1 reads the data."""
    board = Board()
    for index, mask in enumerate(ATTRIBUTE_BITS):
        board.set_attribute(index, 0xFF)
        assert board.get_attribute(index) == mask
    board.inb(0x3DA)
    board.out(0x3C0, 0x33)
    assert board.inb(0x3C0) == 0x33
    board.inb(0x3DA)
    board.out(0x3C0, 0x34)  # an index again, not data for 0x13
    assert board.inb(0x3C0) == 0x34
    assert board.get_attribute(0x13) == 0x0F


def test_reading_the_attribute_data_leaves_the_flip_flop() -> None:
    """Only input status 1 resets it: after index and read, a write is data."""
    board = Board()
    board.inb(0x3DA)
    board.out(0x3C0, 0x31)
    board.inb(0x3C1)
    board.out(0x3C0, 0x0A)
    assert board.get_attribute(0x11) == 0x0A


def test_crtc_registers_0_to_7_can_be_protected() -> None:
    """Vertical retrace end bit 7: what they hold stays, but for line compare bit 8 in the overflow register."""
    board = Board()
    before = [board.get(CRTC, index) for index in range(8)]
    board.set(CRTC, 0x11, 0x8E)
    for index in range(8):
        board.set(CRTC, index, ~before[index] & 0xFF)
    after = [board.get(CRTC, index) for index in range(8)]
    assert after == [*before[:7], before[7] ^ 0x10]
    board.set(CRTC, 0x08, 0x7F)
    assert board.get(CRTC, 0x08) == 0x7F


def test_miscellaneous_output_chooses_colour_or_monochrome_ports() -> None:
    """Bit 0: the CRT controller, input status 1 and feature control answer at 3Dx, or at 3Bx."""
    board = Board()
    for misc, here, there in ((0x67, 0x3D4, 0x3B4), (0x66, 0x3B4, 0x3D4)):
        board.out(0x3C2, misc)
        assert board.inb(0x3CC) == misc
        for offset in (0, 1, 6):
            assert board.decodes(here + offset)
            assert not board.decodes(there + offset)
    board.set(MONO_CRTC, 0x0F, 0x42)
    assert board.get(MONO_CRTC, 0x0F) == 0x42
    board.out(0x3BA, 0xFF)
    assert board.inb(0x3CA) == 0x0B


def test_ports_that_are_not_the_vgas() -> None:
    """0x3BC is a printer's and 0x3D8 a CGA's: neither reads nor writes are taken."""
    board = Board()
    for port in (0x3B5, 0x3B8, 0x3BC, 0x3BF, 0x3CB, 0x3CD, 0x3D6, 0x3D8, 0x3D9, 0x3DB, 0x3DF):
        assert board.pio.read(port, 1) is NotImplemented
        assert board.out(port, 0) is NotImplemented


def test_the_video_subsystem_can_be_switched_off() -> None:
    """Video subsystem enable, 0x3C3 bit 0: without it neither ports nor memory are decoded, but for itself."""
    board = Board()
    board.out(0x3C3, 0)
    assert board.inb(0x3C3) == 0
    assert not board.decodes(0x3CC) and not board.decodes(0x3DA)
    assert board.mmio.read(TEXT, 2) is NotImplemented
    board.out(0x3C3, 1)
    assert board.inb(0x3C3) == 1
    assert board.inb(0x3CC) == 0x67
    assert board.peek(TEXT, 2) == 0x0720


def test_dac_writes_and_reads_colours_in_threes() -> None:
    """Index, then red, green, blue of 6 bits; the index goes on by itself and wraps; a third byte completes one."""
    board = Board()
    board.out(0x3C8, 0xFF)
    for value in (1, 2, 3, 0xFC, 5, 0x7F):
        board.out(0x3C9, value)
    assert board.inb(0x3C8) == 0x01
    assert board.inb(0x3C7) == 0  # the state: ready to be written
    board.out(0x3C9, 9)  # never completed
    board.out(0x3C7, 0xFF)
    assert board.inb(0x3C7) == 3
    assert [board.inb(0x3C9) for _ in range(6)] == [1, 2, 3, 0x3C, 5, 0x3F]
    board.out(0x3C7, 0x01)
    assert board.inb(0x3C9) == 0


def test_a_new_dac_index_begins_a_colour() -> None:
    """What was read or written of another one before does not count."""
    board = Board()
    for index, colour in ((5, (1, 2, 3)), (6, (4, 5, 6))):
        board.out(0x3C8, index)
        for part in (9, 9)[: index - 4]:
            board.out(0x3C9, part)
        board.out(0x3C8, index)
        for part in colour:
            board.out(0x3C9, part)
    board.out(0x3C7, 6)
    board.inb(0x3C9)
    board.out(0x3C7, 5)
    assert [board.inb(0x3C9) for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_input_status_0() -> None:
    """The comparator senses a display."""
    assert Board().inb(0x3C2) == 0x10


def test_vertical_retrace_comes_once_a_frame() -> None:
    """Input status 1 bit 3, by mode 3's timing: 449 lines of 900 dots at 28.322 MHz, two of them retrace."""
    board = Board()
    line = 900 * 1_000_000_000 // 28_322_000
    samples = []
    for _ in range(449 * 2):
        samples.append(board.inb(0x3DA))
        board.clock.advance(line)
    retrace = [index for index, status in enumerate(samples) if status & 8]
    assert retrace == [412, 413, 449 + 412, 449 + 413]
    assert all(samples[index] & 1 for index in retrace)
    assert all(not status & 1 for status in samples[:400])
    assert all(status & 1 for status in samples[400:449])


def test_display_is_disabled_in_the_horizontal_retrace() -> None:
    """Input status 1 bit 0 is set for 20 of a line's 100 characters."""
    board = Board()
    samples = []
    for _ in range(100):
        samples.append(board.inb(0x3DA) & 1)
        board.clock.advance(318)
    assert samples[:79] == [0] * 79
    assert samples[81:] == [1] * 19


def test_reset_leaves_nothing_decoded_but_ports() -> None:
    """Every register is zero: monochrome ports, no memory, until a mode is set."""
    board = Board()
    board.vga.ports[1].reset()
    assert board.mmio.read(TEXT, 1) is NotImplemented
    assert board.mmio.read(HOLE, 1) is NotImplemented
    assert board.decodes(0x3BA) and not board.decodes(0x3DA)
    board.vga.text_mode()
    assert board.peek(TEXT, 2) == 0x0720


PORTS = st.sampled_from([*range(0x3B4, 0x3BC), *range(0x3C0, 0x3D0), *range(0x3D4, 0x3DC)])
SIZES = st.sampled_from((1, 2, 4, 8))
INDEXES = st.sampled_from((0x3C4, 0x3CE, 0x3D4, 0x3B4))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("in"), PORTS, SIZES),
        st.tuples(st.just("out"), PORTS, SIZES, st.integers(0, 2**64 - 1)),
        st.tuples(st.just("set"), INDEXES, st.integers(0, 0x1A), st.integers(0, 255)),
        st.tuples(st.just("read"), st.integers(HOLE, HOLE + 0x1FFFF), SIZES),
        st.tuples(st.just("write"), st.integers(HOLE, HOLE + 0x1FFFF), SIZES, st.integers(0, 2**64 - 1)),
        st.tuples(st.just("time"), st.integers(0, 50_000_000)),
        st.tuples(st.just("mode")),
        st.tuples(st.just("reset")),
    ),
    max_size=40,
)


def answer(bus: Bus, address: int, size: int) -> object:
    value = bus.read(address, size)
    assert value is NotImplemented or 0 <= value < 1 << 8 * size
    return value


@given(STEPS)
def test_any_guest(steps: list[tuple[object, ...]]) -> None:
    """Nothing raises, values fit, the screen can be made, and a restored VGA is the same in all that follows."""
    board = Board()
    for step in steps:
        match step:
            case "in", int(port), int(size):
                answer(board.pio, port, size)
            case "out", int(port), int(size), int(value):
                board.out(port, value & (1 << 8 * size) - 1, size)
            case "set", int(port), int(index), int(value):
                board.set(port, index, value)
            case "read", int(address), int(size):
                answer(board.mmio, address, size)
            case "write", int(address), int(size), int(value):
                board.poke(address, value & (1 << 8 * size) - 1, size)
            case "time", int(ns):
                board.clock.advance(ns)
            case ("mode",):
                board.vga.text_mode()
            case _:
                board.vga.reset()
        screen = board.vga.screen()
        assert len(screen.characters) == len(screen.attributes) == screen.columns * screen.rows
    other = Board(text=False)
    other.vga.restore(board.vga.save())
    assert other.vga.save() == board.vga.save()
    assert other.vga.screen() == board.vga.screen()
    for address in range(HOLE, HOLE + 0x20000, 0x3FFF):
        assert answer(other.mmio, address, 1) == answer(board.mmio, address, 1)
    assert other.vga.save() == board.vga.save()
