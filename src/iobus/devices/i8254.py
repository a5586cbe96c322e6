"""The 8254 programmable interval timer: three counters at 1,193,182 Hz.

Stands among the devices: knows its registers, a clock and the line that counter 0 drives. By the 8254 data
sheet (Intel 231164). Nothing ticks: a counter remembers at which CLK pulse it was loaded and with what, and
its count and OUT are computed when they are asked for. A pulse's number is integer arithmetic on the
clock's nanoseconds, so nothing drifts. "At pulse t" below means: after pulse t, before pulse t + 1.

Counters 0 and 1 have their GATE tied high; counter 2's GATE and OUT go to port 0x61. What the data sheet
leaves open: at power-on no counter runs and all OUT are low; the illegal count of 1 in modes 2 and 3
leaves OUT high; BCD digits above 9 carry into the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.bus import Device
from iobus.clock import Clock
from iobus.irq import Line
from iobus.state import U8, U16, Range, State, StateError, Stateful, Time

HZ: Final = 1_193_182
NS: Final = 1_000_000_000
CONTROL: Final = 3
"""The control word register's port; ports 0-2 are the counters'."""
POWER_ON_CONTROL: Final = 0x30


@dataclass
class CounterState(State):
    """One counter. Pulse numbers count CLK since the clock was made."""

    control: Annotated[int, Range(0, 0x3F)] = POWER_ON_CONTROL
    """RW, M and BCD as last written: bits 5-0 of the control word."""
    cr: U16 = 0
    """The count register: what is loaded next, as written."""
    low: U8 | None = None
    """The first byte of a two-byte count whose second has not come."""
    written: bool = False
    """Whether a count has come since the control word."""
    null: bool = True
    """NULL COUNT: `cr` has not been loaded."""
    gate: bool = True
    initial: Annotated[int, Range(0, 0x10000)] = 0
    """The count last loaded into the counting element, 1-65536; 0 when none was since the control word."""
    origin: Time = 0
    """The pulse that loaded `initial` (in mode 3, that began or would have begun its high half)."""
    frozen: Time | None = None
    """How many pulses past `origin` the counting stands still; None while it goes on."""
    load_at: Time | None = None
    """The pulse that will load `cr`."""
    at_reload: bool = False
    """Whether `load_at` is where the counter reloads by itself: a gate that stops it prevents that."""
    read_high: bool = False
    """Whether the next read of a two-byte count gives the high byte."""
    count_latch: U16 | None = None
    status_latch: U8 | None = None

    def check(self) -> None:
        if self.at_reload and not self.initial:
            raise StateError("CounterState.at_reload: a counter that has no count does not reload by itself")


@dataclass
class PitState(State):
    """The three counters and what counter 0 has told its line."""

    counters: list[CounterState] = field(
        default_factory=lambda: [CounterState(), CounterState(), CounterState(gate=False)]
    )
    seen: Time = 0
    """The pulse up to which the line has followed counter 0's OUT."""
    output: bool = False
    """The level that counter 0 drives its line to."""


