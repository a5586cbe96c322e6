"""The HPET by the IA-PC HPET Specification 1.0a, on a stepped clock: registers, timers, where interrupts go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.clock import SteppedClock
from iobus.devices import hpet as h
from iobus.devices.hpet import Hpet
from iobus.irq import Line, Pin
from iobus.state import StateError

CFG, CMP, FSB = h.TIMER_CONFIGURATION, h.TIMER_COMPARATOR, h.TIMER_FSB
ONES = (1 << 64) - 1
LEVEL, ENABLE, PERIODIC, VAL_SET, MODE32, FSB_EN = (
    h.INT_TYPE_CNF, h.INT_ENB_CNF, h.TYPE_CNF, h.VAL_SET_CNF, h.MODE32_CNF, h.FSB_EN_CNF,
)  # fmt: skip
ROUTE = 20 << 9
"""A route that every timer of the bench can have."""


class Bench:
    """An HPET whose lines write down their changes: `(count of ticks, line, level)`."""

    def __init__(self, start_ns: int = 0) -> None:
        self.clock = SteppedClock()
        self.clock.advance(start_ns)
        self.changes: list[tuple[int, str, bool]] = []
        self.messages: list[tuple[int, int, int]] = []
        self.replaced: list[bool] = []
        self.pins: dict[str, Pin] = {}
        self.hpet = Hpet(
            self.clock,
            [{number: self.line(f"{timer}>{number}") for number in (11, 20)} for timer in range(3)],
            (self.line("irq0"), self.line("irq8")),
            replace=self.replaced.append,
            fsb=lambda address, value: self.messages.append((self.tick, address, value)),
        )
        self.replaced.clear()

    @property
    def tick(self) -> int:
        return self.clock.now() // 10

    def line(self, name: str) -> Line:
        self.pins[name] = Pin(lambda level: self.changes.append((self.tick, name, level)), name=name)
        return self.pins[name].line()

    def step(self, ticks: int) -> None:
        self.clock.advance(10 * ticks)

    def get(self, register: int, timer: int | None = None, size: int = 8) -> int:
        return self.hpet.read(register + (0 if timer is None else 0x100 + 0x20 * timer), size)

    def put(self, register: int, value: int, timer: int | None = None, size: int = 8) -> None:
        self.hpet.write(register + (0 if timer is None else 0x100 + 0x20 * timer), size, value)

    def run(self, *, legacy: bool = False) -> None:
        self.put(h.CONFIGURATION, 3 if legacy else 1)

    def halt(self) -> None:
        self.put(h.CONFIGURATION, 0)

    def one_shot(self, at: int, timer: int = 0, flags: int = 0) -> None:
        self.put(CFG, ENABLE | ROUTE | flags, timer)
        self.put(CMP, at, timer)

    def rises(self) -> list[tuple[int, str]]:
        found = [(tick, name) for tick, name, level in self.changes if level]
        self.changes.clear()
        return found

    def high(self) -> list[str]:
        return [name for name, pin in self.pins.items() if pin.level]


# Registers.


def test_capabilities() -> None:
    """Section 2.3.4: revision 1, three timers, 64 bits, legacy replacement, a vendor, 10 ns in femtoseconds."""
    bench = Bench()
    bench.put(h.CAPABILITIES, 0)
    value = bench.get(h.CAPABILITIES)
    assert value & 0xFF == 1 and value >> 8 & 0x1F == 2
    assert value >> 13 & 1 == 1 and value >> 15 & 1 == 1 and value >> 16 & 0xFFFF == 0x8086
    assert value >> 32 == 10_000_000 <= 0x05F5E100


def test_power_on_state() -> None:
    """All is off and zero but the comparators, which are all ones."""
    bench = Bench(start_ns=123_456)
    for register in (h.CONFIGURATION, h.STATUS, h.COUNTER):
        assert bench.get(register) == 0
    for timer in range(3):
        assert bench.get(CMP, timer) == ONES and bench.get(FSB, timer) == 0
        assert bench.get(CFG, timer) == 0x0010_0800_0000_8030, "capabilities: periodic, 64 bits, FSB, IRQ 11 and 20"
    bench.step(1000)
    assert bench.get(h.COUNTER) == 0 and bench.high() == []


@pytest.mark.parametrize("size", [4, 8])
def test_only_a_timers_own_bits_can_be_set(size: int) -> None:
    """Section 2.3.8: reserved bits and capabilities are read-only, VAL_SET reads 0."""
    bench = Bench()
    bench.put(CFG, (1 << 8 * size) - 1 & ~h.INT_ROUTE_CNF | ROUTE, 1, size)
    assert bench.get(CFG, 1) == 0x0010_0800_0000_0000 | 0x4000 | ROUTE | 0x8000 | 0x13E
    bench.put(h.CONFIGURATION, (1 << 8 * size) - 4, size=size)
    assert bench.get(h.CONFIGURATION) == 0
    bench.put(CFG + 4, 0, 1, 4)
    assert bench.get(CFG, 1) >> 32 == 0x0010_0800 and bench.get(CFG, 1) & ENABLE
    bench.run()
    bench.put(h.CONFIGURATION + 4, 0, size=4)
    assert bench.get(h.CONFIGURATION) == 1


def test_a_route_that_the_timer_has_not_is_not_taken() -> None:
    """Section 2.3.8: if the value is not supported, the value read back will not match what was written."""
    bench = Bench()
    bench.put(CFG, 11 << 9, 2)
    bench.put(CFG, 12 << 9, 2)
    assert bench.get(CFG, 2) >> 9 & 31 == 11
    bench.put(CFG, 20 << 9, 2)
    assert bench.get(CFG, 2) >> 9 & 31 == 20


def test_reserved_registers_read_zero_and_ignore_writes() -> None:
    """The gaps between the registers and the timers that there are not."""
    bench = Bench()
    before = bench.hpet.save()
    for offset in (0x008, 0x018, 0x028, 0x0E8, 0x0F8, 0x118, 0x160, 0x168, 0x3F8):
        bench.put(offset, ONES)
        assert bench.get(offset) == 0
    assert bench.hpet.save() == before


def test_access_sizes() -> None:
    """4 and 8 aligned bytes are accesses; others read the register's bytes, zero beyond it, and write nothing."""
    bench = Bench()
    bench.put(h.COUNTER, 0x8877665544332211)
    assert [bench.get(h.COUNTER + at, size=1) for at in range(8)] == list(range(0x11, 0x99, 0x11))
    assert bench.get(h.COUNTER + 2, size=2) == 0x4433
    assert bench.get(h.COUNTER + 4, size=4) == 0x88776655
    assert bench.get(h.COUNTER + 4, size=8) == 0x88776655 and bench.get(h.COUNTER + 7, size=2) == 0x88
    for at, size in ((0, 1), (0, 2), (2, 4), (4, 8), (1, 1)):
        bench.put(h.COUNTER + at, 0, size=size)
    assert bench.get(h.COUNTER) == 0x8877665544332211
    bench.put(h.COUNTER, 0xAAAA, size=4)
    assert bench.get(h.COUNTER) == 0x887766550000AAAA
    bench.put(h.COUNTER + 4, 0xBBBB, size=4)
    assert bench.get(h.COUNTER) == 0x0000BBBB_0000AAAA


