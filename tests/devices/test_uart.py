"""The 16550A by the PC16550D datasheet: registers, FIFOs, interrupts, loopback; and the host's end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import Bus
from iobus.clock import SteppedClock
from iobus.devices.uart import HOST_CHARACTER_NS, Uart
from iobus.irq import Pin

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7
OUT2, LOOP = 0x08, 0x10
SECOND = 10**9


class Board:
    """A UART whose guest has done nothing but `MCR.OUT2` (interrupts reach the pin) and 115200 8N1."""

    def __init__(self, *, fcr: int = 0, ier: int = 0, mcr: int = OUT2) -> None:
        self.clock = SteppedClock()
        self.levels: list[bool] = []
        self.sent = bytearray()
        self.pin = Pin(self.levels.append)
        self.uart = Uart(self.pin.line("com1"), self.clock, self.sent.extend)
        for offset, value in ((LCR, 0x83), (DLL, 1), (DLM, 0), (LCR, 3), (MCR, mcr), (FCR, fcr), (IER, ier)):
            self.w(offset, value)
        self.levels.clear()

    def r(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def w(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def drain(self) -> bytes:
        """Read RBR until LSR.DR is 0."""
        data = bytearray()
        while self.r(LSR) & 1:
            data.append(self.r(RBR))
        return bytes(data)


def test_registers_after_a_master_reset() -> None:
    """Datasheet table I: IER 0, IIR 1, LCR 0, MCR 0, LSR 60; MSR shows the inputs, here of a terminal."""
    uart = Uart(Pin().line(), SteppedClock(), lambda data: None)
    assert [uart.read(offset, 1) for offset in (IER, IIR, LCR, MCR, LSR, MSR)] == [0, 1, 0, 0, 0x60, 0xB0]


def test_reset_keeps_scr_and_the_divisor() -> None:
    """The master reset is not said to change them (table I does not list them)."""
    board = Board(ier=0x0F, fcr=0xC1)
    board.w(SCR, 0x5A)
    board.uart.reset()
    assert [board.r(offset) for offset in (IER, IIR, LCR, MCR, LSR, MSR, SCR)] == [0, 1, 0, 0, 0x60, 0xB0, 0x5A]
    board.w(LCR, 0x80)
    assert (board.r(DLL), board.r(DLM)) == (1, 0)
    assert not board.pin.level


def test_transmission_is_immediate() -> None:
    """Each THR write reaches the host at once, and THRE and TEMT stay set."""
    board = Board()
    for byte in b"boot":
        assert board.r(LSR) & 0x60 == 0x60
        board.w(THR, byte)
    assert board.sent == b"boot"


def test_dlab_selects_the_divisor() -> None:
    """With LCR bit 7, offsets 0 and 1 are DLL and DLM; nothing is sent and IER keeps its value."""
    board = Board(ier=0x05)
    board.w(LCR, 0x83)
    board.w(DLL, 0x34)
    board.w(DLM, 0x12)
    assert (board.r(DLL), board.r(DLM)) == (0x34, 0x12)
    board.w(LCR, 0x03)
    assert board.r(IER) == 0x05
    assert board.sent == b""


def test_unused_register_bits_read_0() -> None:
    """IER bits 7-4 and MCR bits 7-5 are always 0; the scratch register holds 8 bits."""
    board = Board()
    for offset, kept in ((IER, 0x0F), (MCR, 0x1F), (SCR, 0xFF), (LCR, 0x7F)):
        board.w(offset, 0xFF & ~0x80 if offset == LCR else 0xFF)
        assert board.r(offset) == kept


def test_iir_tells_fifo_mode() -> None:
    """IIR bits 7 and 6 are set while FCR bit 0 is; without it the other FCR bits are not programmed."""
    board = Board()
    assert board.r(IIR) == 0x01
    board.w(FCR, 0xC1)
    assert board.r(IIR) == 0xC1
    board.w(FCR, 0x00)
    assert board.r(IIR) == 0x01
    board.w(FCR, 0x80)
    assert board.r(IIR) == 0x01


def test_receiving_without_fifos() -> None:
    """DR is set while RBR holds a character; RBR shows the last one when there is no other."""
    board = Board(ier=0x01)
    board.uart.receive(b"A")
    assert board.pin.level
    assert board.r(IIR) == 0x04
    assert board.r(LSR) == 0x61
    assert board.r(RBR) == ord("A")
    assert not board.pin.level
    assert board.r(LSR) == 0x60
    assert board.r(RBR) == ord("A")


@pytest.mark.parametrize(("fcr", "level"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_trigger_levels(fcr: int, level: int) -> None:
    """The received data interrupt is there while the FIFO holds the trigger level or more."""
    board = Board(fcr=fcr, ier=0x01)
    board.uart.receive(bytes(level - 1))
    assert not board.pin.level
    board.clock.advance(HOST_CHARACTER_NS * 16)
    board.drain()
    board.uart.receive(bytes(level))
    assert board.pin.level
    assert board.r(IIR) == 0xC4
    board.r(RBR)
    assert not board.pin.level


def test_character_time_out_comes_four_characters_after_the_last() -> None:
    """FIFO below the trigger, nothing in or out for 4 character times: IIR 1100, until RBR is read."""
    board = Board(fcr=0x81, ier=0x01)  # 115200 8N1: ten bits are 86.8 us
    board.uart.receive(b"ab")
    four = 4 * 10 * SECOND // 115200
    board.clock.advance(four - 1)
    assert not board.pin.level
    board.clock.advance(1)
    assert board.pin.level
    assert board.r(IIR) == 0xCC
    assert board.r(RBR) == ord("a")
    assert not board.pin.level
    board.clock.advance(four)
    assert board.r(IIR) == 0xCC
    assert board.r(RBR) == ord("b")
    board.clock.advance(100 * four)
    assert board.levels == [True, False, True, False]


def test_reading_puts_the_time_out_off() -> None:
    """Both the last arrival and the last read must be 4 character times ago."""
    board = Board(fcr=0x81, ier=0x01)
    four = 4 * 10 * SECOND // 115200
    board.uart.receive(b"abc")
    board.clock.advance(four - 1000)
    board.r(RBR)
    board.clock.advance(four - 1000)
    assert not board.pin.level
    board.uart.receive(b"d")
    board.clock.advance(four - 1)
    assert not board.pin.level
    board.clock.advance(1)
    assert board.pin.level


@pytest.mark.parametrize(
    ("lcr", "bits"), [(0x00, 7), (0x03, 10), (0x07, 11), (0x0B, 11), (0x04, 7.5), (0x0F, 12), (0x1A, 10)]
)
def test_a_character_time_follows_the_line_format(lcr: int, bits: float) -> None:
    """Start, 5-8 data bits, parity if enabled, 1, 1.5 (5 data bits) or 2 stop bits, at the divisor's rate."""
    board = Board(fcr=0x81, ier=0x01)
    for offset, value in ((LCR, 0x80), (DLL, 96), (LCR, lcr)):  # 1200 baud
        board.w(offset, value)
    board.uart.receive(b"x")
    board.clock.advance(int(4 * bits * SECOND / 1200) - 1000)
    assert not board.pin.level
    board.clock.advance(2000)
    assert board.pin.level


