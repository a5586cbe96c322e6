"""The HPET on a stepped clock: periodic timers, levels and their status, messages, legacy replacement.

By the IA-PC HPET Specification 1.0a.
"""

from __future__ import annotations

import pytest
from hpet_rig import CFG, CMP, ENABLE, FSB, FSB_EN, LEVEL, MODE32, ONES, PERIODIC, ROUTE, VAL_SET, Bench, periodic

from iobus.devices import hpet as h
from iobus.devices.hpet import Hpet
from iobus.irq import Pin

# Periodic.


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
