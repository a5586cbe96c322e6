"""The HPET by the IA-PC HPET Specification 1.0a, on a stepped clock: registers, timers, where interrupts go."""

from __future__ import annotations

import pytest
from hpet_rig import CFG, CMP, ENABLE, FSB, FSB_EN, LEVEL, MODE32, ONES, PERIODIC, ROUTE, Bench, periodic

from iobus.clock import SteppedClock
from iobus.devices import hpet as h
from iobus.devices.hpet import Hpet
from iobus.irq import Pin
from iobus.state import StateError

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