# The main counter.


def test_the_counter_counts_while_enabled() -> None:
    """Section 2.3.5: halted it keeps its value, enabled it goes on from there, 100 counts a microsecond."""
    bench = Bench(start_ns=77)
    bench.run()
    bench.clock.advance(999)
    assert bench.get(h.COUNTER) == 99
    bench.clock.advance(1)
    assert bench.get(h.COUNTER) == 100
    bench.halt()
    bench.step(50)
    assert bench.get(h.COUNTER) == 100
    bench.run()
    bench.step(5)
    assert bench.get(h.COUNTER) == 105


def test_the_counter_wraps_at_64_bits_and_its_halves_are_one_number() -> None:
    """A carry from the low half reaches the high one; past all ones comes 0."""
    bench = Bench()
    bench.put(h.COUNTER, 0xFFFFFFFF)
    bench.run()
    bench.step(1)
    assert bench.get(h.COUNTER + 4, size=4) == 1 and bench.get(h.COUNTER, size=4) == 0
    bench.put(h.COUNTER, ONES)
    bench.step(3)
    assert bench.get(h.COUNTER) == 2


def test_writing_a_running_counter_aims_the_timers_anew() -> None:
    """The specification asks for a halted counter; one that is written while it runs is right all the same."""
    bench = Bench()
    bench.one_shot(1000)
    bench.run()
    bench.step(100)
    bench.put(h.COUNTER, 950)
    bench.step(49)
    assert bench.rises() == []
    bench.step(1)
    assert bench.rises() == [(150, "0>20")]


