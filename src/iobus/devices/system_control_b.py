"""Port 0x61, system control port B (NMI status and control): the speaker's gate, refresh, counter 2's OUT.

Stands among the devices: knows the PIT it gates and a clock. By the ICH9 data sheet (Intel 316972, "NMI_SC:
NMI Status and Control Register"). The machine has no parity or IOCHK# errors: their status bits read 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from iobus.bus import Device
from iobus.clock import Clock
from iobus.devices.i8254 import HZ, NS, Pit
from iobus.state import Range, State, Stateful

TIM_CNT2_EN: Final = 0x01
SPKR_DAT_EN: Final = 0x02
PCI_SERR_EN: Final = 0x04
IOCHK_NMI_EN: Final = 0x08
REF_TOGGLE: Final = 0x10
TMR2_OUT_STS: Final = 0x20
WRITABLE: Final = TIM_CNT2_EN | SPKR_DAT_EN | PCI_SERR_EN | IOCHK_NMI_EN
REFRESH_PULSES: Final = 18
"""A refresh each 18 pulses of the PIT's clock, 15.085 us, whatever counter 1 is programmed to."""


@dataclass
class SystemControlBState(State):
    """The bits that were written."""

    control: Annotated[int, Range(0, WRITABLE)] = 0


class SystemControlB(Stateful, Device):
    """Port 0x61."""

    name = "system-control-b"
    length = 1
    state: SystemControlBState

    def __init__(self, pit: Pit, clock: Clock) -> None:
        self._pit = pit
        self._clock = clock
        self.state = SystemControlBState()

    def read(self, offset: int, size: int) -> int:
        """The written bits, the refresh toggle and counter 2's OUT."""
        value = self.state.control
        if self._clock.now() * HZ // NS // REFRESH_PULSES & 1:
            value |= REF_TOGGLE
        return value | TMR2_OUT_STS if self._pit.output2() else value

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the four control bits; bit 0 is counter 2's GATE."""
        self.state.control = value & WRITABLE
        self._pit.gate2(bool(value & TIM_CNT2_EN))

    def reset(self) -> None:
        """Return to the power-on state: all control bits 0."""
        self.state.control = 0
        self._pit.gate2(False)
