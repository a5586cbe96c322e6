"""ACPI fixed hardware: events and the SCI, soft off, the PM timer (ACPI 6.5, section 4.8.3)."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import Bus
from iobus.clock import SteppedClock
from iobus.devices.acpi_pm import (
    GBL,
    PM1_CNT,
    PM1_EN,
    PM1_STS,
    PM_TMR,
    PWRBTN,
    S5_SLP_TYP,
    SCI_EN,
    SLP_EN,
    TMR,
    AcpiPm,
)
from iobus.irq import Pin

HZ = 3_579_545
HALF_NS = -(-(2**31) * 10**9 // HZ)
"""When bit 31 of the timer first changes: the first whole ns at which it has."""


class Board:
    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.levels: list[bool] = []
        self.offs = 0
        self.pin = Pin(self.levels.append)
        self.pm = AcpiPm(self.clock, self.pin.line("sci"), self.power_off)

    def power_off(self) -> None:
        self.offs += 1


def test_pm_timer_counts_at_3_579545_mhz_exactly() -> None:
    """After any time the count is that time times the frequency, rounded down, with no drift."""
    board = Board()
    for step in (1, 279, 280, 10**9, 12345678901, 3600 * 10**9):
        board.clock.advance(step)
        assert board.pm.read(PM_TMR, 4) == int(Fraction(board.clock.now() * HZ, 10**9)) % 2**32


def test_pm_timer_reads_by_bytes_and_words_and_ignores_writes() -> None:
    """Its byte lanes are those of the 32-bit value; it is read-only."""
    board = Board()
    board.clock.advance(10**12)
    value = board.pm.read(PM_TMR, 4)
    board.pm.write(PM_TMR, 4, 0)
    assert [board.pm.read(PM_TMR + lane, 1) for lane in range(4)] == list(value.to_bytes(4, "little"))
    assert board.pm.read(PM_TMR + 2, 2) == value >> 16


def test_tmr_sts_is_set_whenever_bit_31_changes() -> None:
    """Section 4.8.3.3: high to low and low to high; each sets it anew after it was cleared."""
    board = Board()
    board.clock.advance(HALF_NS - 1)
    assert board.pm.read(PM_TMR, 4) == 0x7FFF_FFFF
    assert not board.pm.read(PM1_STS, 2) & TMR
    board.clock.advance(1)
    assert board.pm.read(PM_TMR, 4) == 0x8000_0000
    assert board.pm.read(PM1_STS, 2) & TMR
    board.pm.write(PM1_STS, 2, TMR)
    assert not board.pm.read(PM1_STS, 2) & TMR
    board.clock.advance(HALF_NS)
    assert board.pm.read(PM_TMR, 4) < 100
    assert board.pm.read(PM1_STS, 2) & TMR


def test_tmr_en_raises_the_sci_at_the_edge_and_clearing_ends_it() -> None:
    """SCI is level-triggered: high from the change of bit 31 until the guest writes 1 to TMR_STS; then again."""
    board = Board()
    board.pm.write(PM1_EN, 2, TMR)
    board.clock.advance(HALF_NS - 1)
    assert board.levels == []
    board.clock.advance(1)
    assert board.levels == [True]
    board.pm.write(PM1_STS, 2, TMR)
    assert board.levels == [True, False]
    board.clock.advance(10 * HALF_NS)
    assert board.levels == [True, False, True]


def test_enabling_an_event_already_set_raises_the_sci() -> None:
    """The SCI is status AND enable, whichever comes last."""
    board = Board()
    board.clock.advance(HALF_NS)
    assert not board.pin.level
    board.pm.write(PM1_EN, 2, TMR)
    assert board.pin.level
    board.pm.write(PM1_EN, 2, 0)
    assert not board.pin.level
    assert board.clock.next_deadline() is None


def test_disabling_the_timer_event_stops_waiting_for_it() -> None:
    """No SCI comes at the edge, and nothing is left armed."""
    board = Board()
    board.pm.write(PM1_EN, 2, TMR)
    board.pm.write(PM1_EN, 2, 0)
    assert board.clock.next_deadline() is None
    board.clock.advance(HALF_NS)
    assert board.levels == []


def test_power_button() -> None:
    """PWRBTN_STS is set by a press, raises the SCI when enabled, and only a written 1 clears it."""
    board = Board()
    board.pm.press_power_button()
    assert board.pm.read(PM1_STS, 2) == PWRBTN
    assert not board.pin.level
    board.pm.write(PM1_EN, 2, PWRBTN | GBL)
    assert board.pm.read(PM1_EN, 2) == PWRBTN | GBL
    assert board.pin.level
    board.pm.write(PM1_STS, 2, 0xFFFF & ~PWRBTN)
    assert board.pin.level
    board.pm.write(PM1_STS + 1, 1, PWRBTN >> 8)
    assert board.pm.read(PM1_STS, 2) == 0
    assert not board.pin.level


def test_a_dword_write_reaches_status_and_enable() -> None:
    """The event block is two words; one access may hold both, and each keeps its own rule."""
    board = Board()
    board.pm.press_power_button()
    board.pm.write(PM1_STS, 4, PWRBTN << 16)
    assert board.pm.read(PM1_STS, 4) == PWRBTN << 16 | PWRBTN
    board.pm.write(PM1_STS, 4, PWRBTN)
    assert board.pm.read(PM1_STS, 4) == 0


def test_a_byte_write_leaves_the_other_byte_of_the_enable_register() -> None:
    """Byte lanes not written keep their value."""
    board = Board()
    board.pm.write(PM1_EN, 2, TMR | PWRBTN)
    board.pm.write(PM1_EN + 1, 1, 0)
    assert board.pm.read(PM1_EN, 2) == TMR


def test_acpi_mode_is_always_on() -> None:
    """SCI_EN reads 1 and cannot be written: the FADT names no SMI command to change it."""
    board = Board()
    board.pm.write(PM1_CNT, 2, 0)
    assert board.pm.read(PM1_CNT, 2) == SCI_EN


def test_soft_off() -> None:
    """SLP_EN with S5's SLP_TYP switches off, once a write; SLP_EN reads 0; SLP_TYP alone does nothing."""
    board = Board()
    board.pm.write(PM1_CNT, 2, S5_SLP_TYP << 10)
    assert board.offs == 0
    board.pm.write(PM1_CNT, 2, S5_SLP_TYP << 10 | SLP_EN)
    assert board.offs == 1
    assert board.pm.read(PM1_CNT, 2) == S5_SLP_TYP << 10 | SCI_EN
    board.pm.write(PM1_CNT, 1, 0)
    assert board.offs == 1