# One-shot.


@pytest.mark.parametrize("timer", range(3))
def test_one_shot_interrupts_when_the_counter_equals_the_comparator(timer: int) -> None:
    """Section 2.3.9.2.1: one edge, at that count; the comparator stays as it was written."""
    bench = Bench()
    bench.one_shot(500, timer)
    bench.run()
    bench.step(499)
    assert bench.rises() == []
    bench.step(1)
    assert bench.rises() == [(500, f"{timer}>20")] and bench.high() == []
    bench.step(100_000)
    assert bench.rises() == [] and bench.get(CMP, timer) == 500
    assert bench.get(h.STATUS) == 0, "edge-triggered"


def test_a_comparator_behind_the_counter_matches_after_the_wrap() -> None:
    """Nothing is late in hardware: in 32-bit mode the count comes round in 43 s, in 64 bits in millennia."""
    bench = Bench()
    bench.run()
    bench.step(1000)
    bench.one_shot(999, 0, MODE32)
    bench.one_shot(999, 1)
    bench.step((1 << 32) - 2)
    assert bench.rises() == []
    bench.step(1)
    assert [name for _, name in bench.rises()] == ["0>20"]
    bench.step(1 << 33)
    assert [name for _, name in bench.rises()] == ["0>20"] * 2, "and at each wrap again"


def test_a_comparator_equal_to_the_counter_matches_at_once() -> None:
    """When the main counter equals the value last written the interrupt is generated: also when it does already."""
    bench = Bench()
    bench.run()
    bench.step(100)
    bench.one_shot(100)
    assert bench.rises() == [(100, "0>20")]


def test_in_32_bit_mode_only_the_low_halves_are_compared() -> None:
    """Section 2.3.8: the high half of the comparator becomes 0 and cannot be written, the counter's is ignored."""
    bench = Bench()
    bench.put(CMP, 0x12345678_00000500, 0)
    bench.put(CFG, ENABLE | ROUTE | MODE32, 0)
    assert bench.get(CMP, 0) == 0x500
    bench.put(CMP + 4, 7, 0, 4)
    bench.put(CMP, 0x9_00000600, 0)
    assert bench.get(CMP, 0) == 0x600
    bench.put(h.COUNTER, 0xABCD_00000000)
    bench.run()
    bench.step(0x600)
    assert bench.rises() == [(0x600, "0>20")]


def test_a_change_of_the_size_aims_the_timer_anew() -> None:
    """What would match in 64 bits only, or only in the low half, matches as the mode then says; so does the period."""
    bench = Bench()
    bench.put(h.COUNTER, 0x1_00000000)
    bench.one_shot(0x5000)
    bench.run()
    bench.step(0x4000)
    bench.put(CFG, ENABLE | ROUTE | MODE32, 0)
    bench.step(0x1000)
    assert bench.rises() == [(0x5000, "0>20")]
    periodic(bench, 0x1_00006000, 0x1_00002000, timer=1)
    bench.put(CFG, ENABLE | ROUTE | PERIODIC | MODE32, 1)
    bench.step(0x3000)
    assert bench.rises() == [(0x6000, "1>20"), (0x8000, "1>20")]
    bench.put(CFG, ENABLE | ROUTE | PERIODIC, 1)
    bench.step(0x2000)
    assert bench.rises() == [] and bench.get(CMP, 1) == 0xA000


def test_matches_found_late_happen_in_the_order_of_their_counts() -> None:
    """Not in the order of the timers."""
    bench = Bench()
    for timer, at in ((0, 300), (1, 100), (2, 200)):
        bench.put(FSB, timer, timer)
        bench.one_shot(at, timer, FSB_EN)
    bench.run()
    bench.clock._now = 10_000
    bench.get(h.STATUS)
    assert [value for _, _, value in bench.messages] == [1, 2, 0]


