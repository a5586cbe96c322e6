"""The MC146818A by its data sheet, on a stepped clock: one test a statement."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.clock import SteppedClock
from iobus.devices.rtc import Rtc
from iobus.irq import Pin

NS = 1_000_000_000
US = 1_000
PF, AF, UF, IRQF = 0x40, 0x20, 0x10, 0x80


class Bench:
    """An RTC on a stepped clock, started at a wall-clock time, and a guest's words."""

    def __init__(self, when: str = "2024-02-28 13:59:58", ns: int = 0) -> None:
        self.clock = SteppedClock()
        self.rises: list[int] = []
        pin = Pin(lambda level: self.rises.append(self.clock.now()) if level else None)
        self.line = pin.line("rtc")
        start = int(datetime.datetime.fromisoformat(when).replace(tzinfo=datetime.UTC).timestamp())
        self.rtc = Rtc(self.clock, self.line, wall_ns=lambda: start * NS + ns)

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def put(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def time(self) -> str:
        """The registers as a guest shows them, in BCD and 24 hours."""
        return "{:02x}{:02x}-{:02x}-{:02x} {:02x}:{:02x}:{:02x} day {:x}".format(
            *(self.get(index) for index in (0x32, 9, 8, 7, 4, 2, 0, 6))
        )

    def step(self, seconds: float = 0, *, us: int = 0) -> None:
        self.clock.advance(int(seconds * NS) + us * US)


def test_starts_at_the_wall_clock_in_bcd_and_24_hours() -> None:
    """The time is UTC; register A says 32.768 kHz and 1024 Hz, B 24-hour BCD, D that the battery is good."""
    bench = Bench("2024-02-28 13:59:58")
    assert bench.time() == "2024-02-28 13:59:58 day 4"
    assert [bench.get(index) for index in (0xA, 0xB, 0xC, 0xD)] == [0x26, 0x02, 0x00, 0x80]


def test_updates_once_a_second_at_the_wall_clocks_second() -> None:
    """The registers change when the host's second does."""
    bench = Bench("2024-02-28 13:59:58", ns=300_000_000)
    bench.step(us=699_999)
    assert bench.get(0) == 0x58
    bench.step(us=1)
    assert bench.get(0) == 0x59
    bench.step(1)
    assert bench.time() == "2024-02-28 14:00:00 day 4"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2023-02-28 23:59:59", "2023-03-01 00:00:00 day 4"),
        ("2024-02-28 23:59:59", "2024-02-29 00:00:00 day 5"),
        ("2024-04-30 23:59:59", "2024-05-01 00:00:00 day 4"),
        ("1999-12-31 23:59:59", "2000-01-01 00:00:00 day 7"),
        ("2000-02-28 23:59:59", "2000-02-29 00:00:00 day 3"),
        ("2022-12-31 23:59:59", "2023-01-01 00:00:00 day 1"),
    ],
)
def test_calendar_carries(before: str, after: str) -> None:
    """Month lengths and leap years are compensated; the century byte follows the year; Sunday is day 1."""
    bench = Bench(before)
    bench.step(1)
    assert bench.time() == after


@given(st.integers(0, 4_000_000_000), st.integers(0, 50_000_000))
def test_time_far_ahead_equals_the_calendar(start: int, seconds: int) -> None:
    """However long nobody looked, the time is right (between 1901 and 2099 every fourth year is a leap year)."""
    moment = datetime.datetime.fromtimestamp(start, datetime.UTC)
    bench = Bench(moment.strftime("%Y-%m-%d %H:%M:%S"))
    bench.step(seconds)
    later = moment + datetime.timedelta(seconds=seconds)
    assert bench.time() == f"{later:%Y-%m-%d %H:%M:%S} day {later.isoweekday() % 7 + 1}"