class Counter:
    """What one counter does. The caller lets `load_due` pass before it asks or changes anything."""

    __slots__ = ("state",)

    def __init__(self, state: CounterState) -> None:
        self.state = state

    @property
    def mode(self) -> int:
        """0-5; M2 is a don't-care for modes 2 and 3."""
        mode = self.state.control >> 1 & 7
        return mode & 3 if mode > 5 else mode

    def load_due(self, pulse: int) -> None:
        """Load the count where the pulse for it has come."""
        state = self.state
        at = state.load_at
        if at is None or at > pulse:
            return
        mode, count = self.mode, _count(state.cr, state.control & 1)
        # A square wave's new count may begin with the low half: date its high half back.
        begins_low = mode == 3 and state.at_reload and (at - state.origin) % state.initial == (state.initial + 1) // 2
        state.origin = at - (count + 1) // 2 if begins_low else at
        state.initial = count
        stopped = mode in (0, 2, 3, 4) and not state.gate
        state.frozen = 0 if stopped or (mode == 0 and state.low is not None) else None
        state.load_at = None
        state.at_reload = state.null = False

    def value(self, pulse: int) -> int:
        """The counting element at `pulse`, as the 16 bits that a read gives."""
        state = self.state
        count, mode, bcd = state.initial, self.mode, state.control & 1
        if not count:
            return 0
        elapsed = pulse - state.origin if state.frozen is None else state.frozen
        if mode == 2:
            left = count - elapsed % count
        elif mode == 3:
            into, half = elapsed % count, (count + 1) // 2
            left = (count & ~1) - 2 * (into if into < half else into - half)
        else:
            left = count - elapsed
        return _to_bcd(left % 10_000) if bcd else left & 0xFFFF

    def output(self, pulse: int) -> bool:
        """OUT at `pulse`."""
        state = self.state
        count, mode = state.initial, self.mode
        if mode == 0:
            # A count that is being written, or not loaded yet, holds OUT low.
            if state.null or state.low is not None or not count:
                return False
        elif not count:
            return True
        elapsed = pulse - state.origin if state.frozen is None else state.frozen
        if mode < 2:
            return elapsed >= count
        if mode > 3:
            return elapsed != count
        if state.frozen is not None or count == 1:
            return True
        into = elapsed % count
        return into != count - 1 if mode == 2 else into < (count + 1) // 2

    def rose(self, since: int, until: int) -> bool:
        """Whether OUT had a rising edge after pulse `since`, up to and at `until`; no load lies between."""
        state = self.state
        count, mode = state.initial, self.mode
        if not count or state.frozen is not None or (mode == 0 and (state.null or state.low is not None)):
            return False
        since, until = since - state.origin, until - state.origin
        if mode in (2, 3):
            return count > 1 and until // count > since // count
        return since < count + (mode > 3) <= until

    def next_event(self, pulse: int) -> int | None:
        """The first pulse after `pulse` with a load, a rising edge of OUT, or mode 3's falling one."""
        state = self.state
        count, mode, event = state.initial, self.mode, None
        if count and state.frozen is None:
            elapsed = pulse - state.origin
            if mode in (2, 3):
                if count > 1:
                    half = (count + 1) // 2
                    into = elapsed % count
                    event = pulse - into + (half if mode == 3 and into < half else count)
            elif elapsed < count + (mode > 3):
                event = state.origin + count + (mode > 3)
        if state.load_at is not None and (event is None or state.load_at < event):
            return state.load_at
        return event

    def program(self, control: int) -> None:
        """Take a control word for this counter: all but the gate starts anew."""
        fresh = CounterState(control=control & 0x3F, gate=self.state.gate)
        for name, value in vars(fresh).items():
            setattr(self.state, name, value)

    def write(self, pulse: int, value: int) -> None:
        """Take a byte of the count."""
        state = self.state
        mode, form = self.mode, state.control >> 4
        if form == 3 and state.low is None:
            state.low = value
            if mode == 0 and state.initial and state.frozen is None:  # the first byte disables counting
                state.frozen = pulse - state.origin
            return
        if form == 3:
            assert state.low is not None
            state.cr, state.low = state.low | value << 8, None
        else:
            state.cr = value << 8 if form == 2 else value
        state.written = state.null = True
        if mode in (0, 4):
            state.load_at = pulse + 1
        elif mode in (2, 3) and state.load_at is None:
            if not state.initial:
                state.load_at = pulse + 1
            elif state.frozen is None:
                state.load_at, state.at_reload = self._reload_after(pulse), True

    def read(self, pulse: int) -> int:
        """Give a byte: latched status first, then the latched count, else the count as it is."""
        state = self.state
        if state.status_latch is not None:
            value, state.status_latch = state.status_latch, None
            return value
        value = self.value(pulse) if state.count_latch is None else state.count_latch
        form = state.control >> 4
        if form == 3 and not state.read_high:
            state.read_high = True
            return value & 0xFF
        state.read_high = False
        state.count_latch = None
        return value >> 8 if form > 1 else value & 0xFF

    def latch_count(self, pulse: int) -> None:
        """Hold the count for the next reads; a held one stays."""
        if self.state.count_latch is None:
            self.state.count_latch = self.value(pulse)

    def latch_status(self, pulse: int) -> None:
        """Hold the status byte for the next read; a held one stays."""
        state = self.state
        if state.status_latch is None:
            state.status_latch = self.output(pulse) << 7 | state.null << 6 | state.control

    def set_gate(self, pulse: int, level: bool) -> None:
        """Drive GATE: a level in modes 0, 2, 3 and 4, a trigger by its rising edge in 1, 2, 3 and 5."""
        state = self.state
        if level == state.gate:
            return
        state.gate = level
        mode = self.mode
        if level and mode in (0, 4):
            if state.frozen is not None and not (mode == 0 and state.low is not None):
                state.origin, state.frozen = pulse - state.frozen, None
        elif level:
            if state.written:
                state.load_at, state.at_reload = pulse + 1, False
        elif mode in (0, 2, 3, 4):
            if state.initial and state.frozen is None:
                state.frozen = pulse - state.origin
            if state.at_reload:
                state.load_at, state.at_reload = None, False

    def _reload_after(self, pulse: int) -> int:
        """The end of mode 2's current period, or of mode 3's current half."""
        count = self.state.initial
        into, half = (pulse - self.state.origin) % count, (count + 1) // 2
        return pulse - into + (half if self.mode == 3 and into < half else count)