def test_a_match_far_away_is_waited_for_in_stages() -> None:
    """The clock's deadline stays one a sleeper can wait for; the match is on time."""
    bench = Bench()
    far = 1 << 40  # three hours
    bench.one_shot(far)
    bench.run()
    deadline = bench.clock.next_deadline()
    assert deadline is not None and deadline < 1 << 43
    bench.step(far - 1)
    assert bench.rises() == []
    bench.step(1)
    assert bench.rises() == [(far, "0>20")]


def test_64_bits_are_compared_whole() -> None:
    """The low halves are equal long before."""
    bench = Bench()
    bench.one_shot(0x1_00000010)
    bench.run()
    bench.step(0x1_0000000F)
    assert bench.rises() == []
    bench.step(1)
    assert bench.rises() == [(0x1_00000010, "0>20")]


def test_without_its_enable_a_timer_runs_but_does_not_interrupt() -> None:
    """Section 2.3.8: it still generates its status bit where it is level-triggered; an edge is lost."""
    bench = Bench()
    bench.put(CFG, ROUTE | LEVEL, 0)
    bench.put(CMP, 10, 0)
    bench.put(CFG, ROUTE, 1)
    bench.put(CMP, 10, 1)
    bench.run()
    bench.step(20)
    assert bench.rises() == [] and bench.get(h.STATUS) == 1
    bench.put(CFG, ROUTE | ENABLE, 1)
    assert bench.rises() == []
    bench.put(CFG, ROUTE | LEVEL | ENABLE, 0)
    assert bench.rises() == [(20, "0>20")]


# Periodic.


def periodic(bench: Bench, first: int, period: int, timer: int = 0, flags: int = 0) -> None:
    """As software does it: VAL_SET, the comparator, the period."""
    bench.put(CFG, ENABLE | ROUTE | PERIODIC | VAL_SET | flags, timer)
    bench.put(CMP, first, timer)
    bench.put(CMP, period, timer)


@pytest.mark.parametrize("timer", range(3))
def test_periodic_adds_the_value_last_written_at_each_match(timer: int) -> None:
    """Section 2.3.9.2.2, its example (times 16): 0x1230, then the comparator is 0x2460, then 0x3690."""
    bench = Bench()
    bench.put(CFG, ENABLE | ROUTE | PERIODIC | VAL_SET, timer)
    bench.put(CMP, 0x1230, timer)
    bench.run()
    for match in (0x1230, 0x2460, 0x3690):
        assert bench.get(CMP, timer) == match
        bench.step(0x1230 - 1)
        assert bench.rises() == []
        bench.step(1)
        assert bench.rises() == [(match, f"{timer}>20")]


def test_a_periodic_comparator_is_written_with_val_set_only() -> None:
    """Without it a write changes the period from the next match on, and the comparator not at all."""
    bench = Bench()
    periodic(bench, 100_000, 50_000)
    bench.run()
    bench.step(60_000)
    bench.put(CMP, 10_000, 0)
    assert bench.get(CMP, 0) == 100_000
    bench.step(60_000)
    assert [tick for tick, _ in bench.rises()] == [100_000, 110_000, 120_000]


def test_val_set_is_used_up_by_one_write() -> None:
    """Section 2.3.8: the bit clears itself, so 64 bits set by halves need it twice."""
    bench = Bench()
    bench.put(CFG, PERIODIC | VAL_SET, 0)
    bench.put(CMP, 0x11111111, 0, 4)
    bench.put(CMP + 4, 0x22222222, 0, 4)
    assert bench.get(CMP, 0) == 0xFFFFFFFF_11111111
    bench.put(CFG, PERIODIC | VAL_SET, 0)
    bench.put(CMP + 4, 0x33333333, 0, 4)
    assert bench.get(CMP, 0) == 0x33333333_11111111


def test_a_periodic_comparator_wraps() -> None:
    """Section 2.3.9.2.2, its example: a 32-bit timer at FFFF0000h with 20000h comes to 00010000h."""
    bench = Bench()
    periodic(bench, 0xFFFF0000, 0x20000, flags=MODE32)
    bench.put(h.COUNTER, 0xFFFEFFFF)
    bench.run()
    bench.step(1)
    assert bench.get(CMP, 0) == 0x00010000 and len(bench.rises()) == 1
    bench.step(0x20000)
    assert bench.get(CMP, 0) == 0x00030000 and len(bench.rises()) == 1


