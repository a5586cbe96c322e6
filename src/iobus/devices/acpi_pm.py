"""ACPI fixed hardware: power management events, the way to S5, and the PM timer.

Stands beside the other devices of the PC; `pc` tells the guest of it in the FADT. After the ACPI
specification 6.5, section 4.8.3 (fixed hardware registers): the PM1a event block at offset 0, the PM1a
control block at 4 and the PM timer at 8. ACPI mode is always on, so there is no SMI command port (FADT
SMI_CMD = 0) and SCI_EN reads 1. There is no sleep button, and no sleeping state but S5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from iobus.bus import Device
from iobus.clock import Clock
from iobus.irq import Line
from iobus.state import U16, Range, State, Stateful

PM_TIMER_HZ: Final = 3_579_545
"""Section 4.8.2.1: 3.579545 MHz."""
TMR_VAL_EXT: Final = True
"""The PM timer counts 32 bits, not 24: the FADT flag of this name."""
S5_SLP_TYP: Final = 5
"""What SLP_TYP holds to enter S5 (soft off): the first two elements of `\\_S5` in the DSDT."""

PM1_STS: Final = 0
PM1_EN: Final = 2
PM1_CNT: Final = 4
PM_TMR: Final = 8

# PM1_STS and PM1_EN (sections 4.8.3.1.1 and 4.8.3.1.2): a status and its enable share a position.
TMR: Final = 1 << 0
GBL: Final = 1 << 5
PWRBTN: Final = 1 << 8
SLPBTN: Final = 1 << 9
RTC: Final = 1 << 10

# PM1_CNT (section 4.8.3.2.1).
SCI_EN: Final = 1 << 0
BM_RLD: Final = 1 << 1
SLP_TYP: Final = 7 << 10
SLP_EN: Final = 1 << 13

_EVENTS: Final = TMR | GBL | PWRBTN | SLPBTN | RTC
_NS: Final = 1_000_000_000


@dataclass
class AcpiPmState(State):
    """The registers; the timer itself is a function of the time."""

    pm1_sts: U16 = 0
    """Without TMR_STS, which follows from `tmr_half`."""
    pm1_en: U16 = 0
    pm1_cnt: U16 = 0
    """BM_RLD and SLP_TYP."""
    tmr_half: Annotated[int, Range(0, 1 << 23)] = 0
    """Half periods (2**31 counts) of the PM timer that had begun when TMR_STS was last cleared; 2**23 are 160 years."""


class AcpiPm(Stateful, Device):
    """The 12 ports. Accesses of any size and alignment are served, byte lane by byte lane.

    The PM timer counts from the clock's zero and no reset stops it. TMR_STS is set each time its bit 31
    changes. `power_off` is called when the guest sets SLP_EN with `S5_SLP_TYP`; SLP_EN with any other
    SLP_TYP names a state the machine does not have, and does nothing.
    """

    name = "acpi-pm"
    length: Final = 12
    state: AcpiPmState

    def __init__(self, clock: Clock, sci: Line, power_off: Callable[[], None]) -> None:
        self._clock = clock
        self._sci = sci
        self._power_off = power_off
        self._edge = clock.timer(self._update, "acpi-pm")
        self.reset()

    def reset(self) -> None:
        self.state = AcpiPmState(tmr_half=self._ticks() >> 31)
        self._update()

    def restored(self) -> None:
        self._update()

    def press_power_button(self) -> None:
        """Set PWRBTN_STS: the guest's operating system is asked to shut down."""
        self.state.pm1_sts |= PWRBTN
        self._update()

    def read(self, offset: int, size: int) -> int:
        if offset == PM_TMR and size == 4:
            return self._clock.now() * PM_TIMER_HZ // _NS & 0xFFFF_FFFF
        state = self.state
        image = self._status() | state.pm1_en << 16 | (state.pm1_cnt | SCI_EN) << 32
        image |= (self._ticks() & 0xFFFF_FFFF) << 64
        return image >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        state = self.state
        lanes = ((1 << 8 * size) - 1) << 8 * offset
        image = value << 8 * offset
        if image & TMR:
            state.tmr_half = self._ticks() >> 31
        state.pm1_sts &= ~image
        state.pm1_en = (state.pm1_en & ~(lanes >> 16) | image >> 16) & _EVENTS
        # GBL_RLS would raise an SMI for firmware that is not there; SLP_EN is write-only.
        state.pm1_cnt = (state.pm1_cnt & ~(lanes >> 32) | image >> 32) & (BM_RLD | SLP_TYP)
        self._update()
        if image >> 32 & SLP_EN and state.pm1_cnt & SLP_TYP == S5_SLP_TYP << 10:
            self._power_off()

    def _ticks(self) -> int:
        return self._clock.now() * PM_TIMER_HZ // _NS

    def _status(self) -> int:
        rolled = self._ticks() >> 31 != self.state.tmr_half
        return self.state.pm1_sts | (TMR if rolled else 0)

    def _update(self) -> None:
        """Drive the SCI, and be called at the edge of bit 31 that would raise it."""
        status, enabled = self._status(), self.state.pm1_en
        self._sci.set(bool(status & enabled))
        if enabled & TMR and not status & TMR:
            # The first nanosecond at which the count has reached the next multiple of 2**31.
            self._edge.arm(-(-((self.state.tmr_half + 1) << 31) * _NS // PM_TIMER_HZ))
        else:
            self._edge.cancel()