def test_uip_is_high_from_244_us_before_the_update_cycle_to_its_end() -> None:
    """tBUC = 244 us and tUC = 1984 us: a program that reads UIP = 0 has at least 244 us."""
    bench = Bench()
    bench.step(us=1_000_000 - 2_228 - 1)
    assert not bench.get(0xA) & 0x80
    bench.step(us=1)
    assert bench.get(0xA) & 0x80
    bench.step(us=2_227)
    assert bench.get(0xA) & 0x80 and bench.get(0) == 0x58
    bench.step(us=1)
    assert not bench.get(0xA) & 0x80 and bench.get(0) == 0x59


def test_set_halts_updates_and_clears_uip_and_uie() -> None:
    """SET = 1 aborts an update cycle in progress, inhibits others and clears UIE; the divider goes on."""
    bench = Bench()
    bench.put(0xB, 0x12)
    bench.step(us=999_000)
    assert bench.get(0xA) & 0x80
    bench.put(0xB, 0x92)
    assert not bench.get(0xA) & 0x80 and bench.get(0xB) == 0x82
    bench.step(5)
    assert bench.get(0) == 0x58 and bench.get(0xC) == PF, "RS is 1024 Hz: the tap goes on"
    bench.put(0, 0x10)
    bench.put(0xB, 0x02)
    bench.step(us=1_000)
    assert bench.get(0) == 0x10, "the update cycle that SET kept from beginning"
    bench.step(us=999_999)
    assert bench.get(0) == 0x10
    bench.step(us=1)
    assert bench.get(0) == 0x11


def test_an_aborted_update_is_lost() -> None:
    """SET cut the update cycle short: it does not happen though SET was 0 again before its end."""
    bench = Bench()
    bench.step(us=999_000)
    bench.put(0xB, 0x82)
    bench.put(0xB, 0x02)
    assert not bench.get(0xA) & 0x80
    bench.step(us=1_000)
    assert bench.get(0) == 0x58 and not bench.get(0xC) & UF
    bench.step(us=1_000_000 - 1_984 - 100)
    bench.put(0xB, 0x82)
    bench.put(0xB, 0x02)
    assert bench.get(0xA) & 0x80
    bench.step(us=2_084)
    assert bench.get(0) == 0x59, "SET was 0 again before the cycle began"


def test_first_update_begins_half_a_second_after_the_divider_is_released() -> None:
    """DV = 11x holds the divider; when it is removed from reset the first update cycle begins 500 ms later."""
    bench = Bench()
    bench.put(0xA, 0x76)
    bench.step(10)
    assert bench.get(0) == 0x58 and bench.get(0xA) == 0x76
    bench.put(0xA, 0x26)
    bench.step(us=500_000 - 244 - 1)
    assert not bench.get(0xA) & 0x80
    bench.step(us=1)
    assert bench.get(0xA) & 0x80
    bench.step(us=244 + 1_983)
    assert bench.get(0) == 0x58
    bench.step(us=1)
    assert bench.get(0) == 0x59


@pytest.mark.parametrize("rate", range(1, 16))
def test_periodic_interrupt_at_all_rates(rate: int) -> None:
    """256 Hz, 128 Hz, then 8192 Hz halving to 2 Hz; exact over seconds, each cleared by reading C."""
    bench = Bench()
    hz = {1: 256, 2: 128}.get(rate, 65536 >> rate)
    bench.put(0xA, 0x20 | rate)
    bench.put(0xB, 0x42)
    for _ in range(20):
        due = bench.clock.next_deadline()
        assert due is not None
        bench.clock.advance(due - bench.clock.now())
        assert bench.line.level and bench.get(0xC) & (IRQF | PF) == IRQF | PF
        assert not bench.line.level
    gaps = [later - sooner for sooner, later in zip(bench.rises, bench.rises[1:], strict=False)]
    assert all(abs(gap - NS / hz) <= 1 for gap in gaps)
    assert abs(bench.rises[-1] - bench.rises[0] - 19 * NS / hz) <= 1, "no drift"