def test_linux_programs_its_tick() -> None:
    """Halt, comparator = counter + delta with VAL_SET in 32-bit mode, delta, go: the first tick is delta away."""
    bench = Bench()
    bench.run()
    bench.step(12_345)
    bench.halt()
    count = bench.get(h.COUNTER, size=4)
    bench.put(CFG, ENABLE | PERIODIC | VAL_SET | MODE32 | ROUTE, 0, 4)
    bench.put(CMP, count + 400_000, 0, 4)
    bench.put(CMP, 400_000, 0, 4)
    bench.run()
    begun = bench.tick
    bench.step(1_200_000)
    assert [tick - begun for tick, _ in bench.rises()] == [400_000, 800_000, 1_200_000]


def test_missed_periods_are_one_interrupt() -> None:
    """A clock that comes late finds one edge, and the next on the period's own grid."""
    bench = Bench()
    periodic(bench, 10_000, 10_000)
    bench.run()
    bench.clock._now = 1_030_000  # the host slept
    bench.clock.run_due()
    assert bench.rises() == [(103_000, "0>20")]
    assert bench.get(CMP, 0) == 110_000 and bench.clock.next_deadline() == 1_100_000


@pytest.mark.parametrize("flags", [0, FSB_EN, LEVEL | FSB_EN])
def test_the_shortest_period_cannot_hold_the_monitor(flags: int) -> None:
    """A match at each count interrupts only every `SHORTEST_REPEAT` counts; the comparator is exact."""
    bench = Bench()
    periodic(bench, 1, 1, flags=flags)
    bench.run()
    bench.step(100 * h.SHORTEST_REPEAT)
    assert 99 <= len(bench.rises()) + len(bench.messages) <= 102
    assert bench.get(CMP, 0) == 100 * h.SHORTEST_REPEAT + 1


def test_reading_does_not_move_the_edges() -> None:
    """A guest that polls finds the match before the clock's turn comes; the next edge is on time all the same."""
    bench = Bench()
    periodic(bench, 2500, 2500)
    bench.run()
    for match in range(2500, 20_000, 2500):
        bench.clock._now = 10 * match  # the timer's own turn has not come
        assert bench.get(CMP, 0) == match + 2500
        assert bench.rises() == [(match, "0>20")]
        assert bench.clock.next_deadline() == 10 * (match + 2500)


def test_a_period_of_zero_matches_at_the_wrap() -> None:
    """Nothing is added: the comparator stays, and the counter comes round."""
    bench = Bench()
    periodic(bench, 5, 0, flags=MODE32)
    bench.run()
    bench.step(1 << 33)
    assert [tick for tick, _ in bench.rises()] == [5, (1 << 32) + 5]


# Level, status, halting.


def test_a_level_stays_until_its_status_bit_is_written_with_one() -> None:
    """Section 2.3.6: set by the timer, cleared by a 1; zeros and other bits' ones leave it."""
    bench = Bench()
    bench.one_shot(10, 1, LEVEL)
    bench.run()
    bench.step(10)
    assert bench.high() == ["1>20"] and bench.get(h.STATUS) == 2
    bench.put(h.STATUS, 0)
    bench.put(h.STATUS, ~2 & ONES)
    bench.put(h.STATUS + 4, 0xFFFFFFFF, size=4)
    assert bench.high() == ["1>20"]
    bench.put(h.STATUS, 2, size=4)
    assert bench.high() == [] and bench.get(h.STATUS) == 0


def test_a_level_that_is_up_remains_up_at_the_next_match() -> None:
    """If another interrupt occurs before it is cleared it stays active; no timer runs meanwhile."""
    bench = Bench()
    periodic(bench, 1000, 1000, flags=LEVEL)
    bench.run()
    bench.step(1000)
    assert bench.clock.next_deadline() is None
    bench.step(10_500)
    assert len(bench.changes) == 1 and bench.get(CMP, 0) == 12_000
    bench.put(h.STATUS, 1)
    bench.step(500)
    assert bench.rises() == [(1000, "0>20"), (12_000, "0>20")]


