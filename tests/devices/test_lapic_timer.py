"""The local APIC's timer (SDM vol. 3A, section 11.5.4): modes, counts, the divider, the TSC deadline."""

from __future__ import annotations

import pytest
from apic_rig import Rig

from iobus.devices import lapic_registers as r
from iobus.devices.lapic_registers import LVT_MASKED as MASKED
from iobus.devices.lapic_timer import SHORTEST_REPEAT

ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1 << 17, 2 << 17
BY_1 = 0b1011
VECTOR = 0xEE


def started(mode: int, count: int, divide: int = BY_1) -> Rig:
    rig = Rig()
    rig.put(r.LVT_TIMER, mode | VECTOR)
    rig.put(r.DIVIDE_CONFIGURATION, divide)
    rig.put(r.INITIAL_COUNT, count)
    return rig


def test_one_shot_counts_down_once() -> None:
    """From the initial count to zero, one interrupt, and it stays at zero."""
    rig = started(ONE_SHOT, 100_000)
    assert rig.get(r.CURRENT_COUNT) == 100_000
    rig.clock.advance(40_000)
    assert rig.get(r.CURRENT_COUNT) == 60_000 and not rig.lapic.pending()
    rig.clock.advance(60_000)
    assert rig.taken() == [VECTOR]
    rig.clock.advance(1_000_000)
    assert rig.get(r.CURRENT_COUNT) == 0 and rig.get(r.INITIAL_COUNT) == 100_000 and rig.taken() == []


def test_periodic_reloads() -> None:
    """An interrupt each time the count reaches zero; the count starts again from the initial count."""
    rig = started(PERIODIC, 100_000)
    for _ in range(3):
        rig.clock.advance(99_999)
        assert rig.taken() == [] and rig.get(r.CURRENT_COUNT) == 1
        rig.clock.advance(1)
        assert rig.taken() == [VECTOR] and rig.get(r.CURRENT_COUNT) == 100_000


@pytest.mark.parametrize(
    ("code", "divider"),
    [(0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1)],
)
def test_the_divider(code: int, divider: int) -> None:
    """Figure 11-10: bits 0, 1 and 3."""
    rig = started(ONE_SHOT, 100, code)
    rig.clock.advance(50 * divider)
    assert rig.get(r.CURRENT_COUNT) == 50
    rig.clock.advance(50 * divider - 1)
    assert not rig.lapic.pending()
    rig.clock.advance(1)
    assert rig.lapic.pending()


def test_a_new_divider_keeps_the_count() -> None:
    """A running count goes on from where it is, at the new rate."""
    rig = started(ONE_SHOT, 100_000)
    rig.clock.advance(40_000)
    rig.put(r.DIVIDE_CONFIGURATION, 0)
    assert rig.get(r.CURRENT_COUNT) == 60_000
    rig.clock.advance(100_000)
    assert rig.get(r.CURRENT_COUNT) == 10_000


def test_initial_count_zero_stops() -> None:
    """Writing 0 stops the timer in both modes."""
    for mode in (ONE_SHOT, PERIODIC):
        rig = started(mode, 100_000)
        rig.put(r.INITIAL_COUNT, 0)
        rig.clock.advance(1_000_000)
        assert rig.get(r.CURRENT_COUNT) == 0 and not rig.lapic.pending()
        assert rig.clock.next_deadline() is None


def test_switching_between_one_shot_and_periodic_lets_the_count_run() -> None:
    """The count is not reset by the switch; what follows zero is the new mode's."""
    rig = started(ONE_SHOT, 100_000)
    rig.clock.advance(60_000)
    rig.put(r.LVT_TIMER, PERIODIC | VECTOR)
    assert rig.get(r.CURRENT_COUNT) == 40_000
    rig.clock.advance(40_000)
    assert rig.taken() == [VECTOR] and rig.get(r.CURRENT_COUNT) == 100_000
    rig.clock.advance(70_000)
    rig.put(r.LVT_TIMER, ONE_SHOT | VECTOR)
    assert rig.get(r.CURRENT_COUNT) == 30_000
    rig.clock.advance(30_000)
    assert rig.taken() == [VECTOR] and rig.get(r.CURRENT_COUNT) == 0
    rig.put(r.LVT_TIMER, PERIODIC | VECTOR)
    rig.clock.advance(1_000_000)
    assert rig.get(r.CURRENT_COUNT) == 0 and rig.taken() == []


def test_masked_it_counts_but_does_not_interrupt() -> None:
    """The mask holds back the interrupt, not the count; what expired meanwhile is lost."""
    rig = started(PERIODIC | MASKED, 100_000)
    rig.clock.advance(330_000)
    assert rig.get(r.CURRENT_COUNT) == 70_000
    rig.put(r.LVT_TIMER, PERIODIC | VECTOR)
    assert rig.taken() == [] and rig.get(r.CURRENT_COUNT) == 70_000
    rig.clock.advance(70_000)
    assert rig.taken() == [VECTOR]


