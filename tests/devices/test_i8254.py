"""The 8254 and port 0x61 by their data sheets: statements of the sheet, and a model that ticks beside them."""

from __future__ import annotations

import pytest
from i8254_rig import HZ, NS, Bench


def test_mode_0_interrupt_on_terminal_count() -> None:
    """For an initial count of N, OUT does not go high until N + 1 CLK pulses after the count is written."""
    bench = Bench()
    bench.control(0x10)
    bench.pit.write(0, 1, 4)
    assert bench.wave(0, 7) == "LLLLLHHH"
    assert bench.rises() == [5]
    bench.pit.write(0, 1, 3)
    assert bench.wave(0, 5) == "LLLLHH", "OUT remains high until a new count is written"


def test_mode_0_first_byte_disables_counting_and_the_second_loads() -> None:
    """Writing the first byte disables counting and sets OUT low; the second allows the load on the next CLK."""
    bench = Bench()
    bench.program(0, 0, 0x0102)
    bench.step(10)
    assert bench.count(0) == 0x102 - 9
    bench.pit.write(0, 1, 5)
    bench.step(100)
    assert bench.count(0) == 0x102 - 9 and not bench.out(0)
    bench.pit.write(0, 1, 0)
    assert bench.wave(0, 7) == "LLLLLLHH"


def test_mode_0_gate_disables_counting_only() -> None:
    """GATE = 0 disables counting and has no effect on OUT; a count written then is loaded on the next CLK."""
    bench = Bench()
    bench.control(0x90)
    bench.pit.write(2, 1, 3)
    bench.step(10)
    assert not bench.pit.output2() and bench.status(2) == 0x10, "loaded: NULL COUNT is 0"
    bench.pit.gate2(True)
    bench.step(2)
    bench.pit.gate2(False)
    bench.step(50)
    assert not bench.pit.output2()
    bench.pit.gate2(True)
    bench.step(1)
    assert bench.pit.output2(), "OUT goes high N pulses of GATE = 1: no pulse is needed to load"
    bench.pit.gate2(False)
    assert bench.pit.output2()


def test_mode_1_one_shot() -> None:
    """OUT goes low on the CLK pulse after the trigger, for N pulses; retriggerable; a new count waits."""
    bench = Bench()
    bench.control(0x92)
    bench.pit.write(2, 1, 3)
    assert bench.wave(2, 3) == "HHHH"
    bench.pit.gate2(True)
    assert bench.wave(2, 6) == "HLLLHHH"
    bench.pit.gate2(False)
    bench.pit.gate2(True)
    assert bench.wave(2, 2) == "HLL"
    bench.pit.gate2(False)
    bench.pit.gate2(True)
    bench.pit.write(2, 1, 2)
    assert bench.wave(2, 3) == "LLLH", "the trigger loads the count that is in CR at the next CLK"


def test_mode_2_rate_generator() -> None:
    """OUT goes low for one pulse when the count has become 1, then the count is reloaded: a period of N."""
    bench = Bench()
    bench.control(0x14)
    bench.pit.write(0, 1, 3)
    assert bench.wave(0, 9) == "HHHLHHLHHL"
    assert bench.rises() == [0, 4, 7]


def test_mode_2_new_count_waits_for_the_end_of_the_period() -> None:
    """Writing a new count while counting does not affect the current period."""
    bench = Bench()
    bench.control(0x14)
    bench.pit.write(0, 1, 4)
    bench.step(2)
    bench.pit.write(0, 1, 2)
    assert bench.status(0) & 0x40, "NULL COUNT until it is loaded"
    assert bench.wave(0, 7) == "HHLHLHLH"
    assert not bench.status(0) & 0x40


def test_mode_2_line_rises_where_a_new_count_is_loaded() -> None:
    """The period that a new count waits for ends with an edge like any other."""
    bench = Bench()
    bench.control(0x14)
    bench.pit.write(0, 1, 4)
    bench.step(2)
    bench.pit.write(0, 1, 3)
    bench.step(10)
    assert bench.rises() == [0, 5, 8, 11]


def test_a_stopped_counter_does_not_load_the_count_that_waits() -> None:
    """GATE low stops the period whose end would load the new count; the next trigger loads it."""
    for mode in (2, 3):
        bench = Bench()
        bench.pit.gate2(True)
        bench.program(2, mode, 8)
        bench.step(3)
        bench.pit.write(2, 1, 4)
        bench.pit.write(2, 1, 0)
        bench.pit.gate2(False)
        bench.step(50)
        assert bench.status(2) & 0x40 and bench.count(2) == (6 if mode == 2 else 4)
        bench.pit.gate2(True)
        bench.step(1)
        assert not bench.status(2) & 0x40 and bench.count(2) == 4