def test_two_level_timers_share_a_line() -> None:
    """Each holds its own end of the line: the pin is up until both are cleared."""
    bench = Bench()
    pin = Pin()
    shared = Hpet(
        bench.clock, [{20: pin.line()} for _ in range(3)], (bench.line("a"), bench.line("b")),
        replace=lambda _: None, fsb=lambda *_: None,
    )  # fmt: skip
    bench.hpet = shared
    bench.one_shot(10, 0, LEVEL)
    bench.one_shot(20, 2, LEVEL)
    bench.run()
    bench.step(30)
    assert bench.get(h.STATUS) == 5
    bench.put(h.STATUS, 1)
    assert pin.level
    bench.put(h.STATUS, 4)
    assert not pin.level


def test_halting_ends_interrupts_but_not_the_status() -> None:
    """Section 2.3.5: no interrupts are caused while halted, status bits are not cleared by it."""
    bench = Bench()
    bench.one_shot(10, 0, LEVEL)
    bench.one_shot(30, 1)
    bench.run()
    bench.step(20)
    bench.halt()
    assert bench.high() == [] and bench.get(h.STATUS) == 1
    assert bench.clock.next_deadline() is None
    bench.step(1000)
    bench.changes.clear()
    bench.run()
    assert bench.high() == ["0>20"]
    bench.step(10)
    assert bench.rises()[-1] == (1030, "1>20")


def test_a_timer_made_edge_triggered_has_no_status() -> None:
    """Section 2.3.6: in edge-triggered mode the bit reads 0."""
    bench = Bench()
    bench.one_shot(10, 0, LEVEL)
    bench.run()
    bench.step(10)
    bench.put(CFG, ENABLE | ROUTE, 0)
    assert bench.get(h.STATUS) == 0 and bench.high() == []


def test_a_level_follows_its_route() -> None:
    """A new route while the interrupt is active moves it: the old line falls, the new one rises."""
    bench = Bench()
    bench.one_shot(10, 2, LEVEL)
    bench.run()
    bench.step(10)
    bench.put(CFG, ENABLE | LEVEL | 11 << 9, 2)
    assert bench.high() == ["2>11"]
    bench.put(CFG, LEVEL | 11 << 9, 2)
    assert bench.high() == []


def test_a_timer_without_a_route_interrupts_nobody() -> None:
    """Route 0 is the reset value and no line of the capabilities: nothing is armed for it either."""
    bench = Bench()
    bench.put(CFG, ENABLE, 0)
    bench.put(CMP, 10, 0)
    bench.run()
    assert bench.clock.next_deadline() is None
    bench.step(100)
    assert bench.rises() == [] and bench.messages == []


# Messages and legacy replacement.


@pytest.mark.parametrize("flags", [0, LEVEL])
def test_fsb_delivery_writes_the_value_to_the_address(flags: int) -> None:
    """Section 2.3.10: with FSB_EN the interrupt is a memory write, the route has no effect."""
    bench = Bench()
    bench.put(FSB, 0xFEE01000 << 32 | 0x4041, 1)
    assert bench.get(FSB, 1) == 0xFEE0100000004041
    periodic(bench, 5000, 5000, timer=1, flags=FSB_EN | flags)
    bench.run()
    bench.step(15_000)
    assert bench.messages == [(tick, 0xFEE01000, 0x4041) for tick in (5000, 10_000, 15_000)]
    assert bench.rises() == [] and bench.get(h.STATUS) == (2 if flags else 0)
    bench.put(FSB, 0x42, 1, 4)
    bench.put(FSB + 4, 0xFEE02000, 1, 4)
    bench.step(5000)
    assert bench.messages[-1] == (20_000, 0xFEE02000, 0x42)


def test_legacy_replacement_takes_irq_0_and_8() -> None:
    """Section 2.3.5: timer 0 drives IRQ 0, timer 1 IRQ 8, whatever their routes; timer 2 keeps its own."""
    bench = Bench()
    for timer, flags in ((0, 0), (1, FSB_EN), (2, 0)):
        bench.one_shot(10 + timer, timer, flags)
    bench.run(legacy=True)
    assert bench.replaced == [True]
    bench.step(20)
    assert bench.rises() == [(10, "irq0"), (11, "irq8"), (12, "2>20")] and bench.messages == []


