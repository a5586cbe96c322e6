"""The high precision event timer: one 64-bit counter of 100 MHz and three timers that compare with it.

Stands among the devices: knows its registers, a clock, the lines that its timers may drive and, for
interrupts as messages, whom to hand a memory write. By the IA-PC HPET Specification 1.0a (Intel, 2004). All
three timers are 64 bits wide and can be periodic. Nothing ticks: the counter is computed from the clock, and
each timer remembers when the counter will next equal its comparator. What the specification leaves open:

- A comparator that equals the counter when either is written matches at once, one that is behind it only
  after the counter wrapped, as in hardware: software that was late must look. In 32-bit mode the wrap
  is that of the low half.
- A periodic write with VAL_SET sets the comparator and the period, as Intel's chips do: the period always is
  the value last written. VAL_SET is used up by a write to either half.
- A status bit is that of a level-triggered timer; edge-triggered ones read 0.
- A timer whose route names no line of its capabilities keeps the route it had.
- Accesses of 4 and 8 aligned bytes are the specified ones. Others read the register's bytes and write nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final

from iobus.bus import Device
from iobus.clock import Clock
from iobus.irq import Line
from iobus.state import U32, U64, Range, State, StateError, Stateful, Time

TICK: Final = 10
"""The counter's period in ns."""
TIMERS: Final = 3

# Registers; timer n's are TIMER + n * TIMER_STRIDE + these.
CAPABILITIES: Final = 0x000
CONFIGURATION: Final = 0x010
STATUS: Final = 0x020
COUNTER: Final = 0x0F0
TIMER: Final = 0x100
TIMER_STRIDE: Final = 0x20
TIMER_CONFIGURATION: Final = 0x00
TIMER_COMPARATOR: Final = 0x08
TIMER_FSB: Final = 0x10

# General capabilities and ID (section 2.3.4): REV_ID, NUM_TIM_CAP, COUNT_SIZE_CAP, LEG_RT_CAP, VENDOR_ID.
ID: Final = 0x8086 << 16 | 1 << 15 | 1 << 13 | TIMERS - 1 << 8 | 0x01
"""Its low half, which the ACPI table repeats; the high half is the period in femtoseconds."""

# General configuration (section 2.3.5).
ENABLE_CNF: Final = 1 << 0
LEG_RT_CNF: Final = 1 << 1

# Timer configuration (section 2.3.8), with the specification's names less their Tn.
INT_TYPE_CNF: Final = 1 << 1
"""Level-triggered."""
INT_ENB_CNF: Final = 1 << 2
TYPE_CNF: Final = 1 << 3
"""Periodic."""
PER_INT_CAP: Final = 1 << 4
SIZE_CAP: Final = 1 << 5
VAL_SET_CNF: Final = 1 << 6
MODE32_CNF: Final = 1 << 8
INT_ROUTE_CNF: Final = 31 << 9
FSB_EN_CNF: Final = 1 << 14
FSB_INT_DEL_CAP: Final = 1 << 15
_WRITABLE: Final = INT_TYPE_CNF | INT_ENB_CNF | TYPE_CNF | VAL_SET_CNF | MODE32_CNF | INT_ROUTE_CNF | FSB_EN_CNF

SHORTEST_REPEAT: Final = 2_000
"""In counts. A timer that matches more often (a guest may ask for each count) interrupts this often."""

_FARTHEST: Final = 1 << 42  # ns, 73 minutes: a sleeper need not cope with a deadline of centuries
_ONES: Final = (1 << 64) - 1
_LOW: Final = 0xFFFFFFFF


@dataclass
class TimerState(State):
    """One timer."""

    configuration: U32 = 0
    """The bits that can be written; VAL_SET as long as it waits for its write."""
    comparator: U64 = _ONES
    period: U64 = 0
    """What was last written to the comparator register: what each match adds in periodic mode."""
    fsb: U64 = 0
    """The value of the message in the low half, its address in the high one."""
    due: Annotated[int, Range(-(1 << 63), 1 << 72)] | None = None
    """When the counter next equals the comparator, in ns of the clock; None while it is halted."""

    def check(self) -> None:
        if self.configuration & ~_WRITABLE:
            raise StateError(f"TimerState.configuration: {self.configuration:#x} has bits that cannot be written")


@dataclass
class HpetState(State):
    """All the HPET remembers."""

    configuration: Annotated[int, Range(0, ENABLE_CNF | LEG_RT_CNF)] = 0
    status: Annotated[int, Range(0, (1 << TIMERS) - 1)] = 0
    counter: U64 = 0
    """The main counter, at the time `since` where it runs."""
    since: Time | None = None
    """None while it is halted."""
    timers: list[TimerState] = field(default_factory=lambda: [TimerState() for _ in range(TIMERS)])

    def check(self) -> None:
        if (self.since is not None) != bool(self.configuration & ENABLE_CNF):
            raise StateError(f"HpetState.since: {self.since} with configuration {self.configuration:#x}")