def test_mode_2_gate_stops_and_synchronises() -> None:
    """GATE low sets OUT high at once; its rising edge reloads on the next CLK: OUT low N pulses after it."""
    bench = Bench()
    bench.pit.gate2(True)
    bench.control(0x94)
    bench.pit.write(2, 1, 3)
    bench.step(3)
    assert not bench.pit.output2()
    bench.pit.gate2(False)
    assert bench.pit.output2()
    assert bench.wave(2, 5) == "HHHHHH"
    bench.pit.gate2(True)
    assert bench.wave(2, 4) == "HHHLH"


def test_mode_3_even_and_odd_counts() -> None:
    """Even: high for N/2, low for N/2. Odd: high for (N + 1)/2, low for (N - 1)/2."""
    bench = Bench()
    bench.control(0x16)
    bench.pit.write(0, 1, 4)
    assert bench.wave(0, 9) == "HHHLLHHLLH"
    bench.control(0x16)
    bench.pit.write(0, 1, 5)
    assert bench.wave(0, 11) == "HHHHLLHHHLLH"


def test_mode_3_counts_by_two() -> None:
    """The sheet's waveforms: 4 2 4 2 for a count of 4, and 4 2 0 4 2 4 2 0 for a count of 5."""
    bench = Bench()
    for count, expected in ((4, [4, 2, 4, 2, 4, 2]), (5, [4, 2, 0, 4, 2, 4, 2, 0])):
        bench.program(0, 3, count)
        seen = []
        for _ in expected:
            bench.step(1)
            seen.append(bench.count(0))
        assert seen == expected


def test_mode_3_new_count_is_loaded_at_the_end_of_the_half_cycle() -> None:
    """Otherwise the new count will be loaded at the end of the current half-cycle."""
    bench = Bench()
    bench.control(0x16)
    bench.pit.write(0, 1, 8)
    bench.step(2)
    bench.pit.write(0, 1, 4)
    assert bench.wave(0, 9) == "HHHLLHHLLH"


def test_mode_4_software_triggered_strobe() -> None:
    """OUT strobes low for one CLK, N + 1 pulses after the initial count is written, and only once."""
    bench = Bench()
    bench.program(0, 4, 3)
    assert bench.wave(0, 7) == "HHHHLHHH"
    assert bench.rises() == [0, 5]
    bench.step(3 * 65536)
    assert bench.rises() == []


def test_mode_5_hardware_triggered_strobe() -> None:
    """After a trigger OUT strobes low N + 1 pulses later; retriggerable."""
    bench = Bench()
    bench.control(0x9A)
    bench.pit.write(2, 1, 3)
    assert bench.wave(2, 5) == "HHHHHH"
    bench.pit.gate2(True)
    assert bench.wave(2, 2) == "HHH"
    bench.pit.gate2(False)
    bench.pit.gate2(True)
    assert bench.wave(2, 6) == "HHHHLHH"


def test_count_zero_is_the_largest() -> None:
    """0 is equivalent to 2**16 for binary counting and 10**4 for BCD counting."""
    for bcd, largest in ((False, 65536), (True, 10_000)):
        bench = Bench()
        bench.program(0, 0, 0, bcd=bcd)
        bench.step(largest)
        assert bench.rises() == [] and bench.count(0) == 1
        bench.step(1)
        assert bench.rises() == [largest + 1] and bench.count(0) == 0
        bench.step(1)
        assert bench.count(0) == (0x9999 if bcd else 0xFFFF), "the counter wraps around and goes on"


def test_bcd_counts_in_decades() -> None:
    """A BCD counter holds four decades."""
    bench = Bench()
    bench.program(0, 2, 0x1001, bcd=True)
    bench.step(3)
    assert bench.count(0) == 0x0999
    bench.step(1001)
    assert bench.count(0) == 0x0999