def test_no_time_out_without_fifos_or_when_empty() -> None:
    """The time-out is of the FIFO mode; a FIFO reset takes it back."""
    board = Board(ier=0x01)
    board.uart.receive(b"a")
    board.clock.advance(SECOND)
    assert board.r(IIR) == 0x04
    board = Board(fcr=0x81, ier=0x01)
    board.uart.receive(b"a")
    board.clock.advance(SECOND)
    assert board.r(IIR) == 0xCC
    board.w(FCR, 0x83)
    assert not board.pin.level
    assert board.r(LSR) == 0x60


def test_thre_interrupt_on_enabling() -> None:
    """Setting IER bit 1 while THR is empty makes the interrupt; reading IIR as its source ends it; again so."""
    board = Board()
    for _ in range(2):
        board.w(IER, 0x02)
        assert board.pin.level
        assert board.r(IIR) == 0x02
        assert not board.pin.level
        assert board.r(IIR) == 0x01
        board.w(IER, 0x02)
        assert not board.pin.level
        board.w(IER, 0x00)


def test_thre_interrupt_after_each_character() -> None:
    """THR empties after a write: a new interrupt, and a new edge even when the last was not identified."""
    board = Board(ier=0x02)
    board.r(IIR)
    board.levels.clear()
    board.w(THR, 1)
    assert board.levels == [True]
    board.w(THR, 2)
    assert board.levels == [True, False, True]
    assert board.r(IIR) == 0x02
    assert not board.pin.level