def test_rate_0_gives_no_periodic_interrupt() -> None:
    """RS = 0: none."""
    bench = Bench()
    bench.put(0xA, 0x20)
    bench.put(0xB, 0x42)
    bench.step(1)
    assert bench.rises == [] and bench.get(0xC) == UF


def test_missed_periods_coalesce() -> None:
    """The line stays up until C is read, and no timer runs meanwhile."""
    bench = Bench()
    bench.put(0xA, 0x23)
    bench.put(0xB, 0x42)
    bench.step(us=900_000)
    assert len(bench.rises) == 1 and bench.clock.next_deadline() is None
    assert bench.get(0xC) == IRQF | PF
    assert bench.get(0xC) == 0x00, "reading C clears all of it"
    bench.step(us=123)
    assert len(bench.rises) == 2


def test_update_ended_interrupt() -> None:
    """UF is set at the end of each update cycle; with UIE it makes IRQF."""
    bench = Bench()
    bench.put(0xB, 0x12)
    bench.step(1)
    assert bench.rises == [NS] and bench.line.level
    assert bench.get(0xC) == IRQF | UF | PF
    bench.step(1)
    assert bench.rises == [NS, 2 * NS]


def test_flags_are_set_without_enables_and_an_enable_finds_them() -> None:
    """PF, AF and UF do not depend on the enables; IRQF = PF.PIE + AF.AIE + UF.UIE."""
    bench = Bench()
    bench.step(1)
    assert not bench.line.level
    bench.put(0xB, 0x12)
    assert bench.line.level
    bench.put(0xB, 0x02)
    assert not bench.line.level
    assert bench.get(0xC) == UF | PF


def test_alarm_at_one_time_of_day() -> None:
    """The alarm occurs at the specified time each day."""
    bench = Bench("2024-02-28 13:59:58")
    for index, value in ((5, 0x14), (3, 0x30), (1, 0x15)):
        bench.put(index, value)
    bench.put(0xB, 0x22)
    first = 2 + 30 * 60 + 15
    bench.step(86_400)
    assert bench.rises == [first * NS]
    assert bench.get(0xC) & (IRQF | AF) == IRQF | AF
    bench.step(86_400)
    assert bench.rises == [first * NS, (first + 86_400) * NS]


def test_alarm_dont_care_values() -> None:
    """C0 to FF in hours: each hour; in hours and minutes: each minute; in all three: each second."""
    for alarm, seconds in (((0xC0, 0x00, 0x05), 3600), ((0xFF, 0xD0, 0x05), 60), ((0xC0, 0xC0, 0xFF), 1)):
        bench = Bench("2024-02-28 13:59:58")
        for index, value in zip((5, 3, 1), alarm, strict=True):
            bench.put(index, value)
        bench.put(0xB, 0x22)
        for _ in range(3):
            bench.step(3600)
            bench.get(0xC)
        first = 1 if seconds == 1 else 7
        assert bench.rises[0] == first * NS
        if seconds == 3600:
            assert bench.rises == [first * NS, (first + 3600) * NS, (first + 7200) * NS]


ALARM_BYTE = st.one_of(st.integers(0, 0x5F), st.integers(0xC0, 0xFF), st.just(0xC0))


