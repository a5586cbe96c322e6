"""The PC's real-time clock, an MC146818A with 128 bytes of CMOS RAM, at an index and a data port.

Stands among the devices: knows its registers, its interrupt line, a clock and, once, the time of day. By the
Motorola MC146818A data sheet; the wiring (index port write-only, NMI mask in its bit 7, DSE without a
function, 32.768 kHz crystal) by the ICH9 data sheet (Intel 316972, "Real Time Clock"). Nothing ticks: each
access first lets the updates and periodic edges that have come since the last one happen, by arithmetic.

The time and alarm bytes are kept as the guest wrote them, as in the chip: changing DM or 24/12 does not
convert them. An impossible time (undefined by the data sheet) is brought into range when it is next carried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from iobus.bus import Device
from iobus.clock import Clock
from iobus.irq import Line
from iobus.state import U8, State, Stateful, Time

SECONDS: Final = 0x00
SECONDS_ALARM: Final = 0x01
MINUTES: Final = 0x02
MINUTES_ALARM: Final = 0x03
HOURS: Final = 0x04
HOURS_ALARM: Final = 0x05
DAY_OF_WEEK: Final = 0x06
DATE: Final = 0x07
MONTH: Final = 0x08
YEAR: Final = 0x09
A: Final = 0x0A
B: Final = 0x0B
C: Final = 0x0C
D: Final = 0x0D
CENTURY: Final = 0x32
"""Not the chip's: a PC's RAM byte that holds the century, carried from the year here."""

# Register A.
UIP: Final = 0x80
DV: Final = 0x70
DV_32768_HZ: Final = 0x20
RS: Final = 0x0F
# Register B.
SET: Final = 0x80
PIE: Final = 0x40
AIE: Final = 0x20
UIE: Final = 0x10
SQWE: Final = 0x08
DM: Final = 0x04
HOURS_24: Final = 0x02
# Register C; the interrupt flags stand where their enables stand in B.
IRQF: Final = 0x80
PF: Final = 0x40
AF: Final = 0x20
UF: Final = 0x10
# Register D.
VRT: Final = 0x80

PM: Final = 0x80
DONT_CARE: Final = 0xC0

NS: Final = 1_000_000_000
HZ: Final = 32_768
UPDATE_NS: Final = 1_984_000
"""How long an update cycle takes."""
UIP_NS: Final = 244_000 + UPDATE_NS
"""UIP is high from 244 us before the update cycle until its end."""
FIRST_UPDATE_NS: Final = NS // 2 + UPDATE_NS
"""From the divider's release to the end of the first update cycle, which begins half a second after it."""
DAY: Final = 86_400


@dataclass
class RtcState(State):
    """The bytes, and where the divider stands. Times are ns of the clock."""

    index: U8 = 0
    """As last written, NMI mask included."""
    data: list[U8] = field(default_factory=lambda: [0] * 128)
    """Registers and RAM; UIP and IRQF are computed."""
    started: Time | None = 0
    """When the divider began to count; None while it is held in reset."""
    settled: Time = 0
    """The time up to which everything has happened."""
    aborted: Time | None = None
    """The number of the update cycle, since `started`, that SET cut short or kept from beginning."""