def test_one_byte_counts_zero_the_other_byte() -> None:
    """CR is cleared when the counter is programmed: a one-byte count leaves the other byte zero."""
    bench = Bench()
    bench.program(0, 2, 0x1234)
    bench.control(0x24)
    bench.pit.write(0, 1, 0x12)
    bench.step(1)
    assert bench.pit.read(0, 1) == 0x12 and bench.pit.read(0, 1) == 0x12
    bench.control(0x14)
    bench.pit.write(0, 1, 0x34)
    bench.step(1)
    assert bench.pit.read(0, 1) == 0x34
    bench.step(0x34)
    assert bench.pit.read(0, 1) == 0x34


def test_reads_and_writes_of_a_two_byte_count_may_be_interleaved() -> None:
    """Read least significant byte, write new least, read most, write new most is valid."""
    bench = Bench()
    bench.program(0, 2, 0x1234)
    bench.step(1)
    assert bench.pit.read(0, 1) == 0x34
    bench.pit.write(0, 1, 0x78)
    assert bench.pit.read(0, 1) == 0x12
    bench.pit.write(0, 1, 0x56)
    bench.step(0x1234)
    assert bench.count(0) == 0x5678


def test_counter_latch_holds_until_read_and_ignores_a_second() -> None:
    """The count is that of the first latch command; after it is read the counter is followed again."""
    bench = Bench()
    bench.program(0, 2, 0x1000)
    bench.step(2)
    bench.control(0x00)
    bench.step(5)
    bench.control(0x00)
    assert bench.pit.read(0, 1) == 0xFF
    bench.step(5)
    assert bench.pit.read(0, 1) == 0x0F
    assert bench.pit.read(0, 1) | bench.pit.read(0, 1) << 8 == 0x1000 - 11
    bench.control(0x00)
    bench.control(0x14)
    bench.pit.write(0, 1, 7)
    bench.step(1)
    assert bench.pit.read(0, 1) == 7, "reprogramming releases the latch"


def test_read_back_latches_status_and_count_of_several_counters() -> None:
    """Status comes first whatever was latched first, then the count in one or two reads."""
    bench = Bench()
    bench.program(0, 2, 0x1000)
    bench.program(1, 3, 0x0010, bcd=True)
    bench.step(3)
    bench.control(0xDE)
    bench.control(0xEE)
    bench.step(100)
    assert bench.pit.read(1, 1) == 0x80 | 0x37
    assert bench.pit.read(1, 1) | bench.pit.read(1, 1) << 8 == 0x0006
    assert bench.pit.read(0, 1) == 0x80 | 0x34
    assert bench.pit.read(0, 1) | bench.pit.read(0, 1) << 8 == 0x0FFE


def test_read_back_commands_in_the_sheets_order() -> None:
    """The sheet's example of six: what is latched already stays, what is not is latched; each is read once."""
    bench = Bench()
    for counter in range(3):
        bench.control(counter << 6 | 0x34)
        bench.pit.write(counter, 1, 0x00)
        bench.pit.write(counter, 1, 0x10)
    bench.pit.gate2(True)
    bench.step(2)
    bench.control(0xC2)  # count and status of counter 0
    bench.step(10)
    bench.control(0xE4)  # status of counter 1
    bench.control(0x70 | 0x04)  # programmed anew: its latches are released, and the next command latches it as it is
    bench.control(0xEC)  # status of counters 2 and 1
    bench.control(0xD8)  # count of counter 2
    bench.step(10)
    bench.control(0xC4)  # count and status of counter 1: only the count is new
    bench.control(0xE2)  # status of counter 0: latched already
    assert bench.pit.read(0, 1) == 0xB4
    assert bench.pit.read(0, 1) | bench.pit.read(0, 1) << 8 == 0xFFF
    assert bench.pit.read(1, 1) == 0xC0 | 0x34, "no count yet"
    assert bench.pit.read(2, 1) == 0xB4
    assert bench.pit.read(2, 1) | bench.pit.read(2, 1) << 8 == 0x1000 - 11


def test_status_is_the_control_word_as_written() -> None:
    """D5-D0 are exactly as written in the last control word; NULL COUNT until the load; OUT in D7."""
    bench = Bench()
    bench.control(0x3F)
    assert bench.status(0) == 0xC0 | 0x3F
    bench.pit.write(0, 1, 4)
    bench.pit.write(0, 1, 0)
    assert bench.status(0) == 0xC0 | 0x3F
    bench.step(1)
    assert bench.status(0) == 0x80 | 0x3F


def test_control_register_cannot_be_read() -> None:
    """A1, A0 = 11 with RD is no operation: the bus floats."""
    assert Bench().pit.read(3, 1) == 0xFF