def test_reading_iir_for_another_source_leaves_thre_pending() -> None:
    """Only when IIR names THRE does reading it clear THRE."""
    board = Board(ier=0x03)
    board.uart.receive(b"x")
    assert board.r(IIR) == 0x04
    assert board.r(IIR) == 0x04
    board.r(RBR)
    assert board.r(IIR) == 0x02
    assert board.r(IIR) == 0x01


def test_interrupt_priorities() -> None:
    """Line status, then received data, then THRE, then modem status; each by its own way out."""
    board = Board(ier=0x0F, mcr=OUT2)
    board.uart.set_modem_lines(cts=False)
    board.uart.receive_break()
    assert board.r(IIR) == 0x06
    assert board.r(LSR) & 0x1E == 0x18
    assert board.r(IIR) == 0x04
    assert board.r(RBR) == 0
    assert board.r(IIR) == 0x02
    assert board.r(IIR) == 0x00
    assert board.r(MSR) == 0xA1
    assert board.r(IIR) == 0x01
    assert not board.pin.level


def test_out2_gates_the_interrupt() -> None:
    """On a PC the pin is driven only while MCR.OUT2 is set; IIR shows the interrupt all the same."""
    board = Board(ier=0x02, mcr=0)
    assert not board.pin.level
    board.w(MCR, OUT2)
    assert board.pin.level
    board.w(MCR, OUT2 | LOOP)  # loopback forces the outputs inactive
    assert not board.pin.level
    board.w(MCR, 0)
    assert board.r(IIR) == 0x02


def test_modem_status_deltas() -> None:
    """A change sets the line's delta bit until MSR is read; RI only at its trailing edge."""
    board = Board(ier=0x08)
    board.uart.set_modem_lines(cts=False, dsr=False, ri=True, dcd=False)
    assert board.pin.level
    assert board.r(IIR) == 0x00
    assert board.r(MSR) == 0x4B
    assert not board.pin.level
    board.uart.set_modem_lines(cts=False, dsr=False, ri=False, dcd=False)
    assert board.r(MSR) == 0x04
    assert board.r(MSR) == 0x00
    board.uart.set_modem_lines()
    assert board.r(MSR) == 0xBB
    assert board.r(MSR) == 0xB0


def test_loopback_of_modem_lines() -> None:
    """DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD; the inputs are cut off and come back afterwards."""
    board = Board()
    for mcr, msr in ((0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0A, 0x90)):
        board.w(MCR, LOOP | mcr)
        assert board.r(MSR) & 0xF0 == msr
    board.uart.set_modem_lines(cts=False)
    assert board.r(MSR) & 0xF0 == 0x90
    board.w(MCR, 0)
    assert board.r(MSR) & 0xF0 == 0xA0


def test_loopback_of_data() -> None:
    """What is transmitted is received and does not leave; the host's characters wait outside."""
    board = Board(fcr=0x01)
    board.w(MCR, LOOP)
    board.uart.receive(b"host")
    for byte in b"loop":
        board.w(THR, byte)
    assert board.drain() == b"loop"
    assert board.sent == b""
    board.w(MCR, OUT2)
    assert board.drain() == b"host"


def test_overrun_with_fifos_keeps_the_fifo() -> None:
    """The 17th character is lost, OE is set until LSR is read, and makes a line status interrupt."""
    board = Board(fcr=0x01, ier=0x04)
    board.w(MCR, LOOP)
    for byte in range(17):
        board.w(THR, byte)
    assert board.r(IIR) == 0xC6
    assert board.r(LSR) == 0x63
    assert board.r(LSR) == 0x61
    assert board.drain() == bytes(range(16))


def test_overrun_without_fifos_keeps_the_new_character() -> None:
    """RBR is overwritten."""
    board = Board()
    board.w(MCR, LOOP)
    board.w(THR, 1)
    board.w(THR, 2)
    assert board.r(LSR) == 0x63
    assert board.drain() == b"\x02"


def test_break_is_shown_with_its_character() -> None:
    """FIFO mode: LSR bit 7 tells of an error in the FIFO, BI appears when the zero character is on top."""
    board = Board(fcr=0x01, ier=0x04)
    board.uart.receive(b"a")
    board.clock.advance(SECOND)
    board.uart.receive_break()
    board.uart.receive(b"b")
    board.clock.advance(SECOND)
    assert board.r(LSR) == 0xE1
    assert board.r(LSR) == 0xE1  # still in the FIFO
    assert not board.pin.level
    assert board.r(RBR) == ord("a")
    assert board.r(IIR) == 0xC6
    assert board.r(LSR) & 0x9F == 0x99
    assert board.r(LSR) == 0x61
    assert (board.r(RBR), board.r(RBR)) == (0, ord("b"))


