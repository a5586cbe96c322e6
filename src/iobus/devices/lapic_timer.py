"""The local APIC's timer: one-shot, periodic and TSC-deadline. A part of `lapic.py`, which delivers its interrupt.

Intel SDM vol. 3A, section 11.5.4. Nothing ticks: the state keeps the moment at which the count
reaches zero, and the current count is computed from it. An expiry that finds the entry masked is lost,
so a masked timer arms nothing.

Switching between one-shot and periodic lets the count run on; to or from TSC-deadline mode disarms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from iobus.clock import Clock
from iobus.devices.lapic_registers import DIVIDE_WRITABLE, LVT_MASKED
from iobus.state import U32, U64, Range, State

TIMER_HZ: Final = 1_000_000_000
"""The input clock: before the divider, one tick is one nanosecond of guest time."""

SHORTEST_REPEAT: Final = 20_000
"""In ns. Periods below it (a guest may ask for 1 ns) interrupt this often; their count is still exact."""

_FARTHEST = 1 << 42  # ns, 73 minutes: a sleeper need not cope with a deadline of centuries

ONE_SHOT: Final = 0
PERIODIC: Final = 1
TSC_DEADLINE: Final = 2


class TscClock(Protocol):
    """The guest's time-stamp counter."""

    def read(self) -> int:
        """The TSC now."""

    def deadline(self, tsc: int) -> int:
        """When the TSC reaches `tsc`, in ns of the machine's clock."""


@dataclass
class LapicTimerState(State):
    """All the timer remembers."""

    lvt: U32 = LVT_MASKED
    initial_count: U32 = 0
    divide_configuration: Annotated[int, Range(0, DIVIDE_WRITABLE)] = 0
    deadline: Annotated[int, Range(-(1 << 63), 1 << 96)] | None = None
    """When it expires, in ns of the clock; None while it is stopped. A TSC far ahead is centuries away."""
    tsc_deadline: U64 = 0
    """The MSR: the armed TSC value, 0 while it is disarmed."""


class LapicTimer:
    """The timer's registers. `expired` is called at each expiry that is not masked."""

    def __init__(self, clock: Clock, tsc: TscClock | None, expired: Callable[[], None], name: str) -> None:
        self.state = LapicTimerState()
        self._clock = clock
        self._tsc = tsc
        self._expired = expired
        self._timer = clock.timer(self._fire, name)

    @property
    def mode(self) -> int:
        """`ONE_SHOT`, `PERIODIC`, `TSC_DEADLINE`, or the reserved 3, in which nothing runs."""
        return self.state.lvt >> 17 & 3

    def load(self, state: LapicTimerState) -> None:
        """Go on from `state`."""
        self.state = state
        self._arm()

    def write_lvt(self, value: int) -> None:
        """Take the LVT timer register, already reduced to its writable bits."""
        self._settle()
        state, before = self.state, self.mode
        state.lvt = value
        if self.mode != before and (self.mode > PERIODIC or before > PERIODIC):
            state.deadline, state.tsc_deadline = None, 0
        self._arm()

    def write_initial_count(self, value: int) -> None:
        """Start the count, or stop it with 0; ignored in TSC-deadline mode."""
        if self.mode > PERIODIC:
            return
        self._settle()
        self.state.initial_count = value
        self.state.deadline = self._clock.now() + value * self._tick() if value else None
        self._arm()

    def write_divide_configuration(self, value: int) -> None:
        """Set the divider; a running count goes on from where it is."""
        self._settle()
        count = self.current_count()
        self.state.divide_configuration = value & DIVIDE_WRITABLE
        if self.mode <= PERIODIC and self.state.deadline is not None:
            self.state.deadline = self._clock.now() + count * self._tick()
        self._arm()

    def current_count(self) -> int:
        """The current-count register."""
        deadline = self.state.deadline
        if deadline is None or self.mode > PERIODIC:
            return 0
        left, tick = deadline - self._clock.now(), self._tick()
        if left <= 0:  # expired, but the clock's turn has not come
            period = self._period()
            left = period - -left % period if period else 0
        return -(-left // tick)

    def read_tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 once it has expired, and in the other modes."""
        self._settle()
        return self.state.tsc_deadline

    def write_tsc_deadline(self, value: int) -> None:
        """Arm for the TSC `value`, expire at once where it is past, disarm with 0; ignored in the other modes."""
        if self.mode != TSC_DEADLINE or self._tsc is None:
            return
        self._settle()
        self.state.tsc_deadline = value
        self.state.deadline = self._tsc.deadline(value) if value else None
        self._settle()
        self._arm()

    def _tick(self) -> int:
        """The ns of one count."""
        code = self.state.divide_configuration
        shift = (code & 3 | code >> 1 & 4) + 1
        return 1 << (shift & 7)  # 0b1011 divides by 1

    def _period(self) -> int:
        """The ns from one expiry to the next; 0 outside periodic mode."""
        return self.state.initial_count * self._tick() if self.mode == PERIODIC else 0

    def _settle(self) -> None:
        """Let an expiry that is due happen: before a register changes what it means, and at the clock's turn."""
        state, now = self.state, self._clock.now()
        if state.deadline is None or now < state.deadline:
            return
        if period := self._period():
            state.deadline += ((now - state.deadline) // period + 1) * period
        else:
            state.deadline, state.tsc_deadline = None, 0
        if not state.lvt & LVT_MASKED:
            self._expired()

    def _fire(self) -> None:
        self._settle()
        self._arm(SHORTEST_REPEAT)

    def _arm(self, pause: int = 0) -> None:
        """Arm the clock for the next expiry, `pause` ns from now at the earliest."""
        state = self.state
        if state.deadline is None or state.lvt & LVT_MASKED:
            self._timer.cancel()
            return
        now = self._clock.now()
        self._timer.arm(min(max(state.deadline, now + pause), now + _FARTHEST))