def test_legacy_replacement_needs_the_counter_enabled() -> None:
    """Only with ENABLE_CNF and LEG_RT_CNF both set; the others drive their lines again as either goes."""
    bench = Bench()
    bench.put(h.CONFIGURATION, 2)
    assert bench.replaced[-1:] in ([], [False])
    bench.put(h.CONFIGURATION, 3)
    assert bench.replaced[-1]
    bench.put(h.CONFIGURATION, 2)
    assert not bench.replaced[-1]


def test_a_level_moves_with_legacy_replacement() -> None:
    """Who gives a line up lets it go first: then the 8254 has it again, or the HPET takes it."""
    bench = Bench()
    bench.one_shot(10, 0, LEVEL)
    bench.run()
    bench.step(10)
    bench.run(legacy=True)
    assert bench.high() == ["irq0"]
    order: list[object] = []
    bench.hpet._replace = lambda on: order.append(("replace", on))
    for name in ("irq0", "0>20"):
        bench.pins[name]._sinks = (lambda level, name=name: order.append((name, level)),)
    bench.run()
    assert order[0] == ("irq0", False) and set(order[1:]) == {("0>20", True), ("replace", False)}
    order.clear()
    bench.run(legacy=True)
    assert order[:1] == [("replace", True)] and order[-1] == ("irq0", True)


# State.


def test_reset_is_power_on() -> None:
    """Lines fall, the old timers have theirs back, nothing is armed."""
    bench = Bench()
    bench.one_shot(10, 0, LEVEL)
    bench.one_shot(1000, 2)
    bench.run(legacy=True)
    bench.step(10)
    assert bench.high() == ["irq0"]
    bench.hpet.reset()
    assert bench.high() == [] and not bench.replaced[-1] and bench.clock.next_deadline() is None
    assert bench.hpet.save() == Bench().hpet.save()


def test_restored_it_goes_on() -> None:
    """Counter, lines, legacy replacement and the next match are those of the saved one."""
    bench = Bench()
    bench.one_shot(10, 0, LEVEL)
    periodic(bench, 5000, 5000, timer=2)
    bench.run(legacy=True)
    bench.step(7000)
    other = Bench(start_ns=bench.clock.now())
    other.hpet.restore(bench.hpet.save())
    assert other.high() == bench.high() == ["irq0"] and other.replaced == [True]
    bench.changes.clear()
    other.changes.clear()
    bench.step(10_000)
    other.step(10_000)
    assert other.rises() == bench.rises() == [(10_000, "2>20"), (15_000, "2>20")]
    assert other.get(h.COUNTER) == 17_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"since": 5}, "HpetState.since: 5 with configuration 0x0"),
        ({"configuration": 1}, "HpetState.since: None with configuration 0x1"),
        ({"configuration": 4}, "HpetState.configuration: got 0x4"),
        ({"status": 8}, "HpetState.status: got 0x8"),
        ({"timers": []}, "0 entries, want 3"),
    ],
)
def test_a_record_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    """Saved data may come from anywhere."""
    bench = Bench()
    with pytest.raises(StateError, match=message):
        bench.hpet.restore({**bench.hpet.save(), **change})
    plain = bench.hpet.save()
    plain["timers"][1]["configuration"] = 1
    with pytest.raises(StateError, match="0x1 has bits that cannot be written"):
        bench.hpet.restore(plain)


def test_routes_that_cannot_be_told_are_refused() -> None:
    """The capabilities have 32 bits for lines, and there are three timers."""
    line = Pin().line()
    for routes in ([{}] * 2, [{}, {}, {32: line}]):
        with pytest.raises(ValueError, match="HPET routes"):
            Hpet(SteppedClock(), routes, (line, line), replace=lambda _: None, fsb=lambda *_: None)