class Hpet(Stateful, Device):
    """The HPET's page of registers.

    `routes` has for each timer the lines it may drive, by their numbers at the I/O APIC (below 32);
    `legacy` are the lines of timers 0 and 1 with legacy replacement, and `replace(True)` cuts off what
    drove them before, the 8254 and the RTC. `fsb(address, value)` takes a 32-bit memory write.
    """

    name = "hpet"
    length = 0x400
    state: HpetState

    def __init__(
        self,
        clock: Clock,
        routes: Sequence[Mapping[int, Line]],
        legacy: tuple[Line, Line],
        *,
        replace: Callable[[bool], None],
        fsb: Callable[[int, int], object],
    ) -> None:
        if len(routes) != TIMERS or any(not 0 <= number < 32 for lines in routes for number in lines):
            raise ValueError(f"HPET routes {[sorted(lines) for lines in routes]}: give {TIMERS}, of lines 0 to 31")
        self._clock = clock
        self._routes = routes
        self._capabilities = [
            PER_INT_CAP | SIZE_CAP | FSB_INT_DEL_CAP | sum(1 << number for number in lines) << 32 for lines in routes
        ]
        self._legacy = legacy
        self._replace = replace
        self._fsb = fsb
        self._alarms = [clock.timer(partial(self._on_alarm, n), f"hpet timer {n}") for n in range(TIMERS)]
        self._held: list[Line | None] = [None] * TIMERS  # what each level-triggered timer asserts
        self.state = HpetState()

    def read(self, offset: int, size: int) -> int:
        """Read a register or a part of it; what is reserved reads 0."""
        if offset & ~7 == COUNTER:
            value = self._count(self._clock.now())
        else:
            self._settle()
            value = self._read(offset & ~7)
        return value >> 8 * (offset & 7) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 4 or 8 aligned bytes; what is read-only or reserved ignores them."""
        if size < 4 or offset & size - 1:
            return
        register, shift = offset & ~7, 8 * (offset & 7)
        lanes = (1 << 8 * size) - 1 << shift
        self._write(register, value << shift, lanes)

    def reset(self) -> None:
        """Power-on: halted at 0, comparators all ones, nothing enabled."""
        self.state = HpetState()
        self.restored()

    def restored(self) -> None:
        """Drive the lines and wait for the next match as the state says."""
        self._route()
        self._arm_all()

    # Registers.

    def _read(self, register: int) -> int:
        state = self.state
        if register == CAPABILITIES:
            return TICK * 1_000_000 << 32 | ID
        if register == CONFIGURATION:
            return state.configuration
        if register == STATUS:
            return state.status
        number, register = divmod(register - TIMER, TIMER_STRIDE)
        if not 0 <= number < TIMERS:
            return 0
        timer = state.timers[number]
        if register == TIMER_CONFIGURATION:
            return self._capabilities[number] | timer.configuration & ~VAL_SET_CNF
        return {TIMER_COMPARATOR: timer.comparator, TIMER_FSB: timer.fsb}.get(register, 0)

    def _write(self, register: int, value: int, lanes: int) -> None:
        """Take the bits of `value` that `lanes` covers."""
        state, now = self.state, self._settle()
        number, within = divmod(register - TIMER, TIMER_STRIDE)
        if register == CONFIGURATION:
            if lanes & _LOW:
                self._configure(now, value & (ENABLE_CNF | LEG_RT_CNF))
        elif register == STATUS:
            state.status &= ~value
            self._drive()
        elif register == COUNTER:
            state.counter = self._count(now) & ~lanes | value
            if state.since is not None:
                state.since = now
            for timer in state.timers:
                self._aim(timer, now)
        elif 0 <= number < TIMERS:
            timer = state.timers[number]
            if within == TIMER_CONFIGURATION and lanes & _LOW:
                self._configure_timer(now, number, value & _WRITABLE)
            elif within == TIMER_COMPARATOR:
                self._compare(now, timer, value, lanes)
            elif within == TIMER_FSB:
                timer.fsb = timer.fsb & ~lanes | value
        self._settle()  # what was written may match at once
        self._arm_all()

    def _configure(self, now: int, value: int) -> None:
        """Run or halt the counter, which keeps its value and the status bits; replace the old timers or not."""
        state = self.state
        if (value ^ state.configuration) & ENABLE_CNF:
            state.counter = self._count(now)
            state.since = now if value & ENABLE_CNF else None
            for timer in state.timers:
                self._aim(timer, now)
        state.configuration = value
        self._route()

    def _configure_timer(self, now: int, number: int, value: int) -> None:
        timer = self.state.timers[number]
        if (value & INT_ROUTE_CNF) >> 9 not in self._routes[number]:
            value = value & ~INT_ROUTE_CNF | timer.configuration & INT_ROUTE_CNF
        resized = (value ^ timer.configuration) & MODE32_CNF
        timer.configuration = value
        if resized:
            if value & MODE32_CNF:
                timer.comparator &= _LOW
                timer.period &= _LOW
            self._aim(timer, now)
        if not value & INT_TYPE_CNF:
            self.state.status &= ~(1 << number)
        self._drive()

    def _compare(self, now: int, timer: TimerState, value: int, lanes: int) -> None:
        """Section 2.3.9.2: a periodic timer's comparator is written with VAL_SET only, its period always."""
        if timer.configuration & MODE32_CNF:
            value, lanes = value & _LOW, lanes & _LOW
        timer.period = timer.period & ~lanes | value
        if not timer.configuration & TYPE_CNF or timer.configuration & VAL_SET_CNF:
            timer.comparator = timer.comparator & ~lanes | value
            self._aim(timer, now)
        timer.configuration &= ~VAL_SET_CNF

    # What time does.

    def _count(self, now: int) -> int:
        """The main counter."""
        state = self.state
        return state.counter if state.since is None else state.counter + (now - state.since) // TICK & _ONES

    def _aim(self, timer: TimerState, now: int) -> None:
        """Find when the counter next equals the comparator."""
        since = self.state.since
        if since is None:
            timer.due = None
            return
        modulus = _modulus(timer)
        ticks = (now - since) // TICK
        timer.due = since + (ticks + (timer.comparator - self.state.counter - ticks) % modulus) * TICK

    def _settle(self, pause: int = 0) -> int:
        """Let the matches that have come happen, however many there were as one a timer; return the time now."""
        now = self._clock.now()
        late: list[tuple[int, int]] = []
        for number, timer in enumerate(self.state.timers):
            if timer.due is not None and timer.due <= now:
                late.append((timer.due, number))
        for due, number in sorted(late):
            timer, modulus = self.state.timers[number], _modulus(self.state.timers[number])
            adds = timer.period if timer.configuration & TYPE_CNF else 0
            matches = (now - due) // ((adds or modulus) * TICK) + 1
            timer.comparator = (timer.comparator + matches * adds) % modulus
            timer.due = due + matches * (adds or modulus) * TICK
            self._match(number, timer.configuration)
            self._arm(number, pause)
        return now

    def _match(self, number: int, configuration: int) -> None:
        """Section 2.3.8: the status bit follows even without the enable, the interrupt does not."""
        if configuration & INT_TYPE_CNF:
            self.state.status |= 1 << number
            self._drive()
        if not configuration & INT_ENB_CNF:
            return
        line = self._line(number)
        if line is not None:
            if not configuration & INT_TYPE_CNF:
                line.pulse()
        elif configuration & FSB_EN_CNF:
            fsb = self.state.timers[number].fsb
            self._fsb(fsb >> 32, fsb & _LOW)

    def _on_alarm(self, number: int) -> None:
        self._arm(number)  # for when it was not the match yet, only as far as a sleeper goes
        self._settle(SHORTEST_REPEAT * TICK)

    def _arm_all(self) -> None:
        for number in range(TIMERS):
            self._arm(number)

    def _arm(self, number: int, pause: int = 0) -> None:
        """Wait for a timer's next match if that makes an interrupt, `pause` ns from now at the earliest."""
        timer, now = self.state.timers[number], self._clock.now()
        enabled, held = timer.configuration & INT_ENB_CNF, self._held[number] is not None
        if timer.due is None or not enabled or held or not self._goes_somewhere(number):
            self._alarms[number].cancel()
        else:
            self._alarms[number].arm(min(max(timer.due, now + pause), now + _FARTHEST))

    # Where interrupts go.

    @property
    def _replacing(self) -> bool:
        """Section 2.3.5: legacy replacement needs both bits."""
        return self.state.configuration == ENABLE_CNF | LEG_RT_CNF

    def _line(self, number: int) -> Line | None:
        """The line that a timer drives; None where it sends messages, or was routed to none."""
        if self._replacing and number < len(self._legacy):
            return self._legacy[number]
        configuration = self.state.timers[number].configuration
        if configuration & FSB_EN_CNF:
            return None
        return self._routes[number].get((configuration & INT_ROUTE_CNF) >> 9)

    def _goes_somewhere(self, number: int) -> bool:
        return bool(self.state.timers[number].configuration & FSB_EN_CNF) or self._line(number) is not None

    def _route(self) -> None:
        """Take over from the old timers, or hand back to them; who leaves a line leaves it first."""
        if self._replacing:
            self._replace(True)
            self._drive()
        else:
            self._drive()
            self._replace(False)

    def _drive(self) -> None:
        """Assert the lines of the level-triggered timers whose status bits are set."""
        state = self.state
        for number, timer in enumerate(state.timers):
            asserts = state.configuration & ENABLE_CNF and state.status >> number & 1
            enabled = timer.configuration & (INT_TYPE_CNF | INT_ENB_CNF) == INT_TYPE_CNF | INT_ENB_CNF
            line = self._line(number) if asserts and enabled else None
            held, self._held[number] = self._held[number], line
            if held is not line:
                if held is not None:
                    held.set(False)
                if line is not None:
                    line.set(True)


def _modulus(timer: TimerState) -> int:
    return 1 << 32 if timer.configuration & MODE32_CNF else 1 << 64