def test_wide_accesses_are_bytes_low_port_first() -> None:
    """A 32-bit write reaches the three counters and the control word; a read is put together the same way."""
    bench = Bench()
    for counter in range(3):
        bench.control(counter << 6 | 0x14)
    bench.pit.gate2(True)
    bench.pit.write(0, 2, 0x2211)
    bench.pit.write(2, 2, 0xD833)
    bench.step(1)
    assert bench.pit.read(0, 4) == 0xFF002211, "counter 2 was latched before its count was loaded"


@pytest.mark.parametrize("mode", [2, 3])
def test_periods_never_drift(mode: int) -> None:
    """Ten hours of 1193182/1193 Hz: each edge is at its pulse, whatever the step."""
    bench = Bench(start_ns=12_345)
    bench.program(0, mode, 1193)
    loaded = bench.pulse + 1
    bench.changes.clear()
    bench.clock.advance(40_000_000)
    assert bench.rises() == [loaded + 1193 * n for n in range(1, 41)]
    bench.clock._now += 36_000 * NS  # nobody ran the timers meanwhile
    bench.clock.run_due()
    assert len(bench.rises()) <= 1, "missed periods coalesce"
    bench.clock.advance(1_000_000)
    (edge,) = bench.rises()
    assert (edge - loaded) % 1193 == 0


def test_a_late_run_makes_one_edge() -> None:
    """However many periods were missed, the line makes one rising edge and the next one is on time."""
    bench = Bench()
    bench.program(0, 2, 2)
    bench.changes.clear()
    bench.clock._now += 1_000_000_000
    bench.clock.run_due()
    assert len(bench.rises()) == 1
    deadline = bench.clock.next_deadline()
    assert deadline is not None and deadline > bench.clock.now()


def test_an_idle_counter_arms_nothing() -> None:
    """Counters 1 and 2 have no line, and a one-shot that is over needs no timer."""
    bench = Bench()
    bench.program(1, 2, 100)
    bench.program(2, 3, 100)
    assert bench.clock.next_deadline() is None
    bench.program(0, 0, 100)
    bench.step(101)
    assert bench.rises() == [101] and bench.clock.next_deadline() is None


def test_port_61_gates_counter_2_and_shows_its_output() -> None:
    """Linux's TSC calibration: GATE2 on, speaker off, mode 0, and bit 5 tells when the time is over."""
    bench = Bench()
    bench.port61.write(0, 1, bench.port61.read(0, 1) & ~0x02 | 0x01)
    latch = HZ // 20
    bench.control(0xB0)
    bench.pit.write(2, 1, latch & 0xFF)
    bench.pit.write(2, 1, latch >> 8)
    bench.step(latch)
    assert not bench.port61.read(0, 1) & 0x20
    bench.step(1)
    assert bench.port61.read(0, 1) & 0x20


def test_port_61_bits() -> None:
    """Bits 3-0 are read and written; 7 and 6 read 0 without errors; 5 and 4 are read-only."""
    bench = Bench()
    bench.port61.write(0, 1, 0xFF)
    assert bench.port61.read(0, 1) == 0x0F
    assert bench.port61.state.control == 0x0F
    bench.port61.reset()
    assert bench.port61.read(0, 1) == 0


def test_refresh_toggles_every_18_pulses() -> None:
    """REF_TOGGLE changes each 15.085 us."""
    bench = Bench()
    bench.clock.advance(15_085)
    assert not bench.port61.read(0, 1) & 0x10
    bench.clock.advance(1)
    assert bench.port61.read(0, 1) & 0x10
    bench.clock.advance(15_086)
    assert not bench.port61.read(0, 1) & 0x10


def test_reset_stops_everything() -> None:
    """At power-on no counter runs and the line is low."""
    bench = Bench()
    bench.program(0, 2, 100)
    assert bench.line.level
    bench.pit.reset()
    assert not bench.line.level and bench.clock.next_deadline() is None
    assert bench.pit.save()["counters"] == Bench().pit.save()["counters"]


def test_restored_counter_goes_on_at_its_pulses() -> None:
    """The line's level and the next edge are those of the saved PIT."""
    bench = Bench()
    bench.program(0, 3, 1000)
    bench.step(1700)
    other = Bench(start_ns=bench.clock.now())
    other.pit.restore(bench.pit.save())
    bench.changes.clear()
    other.changes.clear()
    assert other.line.level == bench.line.level is False
    bench.step(3000)
    other.step(3000)
    assert bench.changes == other.changes != []