def test_other_sleep_types_do_nothing() -> None:
    """A SLP_TYP that no \\_Sx object names is no state of this machine."""
    board = Board()
    for slp_typ in set(range(8)) - {S5_SLP_TYP}:
        board.pm.write(PM1_CNT, 2, slp_typ << 10 | SLP_EN)
    assert board.offs == 0


def test_reset_clears_events_and_lowers_the_sci() -> None:
    """After a reset no event is set or enabled, and the timer counts on."""
    board = Board()
    board.clock.advance(HALF_NS)
    board.pm.press_power_button()
    board.pm.write(PM1_EN, 2, TMR | PWRBTN)
    assert board.pin.level
    board.pm.reset()
    assert not board.pin.level
    assert board.pm.read(PM1_STS, 4) == 0
    assert board.pm.read(PM_TMR, 4) == 1 << 31


def test_restore_drives_the_sci_and_arms_the_edge() -> None:
    """A restored device behaves as the saved one would have: level, and the next edge."""
    board, other = Board(), Board()
    board.pm.write(PM1_EN, 2, TMR | PWRBTN)
    board.pm.press_power_button()
    other.pm.restore(board.pm.save())
    assert other.pin.level
    other.pm.write(PM1_STS, 2, PWRBTN)
    assert not other.pin.level
    other.clock.advance(HALF_NS)
    assert other.pin.level


ACCESSES = st.lists(
    st.tuples(
        st.sampled_from((1, 2, 4, 8)), st.integers(0, 11), st.none() | st.integers(0, 2**64 - 1), st.integers(0, 10**12)
    ),
    max_size=30,
)


@given(ACCESSES)
def test_any_guest(accesses: list[tuple[int, int, int | None, int]]) -> None:
    """No sequence of accesses raises; the SCI is status AND enable; the state survives save and restore."""
    board = Board()
    bus = Bus(0x10000)
    bus.attach(board.pm, 0x600)
    for size, offset, value, ns in accesses:
        board.clock.advance(ns)
        if value is None:
            bus.read(0x600 + offset, size)
        else:
            bus.write(0x600 + offset, size, value & (1 << 8 * size) - 1)
        assert board.pin.level == bool(board.pm.read(PM1_STS, 2) & board.pm.read(PM1_EN, 2))
    other = Board()
    other.pm.restore(board.pm.save())
    assert other.pm.save() == board.pm.save()