def test_missed_periods_are_one_interrupt() -> None:
    """A clock that comes late finds one interrupt, and the next on the period's own grid."""
    rig = started(PERIODIC, 100_000)
    rig.clock._now = 1_030_000  # the host slept
    assert rig.get(r.CURRENT_COUNT) == 70_000
    rig.clock.run_due()
    assert rig.taken() == [VECTOR] and rig.clock.next_deadline() == 1_100_000


def test_the_shortest_period_cannot_hold_the_monitor() -> None:
    """A period of 1 ns interrupts only every `SHORTEST_REPEAT`."""
    rig = started(PERIODIC, 1)
    before = rig.cpu.interrupts
    rig.clock.advance(100 * SHORTEST_REPEAT)
    assert 99 <= rig.cpu.interrupts - before <= 101


def test_an_illegal_vector_is_an_error() -> None:
    """Section 11.5.3, bit 6: also from the local vector table."""
    rig = started(ONE_SHOT, 1000)
    rig.put(r.LVT_TIMER, 0x0A)
    rig.clock.advance(1000)
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0x40 and not rig.lapic.pending()


def test_tsc_deadline_fires_once_and_reads_zero_after() -> None:
    """Arming with a TSC value; at it, one interrupt, and the MSR is cleared."""
    rig = Rig()
    rig.put(r.LVT_TIMER, TSC_DEADLINE | VECTOR)
    assert rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 100_000)
    assert rig.lapic.read_msr(r.IA32_TSC_DEADLINE) == 100_000
    rig.clock.advance(49_999)
    assert not rig.lapic.pending()
    rig.clock.advance(1)
    assert rig.lapic.read_msr(r.IA32_TSC_DEADLINE) == 0 and rig.taken() == [VECTOR]


def test_a_tsc_deadline_in_the_past_fires_at_once() -> None:
    """The write itself interrupts; no time has to pass."""
    rig = Rig()
    rig.clock.advance(1000)
    rig.put(r.LVT_TIMER, TSC_DEADLINE | VECTOR)
    rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 2000)
    assert rig.taken() == [VECTOR] and rig.lapic.read_msr(r.IA32_TSC_DEADLINE) == 0


def test_tsc_deadline_zero_disarms_and_a_later_write_replaces() -> None:
    rig = Rig()
    rig.put(r.LVT_TIMER, TSC_DEADLINE | VECTOR)
    rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 1000)
    rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 4000)
    rig.clock.advance(1999)
    assert not rig.lapic.pending()
    rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 0)
    rig.clock.advance(10_000)
    assert not rig.lapic.pending()


def test_the_modes_exclude_each_other() -> None:
    """The count registers are dead in TSC-deadline mode, the MSR in the others; the switch disarms."""
    rig = started(ONE_SHOT, 1000)
    assert rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 5000) and rig.lapic.read_msr(r.IA32_TSC_DEADLINE) == 0
    rig.put(r.LVT_TIMER, TSC_DEADLINE | VECTOR)
    assert rig.get(r.CURRENT_COUNT) == 0
    rig.put(r.INITIAL_COUNT, 500)
    rig.clock.advance(10_000)
    assert rig.taken() == []
    rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 1 << 40)
    rig.put(r.LVT_TIMER, PERIODIC | VECTOR)
    assert rig.lapic.read_msr(r.IA32_TSC_DEADLINE) == 0 and rig.clock.next_deadline() is None


def test_a_deadline_of_centuries_is_only_far_away() -> None:
    """The largest TSC value arms; nothing fires, and the clock's deadline stays one a sleeper can wait for."""
    rig = Rig()
    rig.put(r.LVT_TIMER, TSC_DEADLINE | VECTOR)
    rig.lapic.write_msr(r.IA32_TSC_DEADLINE, (1 << 64) - 1)
    deadline = rig.clock.next_deadline()
    assert deadline is not None and deadline < 1 << 43
    rig.clock.advance(1 << 44)
    assert not rig.lapic.pending() and rig.lapic.read_msr(r.IA32_TSC_DEADLINE) == (1 << 64) - 1


def test_without_a_tsc_there_is_no_tsc_deadline_mode() -> None:
    """The MSR faults and the mode bit is reserved, as CPUID then tells."""
    rig = Rig(tsc=False)
    assert rig.lapic.read_msr(r.IA32_TSC_DEADLINE) is None
    assert not rig.lapic.write_msr(r.IA32_TSC_DEADLINE, 1)
    rig.put(r.LVT_TIMER, TSC_DEADLINE | VECTOR)
    assert rig.get(r.LVT_TIMER) == VECTOR


def test_disabling_the_apic_disarms() -> None:
    """Software-disabled it is masked, disabled in IA32_APIC_BASE it is reset."""
    rig = started(PERIODIC, 100_000)
    rig.put(r.SVR, 0xFF)
    assert rig.clock.next_deadline() is None
    rig = started(PERIODIC, 100_000)
    rig.lapic.write_msr(r.IA32_APIC_BASE, 0xFEE00000)
    assert rig.clock.next_deadline() is None