class Rtc(Stateful, Device):
    """The clock at two ports: index and data.

    It starts at the time `wall_ns` gives (ns since 1970, UTC; asked once), 24-hour and BCD, and goes on
    by `clock`. `reset` is the chip's RESET pin: the battery keeps the time, the modes and the RAM.
    `mask_nmi` is called with each change of the NMI mask, bit 7 of the index port.
    """

    name = "rtc"
    length = 2
    state: RtcState

    def __init__(
        self,
        clock: Clock,
        irq: Line,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        mask_nmi: Callable[[bool], object] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._irq = irq
        self._mask_nmi = mask_nmi
        self._timer = clock.timer(self._on_timer, "rtc")
        now = clock.now()
        seconds, ns = divmod(wall_ns(), NS)
        # The divider's phase such that an update ends at each full second of the wall clock.
        self.state = RtcState(started=now - ns - FIRST_UPDATE_NS, settled=now)
        data = self.state.data
        data[A], data[B], data[D] = DV_32768_HZ | 6, HOURS_24, VRT
        moment = time.gmtime(seconds)
        for index, value in (
            (SECONDS, min(moment.tm_sec, 59)),
            (MINUTES, moment.tm_min),
            (DAY_OF_WEEK, (moment.tm_wday + 1) % 7 + 1),  # Sunday is 1; tm_wday's Monday is 0
            (DATE, moment.tm_mday),
            (MONTH, moment.tm_mon),
            (YEAR, moment.tm_year % 100),
            (CENTURY, moment.tm_year // 100),
        ):
            data[index] = self._encode(value)
        data[HOURS] = self._encode_hour(moment.tm_hour)

    @property
    def nmi_masked(self) -> bool:
        """Whether the guest masks the CPU's NMI, by bit 7 of the index port."""
        return bool(self.state.index & 0x80)

    def set_cmos(self, index: int, value: int) -> None:
        """Put `value` in byte `index` (0x0E-0x7F) of the RAM, as firmware leaves it for the guest."""
        if not D < index < 128:
            raise ValueError(f"CMOS index {index:#x}: the RAM is 0xe to 0x7f; the guest sets the clock's registers")
        if not 0 <= value <= 0xFF:
            raise ValueError(f"CMOS byte {index:#x}: {value:#x} does not fit in a byte")
        self.state.data[index] = value

    def read(self, offset: int, size: int) -> int:
        """Read the indexed byte at the data port; the index port reads all ones."""
        if size > 1:
            return int.from_bytes(bytes(self.read(offset + n, 1) for n in range(size)), "little")
        if not offset & 1:
            return 0xFF
        state = self.state
        index = state.index & 0x7F
        now = self._settle()
        if index == A:
            return state.data[A] | (UIP if self._updating(now) else 0)
        if index == C:
            value = self._flags()
            state.data[C] = 0
            self._follow()
            return value
        return state.data[index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the index, or write the indexed byte. C, D, UIP and the high bit of the seconds are read-only."""
        if size > 1:
            for n in range(size):
                self.write(offset + n, 1, value >> 8 * n & 0xFF)
            return
        state = self.state
        if not offset & 1:
            changed, state.index = state.index ^ value, value
            if changed & 0x80:
                self._mask_nmi(self.nmi_masked)
            return
        index = state.index & 0x7F
        now = self._settle()
        if index == A:
            self._write_a(now, value)
        elif index == B:
            self._write_b(now, value)
        elif index not in (C, D):
            state.data[index] = value & 0x7F if index == SECONDS else value
        if index <= B:
            self._follow()

    def reset(self) -> None:
        """The RESET pin: clears PIE, AIE, UIE, SQWE and the flags, and releases the line; the NMI mask too."""
        self._settle()
        state = self.state
        state.index = 0
        state.data[B] &= ~(PIE | AIE | UIE | SQWE)
        state.data[C] = 0
        self.restored()

    def restored(self) -> None:
        """Drive the line, mask NMI and wait for the next interrupt as the state says."""
        self._mask_nmi(self.nmi_masked)
        self._follow()

    # Registers.

    def _write_a(self, now: int, value: int) -> None:
        state = self.state
        state.data[A] = value & ~UIP
        if value & DV != DV_32768_HZ:
            # Held in reset; or set for another crystal or for test, which this crystal does not drive.
            state.started = None
        elif state.started is None:
            state.started = now
            state.aborted = None

    def _write_b(self, now: int, value: int) -> None:
        state = self.state
        inhibited = (state.data[B] | value) & SET
        if inhibited and state.started is not None and self._next_update(now) - now <= UPDATE_NS:
            state.aborted = self._updates(now)
        state.data[B] = value & ~UIE if value & SET else value

    def _flags(self) -> int:
        """Register C: the flags, and IRQF where an enabled one is set."""
        flags = self.state.data[C]
        return flags | IRQF if flags & self.state.data[B] & (PIE | AIE | UIE) else flags

    def _updating(self, now: int) -> bool:
        """UIP: an update cycle is under way, or begins within 244 us."""
        state = self.state
        if state.started is None or state.data[B] & SET or self._next_update(now) - now > UIP_NS:
            return False
        return state.aborted != self._updates(now)

    # What time does.

    def _updates(self, now: int) -> int:
        """How many update cycles have ended since the divider started: the number of the one that comes."""
        assert self.state.started is not None
        return (now - self.state.started - FIRST_UPDATE_NS) // NS + 1

    def _next_update(self, now: int) -> int:
        """When the next update cycle ends."""
        assert self.state.started is not None
        return self.state.started + FIRST_UPDATE_NS + self._updates(now) * NS

    def _settle(self) -> int:
        """Let what has come since the last time happen; return the time now."""
        state, now = self.state, self._clock.now()
        if state.started is not None:
            cycles = self._period()
            if cycles:
                before, after = ((at - state.started) * HZ // NS // cycles for at in (state.settled, now))
                if after > before:
                    state.data[C] |= PF
            first, following = self._updates(state.settled), self._updates(now)
            count = following - first
            if count and not state.data[B] & SET:
                if state.aborted is not None and first <= state.aborted < following:
                    count -= 1
                if count:
                    self._update(count)
        state.settled = now
        return now

    def _period(self) -> int:
        """The periodic interrupt's period in cycles of 32.768 kHz; 0 for none. Rates 1 and 2 repeat 8 and 9."""
        rate = self.state.data[A] & RS
        return 1 << (rate + 6 if rate < 3 else rate - 1) if rate else 0

    def _update(self, count: int) -> None:
        """Run `count` update cycles: advance the time by as many seconds, compare the alarm in each."""
        data = self.state.data
        alarm = self._seconds_to_alarm()
        data[C] |= UF if alarm is None or alarm > count else UF | AF
        before = self._time_of_day()
        total = before + count
        data[SECONDS] = self._encode(total % 60)
        if total // 60 > before // 60:
            data[MINUTES] = self._encode(total // 60 % 60)
        if total // 3600 > before // 3600:
            data[HOURS] = self._encode_hour(total // 3600 % 24)
        if total >= DAY:
            self._advance_days(total // DAY)

    def _advance_days(self, count: int) -> None:
        data, decode, encode = self.state.data, self._decode, self._encode
        data[DAY_OF_WEEK] = encode((decode(data[DAY_OF_WEEK]) - 1 + count) % 7 + 1)
        day, month, year = decode(data[DATE]), (decode(data[MONTH]) - 1) % 12 + 1, decode(data[YEAR]) % 100
        centuries = 0
        for _ in range(count):
            day += 1
            # The chip knows two digits of the year: every fourth is a leap year.
            length = 28 + (year % 4 == 0) if month == 2 else 30 if month in (4, 6, 9, 11) else 31
            if day > length:
                day = 1
                month = month % 12 + 1
                if month == 1:
                    centuries += (year + 1) // 100
                    year = (year + 1) % 100
        data[DATE], data[MONTH], data[YEAR] = encode(day), encode(month), encode(year)
        if centuries:
            data[CENTURY] = encode((decode(data[CENTURY]) + centuries) % 100)

    def _seconds_to_alarm(self) -> int | None:
        """In how many updates, one or more, the time will match the alarm; None where it never can."""
        data = self.state.data

        def matching(index: int, values: int, encode: Callable[[int], int]) -> list[int]:
            alarm = data[index]
            return [value for value in range(values) if alarm >= DONT_CARE or encode(value) == alarm]

        hours = matching(HOURS_ALARM, 24, self._encode_hour)
        minutes = matching(MINUTES_ALARM, 60, self._encode)
        seconds = matching(SECONDS_ALARM, 60, self._encode)
        if not (hours and minutes and seconds):
            return None
        start = self._time_of_day() + 1
        # The first match of today, else tomorrow's first; at each place only the least fit can be it.
        hour, rest = divmod(start % DAY, 3600)
        minute, second = divmod(rest, 60)
        later_s = [value for value in seconds if value >= second]
        later_m = [value for value in minutes if value > minute]
        later_h = [value for value in hours if value > hour]
        if hour in hours and minute in minutes and later_s:
            match = hour * 3600 + minute * 60 + later_s[0]
        elif hour in hours and later_m:
            match = hour * 3600 + later_m[0] * 60 + seconds[0]
        else:
            match = (later_h or hours)[0] * 3600 + minutes[0] * 60 + seconds[0]
        return (match - start) % DAY + 1

    # The line and the timer.

    def _follow(self) -> None:
        """Drive the line by IRQF; while it is low, wait for what could raise it."""
        state = self.state
        raised = bool(self._flags() & IRQF)
        self._irq.set(raised)
        deadline = None if raised or state.started is None else self._next_interrupt(state.settled)
        if deadline is None:
            self._timer.cancel()
        elif deadline != self._timer.deadline:
            self._timer.arm(deadline)

    def _next_interrupt(self, now: int) -> int | None:
        state = self.state
        assert state.started is not None
        enabled, deadlines = state.data[B], []
        if enabled & PIE and (cycles := self._period()):
            edge = ((now - state.started) * HZ // NS // cycles + 1) * cycles
            deadlines.append(state.started + -(-edge * NS // HZ))
        if not enabled & SET:
            if enabled & UIE:
                deadlines.append(self._next_update(now))
            if enabled & AIE and (alarm := self._seconds_to_alarm()) is not None:
                deadlines.append(self._next_update(now) + (alarm - 1) * NS)
        return min(deadlines, default=None)

    def _on_timer(self) -> None:
        self._settle()
        self._follow()

    # Formats: DM and 24/12 of register B.

    def _encode(self, value: int) -> int:
        return value if self.state.data[B] & DM else value // 10 << 4 | value % 10

    def _decode(self, raw: int) -> int:
        return raw if self.state.data[B] & DM else (raw >> 4) * 10 + (raw & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.state.data[B] & HOURS_24:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (PM if hour >= 12 else 0)

    def _time_of_day(self) -> int:
        """The time that the registers hold, in seconds since midnight."""
        data = self.state.data
        if data[B] & HOURS_24:
            hour = self._decode(data[HOURS]) % 24
        else:
            hour = self._decode(data[HOURS] & ~PM) % 12 + (12 if data[HOURS] & PM else 0)
        return hour * 3600 + self._decode(data[MINUTES]) % 60 * 60 + self._decode(data[SECONDS]) % 60