def test_set_break_keeps_characters_in() -> None:
    """LCR bit 6 forces SOUT to the spacing state: what is transmitted meanwhile goes nowhere."""
    board = Board()
    board.w(LCR, 0x43)
    board.w(THR, 1)
    board.w(LCR, 0x03)
    board.w(THR, 2)
    assert board.sent == b"\x02"


def test_fifo_reset_and_mode_change_empty_the_receive_fifo() -> None:
    """FCR bit 1, and any change of FCR bit 0."""
    for fcr in (0x03, 0x00):
        board = Board(fcr=0x01)
        board.uart.receive(b"gone")
        board.w(FCR, fcr)
        assert board.r(LSR) == 0x60
        board.w(FCR, 0x01)
        board.clock.advance(SECOND)
        board.uart.receive(b"new")
        assert board.drain() == b"new"


def test_the_transmit_fifo_reset_changes_nothing() -> None:
    """The transmit FIFO is always empty already."""
    board = Board(fcr=0x01, ier=0x01)
    board.uart.receive(b"kept")
    board.w(FCR, 0x05)
    assert board.drain() == b"kept"


def test_a_long_input_arrives_whole_and_in_order() -> None:
    """The host can send any amount at any time: a FIFO's worth is there at once, the rest as time passes."""
    board = Board(fcr=0x01, ier=0x01)
    data = bytes(range(256)) * 40
    board.uart.receive(data[:5000])
    got = board.drain()
    assert got == data[:16]
    board.uart.receive(data[5000:])
    while len(got) < len(data):
        board.clock.advance(16 * HOST_CHARACTER_NS)
        assert board.pin.level
        got += board.drain()
        assert not board.pin.level  # a handler that reads all there is comes to its end
    assert got == data
    assert board.r(LSR) == 0x60
    assert board.uart.state.host == []


def test_input_added_while_much_was_taken_follows_in_order() -> None:
    """The host keeps only what has not arrived; that changes nothing of the order."""
    board = Board(fcr=0x01)
    data = bytes(range(251)) * 60
    board.uart.receive(data[:10000])
    got = bytearray()
    for at in range(10000, len(data), 10):
        board.clock.advance(16 * HOST_CHARACTER_NS)
        got += board.drain()
        board.uart.receive(data[at : at + 10])
    assert len(board.uart.state.host) < len(data) - 4000
    while len(got) < len(data):
        board.clock.advance(16 * HOST_CHARACTER_NS)
        got += board.drain()
    assert got == data


def test_a_slow_guest_loses_nothing() -> None:
    """The FIFO is full for long: the rest waits, and nothing overruns."""
    board = Board(fcr=0x01)
    board.uart.receive(bytes(range(40)))
    got = bytearray()
    while len(got) < 40:
        board.clock.advance(SECOND)
        assert board.r(LSR) == 0x61
        got.append(board.r(RBR))
    assert got == bytes(range(40))


def test_input_survives_a_reset_of_the_machine() -> None:
    """What has not arrived is still the host's."""
    board = Board(fcr=0x01)
    board.uart.receive(bytes(range(20)))
    board.uart.reset()
    board.clock.advance(SECOND)
    board.w(FCR, 0x01)  # empties the FIFO: the one character that came in 16450 mode goes
    board.clock.advance(SECOND)
    assert board.drain() == bytes(range(17, 20))


def test_restore_goes_on_where_it_was() -> None:
    """Line, time-out and waiting input work in a fresh device as they would have in the saved one."""
    board, other = Board(fcr=0xC1, ier=0x01), Board()
    board.uart.receive(bytes(range(20)))
    for _ in range(10):
        board.r(RBR)
    other.uart.restore(board.uart.save())
    assert not other.pin.level
    other.clock.advance(SECOND)
    assert other.pin.level
    assert other.drain() == bytes(range(10, 20))