class Pit(Stateful, Device):
    """The 8254 at four ports. `irq` follows counter 0's OUT."""

    name = "pit"
    length = 4
    state: PitState

    def __init__(self, clock: Clock, irq: Line) -> None:
        self._clock = clock
        self._irq = irq
        self._timer = clock.timer(self._on_timer, "pit")
        self.state = PitState(seen=self._pulse())
        self._counters = [Counter(state) for state in self.state.counters]

    def read(self, offset: int, size: int) -> int:
        """Read a counter; the control word register cannot be read and leaves the bus floating."""
        if size > 1:
            return int.from_bytes(bytes(self.read(offset + n, 1) for n in range(size)), "little")
        port = offset & 3
        if port == CONTROL:
            return 0xFF
        pulse = self._pulse()
        return self._counter(port, pulse).read(pulse)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a counter's count, or a control word."""
        if size > 1:
            for n in range(size):
                self.write(offset + n, 1, value >> 8 * n & 0xFF)
            return
        port, pulse = offset & 3, self._pulse()
        if port != CONTROL:
            self._counter(port, pulse).write(pulse, value)
        elif value >> 6 == 3:
            self._read_back(pulse, value)
            return
        else:
            port = value >> 6
            counter = self._counter(port, pulse)
            if not value & 0x30:
                counter.latch_count(pulse)
                return
            counter.program(value)
        if port == 0:
            self._drive(pulse)
            self._arm()

    def gate2(self, level: bool) -> None:
        """Drive counter 2's GATE."""
        pulse = self._pulse()
        self._counter(2, pulse).set_gate(pulse, level)

    def output2(self) -> bool:
        """Counter 2's OUT."""
        pulse = self._pulse()
        return self._counter(2, pulse).output(pulse)

    def reset(self) -> None:
        """Return to the power-on state: no counter runs."""
        self.state = PitState(seen=self._pulse())
        self._counters = [Counter(state) for state in self.state.counters]
        self._irq.set(False)
        self._timer.cancel()

    def restored(self) -> None:
        """Drive the line as it was and wait for counter 0's next edge."""
        self._counters = [Counter(state) for state in self.state.counters]
        self._irq.set(self.state.output)
        self._arm()

    def _pulse(self) -> int:
        return self._clock.now() * HZ // NS

    def _counter(self, which: int, pulse: int) -> Counter:
        """The counter, brought up to `pulse`."""
        counter = self._counters[which]
        load_at = counter.state.load_at
        if load_at is not None and load_at <= pulse:
            if which == 0:  # the line must see what OUT did before the load, and at it
                self._drive(load_at - 1)
                counter.load_due(load_at)
                self._set_line(load_at)
            else:
                counter.load_due(pulse)
        if which == 0:
            self._drive(pulse)
        return counter

    def _read_back(self, pulse: int, command: int) -> None:
        for which in range(3):
            if command >> which + 1 & 1:
                counter = self._counter(which, pulse)
                if not command & 0x20:
                    counter.latch_count(pulse)
                if not command & 0x10:
                    counter.latch_status(pulse)

    def _drive(self, pulse: int) -> None:
        """Let the line follow OUT up to `pulse`; however many edges were missed, they make one."""
        if self._counters[0].rose(self.state.seen, pulse):
            self._irq.set(False)
            self._irq.set(True)
        self._set_line(pulse)

    def _set_line(self, pulse: int) -> None:
        self.state.seen = pulse
        self.state.output = self._counters[0].output(pulse)
        self._irq.set(self.state.output)

    def _on_timer(self) -> None:
        self._counter(0, self._pulse())
        self._arm()

    def _arm(self) -> None:
        event = self._counters[0].next_event(self.state.seen)
        if event is None:
            self._timer.cancel()
            return
        deadline = -(-event * NS // HZ)  # the first nanosecond at which that pulse has come
        if deadline != self._timer.deadline:
            self._timer.arm(deadline)


def _count(cr: int, bcd: int) -> int:
    """What a written count means: 0 is the largest, 2**16 or 10**4."""
    if not bcd:
        return cr or 0x10000
    return sum((cr >> 4 * digit & 15) * 10**digit for digit in range(4)) % 10_000 or 10_000


def _to_bcd(value: int) -> int:
    return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10