class Ticking:
    """One timer that ticks: the specification's words done at each count. The counter starts at 0, running."""

    def __init__(self) -> None:
        self.counter, self.comparator, self.last = 0, ONES, 0
        self.periodic = self.mode32 = self.val_set = False
        self.matches = 0

    @property
    def mask(self) -> int:
        return 0xFFFFFFFF if self.mode32 else ONES

    def configure(self, value: int) -> None:
        self.periodic, self.val_set = bool(value & PERIODIC), bool(value & VAL_SET)
        changed, self.mode32 = self.mode32 != bool(value & MODE32), bool(value & MODE32)
        if changed:
            self.comparator &= self.mask
            self.last &= self.mask
            self.compare()

    def write(self, value: int) -> None:
        self.last = value & self.mask
        if not self.periodic or self.val_set:
            self.comparator = self.last
            self.compare()
        self.val_set = False

    def compare(self) -> None:
        if self.counter & self.mask == self.comparator:
            self.matches += 1
            if self.periodic:
                self.comparator = self.comparator + self.last & self.mask

    def tick(self) -> None:
        self.counter = self.counter + 1 & ONES
        self.compare()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(1, 40)),
            st.tuples(st.just("compare"), st.integers(0, 60)),
            st.tuples(st.just("ahead"), st.integers(0, 20)),
            st.tuples(
                st.just("configure"), st.sampled_from([0, PERIODIC, PERIODIC | VAL_SET, MODE32, PERIODIC | MODE32])
            ),
            st.tuples(st.just("configure"), st.just(PERIODIC | VAL_SET | MODE32)),
        ),
        max_size=25,
    ),
    st.sampled_from([0, (1 << 32) - 50, ONES - 50]),
)
def test_the_lazy_timer_equals_a_ticking_one(operations: list[tuple[str, int]], start: int) -> None:
    """Any modes, comparators and times, also over the wraps: matches and comparator are those of one that ticks."""
    bench, model = Bench(), Ticking()
    bench.put(h.COUNTER, start)
    model.counter = start
    bench.put(CFG, ENABLE | LEVEL | ROUTE, 0)
    bench.run()
    if start == ONES:
        model.compare()
    for what, number in operations:
        before = model.matches
        bench.put(h.STATUS, 1)
        if what == "step":
            for _ in range(number):
                model.tick()
            bench.step(number)
        elif what == "configure":
            bench.put(CFG, ENABLE | LEVEL | ROUTE | number, 0)
            model.configure(number)
        else:
            value = number if what == "compare" else model.counter + number & ONES
            bench.put(CMP, value, 0)
            model.write(value)
        assert bench.get(CMP, 0) == model.comparator, f"comparator after {what} {number}"
        assert bench.get(h.STATUS) & 1 == (model.matches > before), f"status after {what} {number}"


REGISTERS = [0x000, 0x010, 0x020, 0x0F0, *(0x100 + 0x20 * timer + at for timer in range(3) for at in (0, 8, 16))]
ACCESS = st.tuples(
    st.sampled_from(REGISTERS) | st.integers(0, 0x3FF),
    st.sampled_from([1, 2, 4, 8]),
    st.none() | st.sampled_from([0, 1, 2, 3, 0x2804, 0x2804 | 0x4A, 0x6806, 0x284E, 1000, ONES]) | st.integers(0, ONES),
)
STEP = st.tuples(st.just(-1), st.just(1), st.integers(0, 100_000) | st.integers(0, 1 << 40))


@settings(deadline=None)
@given(st.lists(st.one_of(ACCESS, ACCESS, STEP), max_size=40))
def test_fuzz(steps: list[tuple[int, int, int | None]]) -> None:
    """Whatever a guest does: values fit, no time loops, and a restored HPET has the same state and lines."""
    bench = Bench()
    for offset, size, value in steps:
        if offset == -1:
            assert value is not None
            bench.clock.advance(min(value, 10_000_000))
            bench.clock._now += value
        elif value is None:
            assert 0 <= bench.hpet.read(offset, size) < 1 << 8 * size
        else:
            bench.hpet.write(offset, size, value & (1 << 8 * size) - 1)
    bench.clock.run_due()
    saved = bench.hpet.save()
    other = Bench(start_ns=bench.clock.now())
    other.hpet.restore(saved)
    assert other.hpet.save() == saved
    assert other.high() == bench.high()
    assert other.replaced[-1] == (saved["configuration"] == 3)