def test_drivers_probe_finds_a_16550a() -> None:
    """The steps of a Linux driver's search: IER, loopback, FIFO bits of IIR, no 16650, no 16750."""
    board = Board()
    board.w(IER, 0x0F)
    assert board.r(IER) == 0x0F
    board.w(IER, 0)
    assert board.r(IER) == 0
    board.w(MCR, LOOP | 0x0A)
    assert board.r(MSR) & 0xF0 == 0x90
    board.w(MCR, OUT2)
    board.w(LCR, 0xBF)
    board.w(FCR, 0)
    board.w(LCR, 0)
    board.w(FCR, 0x01)
    assert board.r(IIR) >> 6 == 3
    board.w(LCR, 0x80)
    assert board.r(IIR) != 0  # a 16650 would show its EFR here
    board.w(FCR, 0x21)
    assert board.r(IIR) >> 5 == 6  # a 16750 would show its 64-byte mode
    board.w(LCR, 0)
    board.w(IER, 0x02)  # the test for chips that make no THRE interrupt on enabling
    assert board.r(LSR) & 0x40
    assert not board.r(IIR) & 1


def test_wide_accesses_are_byte_cycles() -> None:
    """The ISA bus splits them, lowest address first."""
    board = Board()
    board.uart.write(LCR, 4, 0x00000B03 & 0xFFFF)  # LCR, MCR, and the read-only LSR and MSR
    assert board.uart.read(LCR, 4) == 0xB0600B03
    board.uart.write(THR, 2, 0x0041)
    assert board.sent == b"A"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 7), st.sampled_from((1, 2, 4, 8))),
        st.tuples(st.just("write"), st.integers(0, 7), st.sampled_from((1, 2, 4, 8)), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("write"), st.integers(0, 7), st.just(1), st.integers(0, 255)),
        st.tuples(st.just("receive"), st.binary(max_size=40)),
        st.tuples(st.just("break")),
        st.tuples(st.just("lines"), st.integers(0, 15)),
        st.tuples(st.just("advance"), st.integers(0, 10**7)),
        st.tuples(st.just("reset")),
    ),
    max_size=40,
)


@given(STEPS)
def test_any_guest_and_host(steps: list[tuple[object, ...]]) -> None:
    """Nothing raises, values fit, the pin is what IIR and OUT2 say, the state survives save and restore."""
    board = Board()
    uart = board.uart
    bus = Bus(0x10000)
    bus.attach(uart, 0x3F8)
    for step in steps:
        match step:
            case "read", int(offset), int(size):
                bus.read(0x3F8 + offset, size)
            case "write", int(offset), int(size), int(value):
                bus.write(0x3F8 + offset, size, value & (1 << 8 * size) - 1)
            case "receive", bytes(data):
                uart.receive(data)
            case "break", *_:
                uart.receive_break()
            case "lines", int(bits):
                uart.set_modem_lines(cts=bool(bits & 1), dsr=bool(bits & 2), ri=bool(bits & 4), dcd=bool(bits & 8))
            case "advance", int(ns):
                board.clock.advance(ns)
            case _:
                uart.reset()
        assert len(uart.state.rx) <= 16
        assert bool(uart.state.rx) == bool(uart.state.lsr & 1)
    other = Board()
    other.uart.restore(uart.save())
    assert other.uart.save() == uart.save()
    assert other.pin.level == board.pin.level
    gated = board.r(MCR) & (OUT2 | LOOP) == OUT2
    assert board.pin.level == (gated and not board.r(IIR) & 1)
    for each in (board, other):
        each.clock.advance(60 * SECOND)  # beyond four characters of the greatest divisor
        state = each.uart.state
        assert state.timed_out == bool(state.rx and state.fcr & 1)


@given(st.binary(max_size=200), st.lists(st.integers(0, 3 * 10**5), max_size=60), st.booleans())
def test_nothing_the_host_sends_is_lost(data: bytes, pauses: list[int], fifos: bool) -> None:
    """However the guest paces its reads, it gets every character once, in order, with no overrun."""
    board = Board(fcr=int(fifos))
    got = bytearray()
    at = 0
    for pause in pauses:
        board.uart.receive(data[at : at + pause % 23])
        at += pause % 23
        board.clock.advance(pause)
        lsr = board.r(LSR)
        assert not lsr & 0x9E
        if lsr & 1:
            got.append(board.r(RBR))
    board.uart.receive(data[at:])
    for _ in range(len(data) + 1):
        board.clock.advance(SECOND)
        got += board.drain()
    assert got == data