@settings(deadline=None)
@given(ALARM_BYTE, ALARM_BYTE, ALARM_BYTE, st.integers(0, 86_399), st.booleans())
def test_next_alarm_equals_a_search(hours: int, minutes: int, seconds: int, start: int, twelve: bool) -> None:
    """The computed alarm is the soonest second whose registers equal the alarm bytes or are don't-cares."""
    bench = Bench(f"2024-02-28 {start // 3600:02}:{start // 60 % 60:02}:{start % 60:02}")
    if twelve:
        bench.put(0xB, 0x00)
        bench.put(4, _hour_12(start // 3600))
    for index, value in ((5, hours), (3, minutes), (1, seconds)):
        bench.put(index, value)
    hour_byte = _hour_12 if twelve else _bcd
    matches = [
        hour * 3600 + minute * 60 + second
        for hour in range(24)
        if hours >= 0xC0 or hour_byte(hour) == hours
        for minute in range(60)
        if minutes >= 0xC0 or _bcd(minute) == minutes
        for second in range(60)
        if seconds >= 0xC0 or _bcd(second) == seconds
    ]
    expected = min(((match - start - 1) % 86_400 + 1 for match in matches), default=None)
    bench.put(0xB, 0x20 if twelve else 0x22)
    assert bench.clock.next_deadline() == (None if expected is None else expected * NS)
    if expected is not None:
        bench.step(expected - 1)
        assert not bench.get(0xC) & AF
        bench.step(1)
        assert bench.get(0xC) & AF


def _bcd(value: int) -> int:
    return int(str(value), 16)


def _hour_12(hour: int) -> int:
    return _bcd(hour % 12 or 12) | (0x80 if hour >= 12 else 0)


def test_binary_mode() -> None:
    """DM = 1: the bytes are binary; the guest writes them anew after it changed DM."""
    bench = Bench()
    bench.put(0xB, 0x86)
    for index, value in ((0, 59), (2, 59), (4, 23), (6, 7), (7, 31), (8, 12), (9, 99), (0x32, 19)):
        bench.put(index, value)
    bench.put(0xB, 0x06)
    bench.step(1)
    assert [bench.get(index) for index in (0, 2, 4, 6, 7, 8, 9, 0x32)] == [0, 0, 0, 1, 1, 1, 0, 20]


def test_twelve_hour_mode() -> None:
    """24/12 = 0: hours are 1 to 12 with PM in bit 7; midnight is 12 AM, noon 12 PM."""
    bench = Bench()
    hours = [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]
    following = [0x01, 0x02, 0x92, 0x81, 0x82, 0x12]
    for hour, then in zip(hours, following, strict=True):
        bench.put(0xB, 0x80)
        for index, value in ((0, 0x59), (2, 0x59), (4, hour), (7, 0x10)):
            bench.put(index, value)
        bench.put(0xB, 0x00)
        bench.step(1)
        assert bench.get(4) == then
        assert bench.get(7) == (0x11 if hour == 0x91 else 0x10)


def test_guest_set_time_goes_on() -> None:
    """A time that the guest writes is advanced like any other."""
    bench = Bench()
    bench.put(0xB, 0x82)
    for index, value in ((0, 0x30), (2, 0x45), (4, 0x06), (7, 0x01), (8, 0x07), (9, 0x31), (0x32, 0x20)):
        bench.put(index, value)
    bench.put(0xB, 0x02)
    bench.step(86_400 + 60)
    assert bench.time() == "2031-07-02 06:46:30 day 5"


def test_read_only_bits() -> None:
    """C and D, bit 7 of A, and the high bit of the seconds are read-only."""
    bench = Bench()
    bench.put(0xA, 0xA6)
    bench.put(0xC, 0xFF)
    bench.put(0xD, 0x00)
    bench.put(0, 0xB0)
    assert [bench.get(index) for index in (0xA, 0xC, 0xD, 0)] == [0x26, 0, 0x80, 0x30]


def test_dse_has_no_function() -> None:
    """Register B's bit 0 is kept; on the last Sunday of April the clock goes on as on any day."""
    bench = Bench("2024-04-28 01:59:59")
    bench.put(0xB, 0x03)
    bench.step(1)
    assert bench.get(0xB) == 0x03 and bench.get(4) == 0x02


def test_ports() -> None:
    """The index port reads all ones and masks NMI with bit 7; a 16-bit write is index, then data."""
    bench = Bench()
    bench.rtc.write(0, 2, 0x5A_C0)
    assert bench.rtc.nmi_masked
    assert bench.rtc.read(0, 2) == 0x5AFF
    bench.rtc.write(0, 1, 0x40)
    assert not bench.rtc.nmi_masked and bench.rtc.read(1, 1) == 0x5A


def test_the_nmi_mask_is_told_when_it_changes() -> None:
    """Once a change, also by a reset, which unmasks; and by a restore, which cannot know what was before."""
    clock, told = SteppedClock(), []
    rtc = Rtc(clock, Pin().line(), mask_nmi=told.append)
    for value in (0x0B, 0x8B, 0x80, 0x00, 0xFF):
        rtc.write(0, 1, value)
    assert told == [True, False, True]
    saved = rtc.save()
    rtc.reset()
    assert told[-1] is False
    rtc.restore(saved)
    assert told[-1] is True


def test_cmos_ram() -> None:
    """114 bytes and the century are the guest's; the machine puts its memory sizes there."""
    bench = Bench()
    bench.rtc.set_cmos(0x15, 0x80)
    assert bench.get(0x15) == 0x80
    for index in range(0x0E, 0x80):
        bench.put(index, index ^ 0xFF)
    assert all(bench.get(index) == index ^ 0xFF for index in range(0x0E, 0x80))
    with pytest.raises(ValueError, match="index 0xd"):
        bench.rtc.set_cmos(0xD, 0)
    with pytest.raises(ValueError, match="0x100"):
        bench.rtc.set_cmos(0x15, 0x100)


def test_reset_keeps_time_and_ram() -> None:
    """RESET clears PIE, AIE, UIE, SQWE, the flags and the line, and affects neither calendar nor RAM."""
    bench = Bench()
    bench.put(0x20, 0x77)
    bench.put(0xB, 0x7A)
    bench.step(1)
    assert bench.line.level
    bench.rtc.reset()
    assert not bench.line.level and bench.clock.next_deadline() is None
    assert bench.get(0xB) == 0x02 and bench.get(0xC) == 0 and bench.get(0x20) == 0x77
    assert bench.time() == "2024-02-28 13:59:59 day 4"


def test_restored_clock_goes_on() -> None:
    """Time, pending interrupt and the next one are those of the saved clock."""
    bench = Bench()
    bench.put(0xB, 0x12)
    bench.step(1.5)
    other = Bench("1970-01-01 00:00:00")
    other.step(1.5)
    other.rtc.restore(bench.rtc.save())
    assert other.line.level
    assert other.get(0xC) & UF and not other.line.level
    other.step(0.5)
    assert other.line.level and other.time() == "2024-02-28 14:00:00 day 4"


INDEX = st.integers(0, 13) | st.just(0x32)
PUT = st.tuples(st.just("put"), INDEX, st.integers(0, 255))
GET = st.tuples(st.just("get"), INDEX, st.just(0))
ACCESS = st.tuples(st.sampled_from(["read", "write"]), st.integers(0, 63), st.integers(0, 2**64 - 1))
STEP = st.tuples(st.just("step"), st.just(0), st.integers(0, 3 * NS) | st.integers(0, 400 * 86_400 * NS))


@settings(deadline=None)
@given(st.lists(st.one_of(PUT, PUT, GET, ACCESS, STEP), max_size=30))
def test_fuzz(steps: list[tuple[str, int, int]]) -> None:
    """Whatever a guest does: values fit, no time loops, and a restored clock has the same state and line."""
    bench = Bench()
    for what, where, value in steps:
        size = 1 << where % 4
        if what == "put":
            bench.put(where, value)
        elif what == "get":
            assert 0 <= bench.get(where) < 256
        elif what == "read":
            assert 0 <= bench.rtc.read(where, size) < 1 << 8 * size
        elif what == "write":
            bench.rtc.write(where, size, value & (1 << 8 * size) - 1)
        else:
            bench.clock.advance(value)
        assert all(0 <= byte < 256 for byte in bench.rtc.state.data)
    bench.clock.run_due()
    saved = bench.rtc.save()
    other = Bench()
    other.clock.advance(bench.clock.now())
    other.rtc.restore(saved)
    assert other.rtc.save() == saved
    assert other.line.level == bench.line.level
    assert other.clock.next_deadline() == bench.clock.next_deadline()
