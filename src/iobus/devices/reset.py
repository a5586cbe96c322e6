"""The chipset's two ways to reset the CPU: RST_CNT at port 0xCF9 and PORT92, system control port A.

Stands beside the other devices of the PC: each of the two knows its one register and whom to call. After
the Intel I/O Controller Hub 9 datasheet, sections 13.7.3 (PORT92) and 13.7.5 (RST_CNT). The third way,
the keyboard controller's pulse, is in `i8042.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from iobus.bus import Device
from iobus.state import Range, State, Stateful

SYS_RST: Final = 1 << 1
RST_CPU: Final = 1 << 2
FULL_RST: Final = 1 << 3

INIT_NOW: Final = 1 << 0
ALT_A20_GATE: Final = 1 << 1


@dataclass
class ResetControlState(State):
    """What RST_CNT holds."""

    rst_cnt: Annotated[int, Range(0, SYS_RST | RST_CPU | FULL_RST)] = 0


class ResetControl(Stateful, Device):
    """RST_CNT: a 0 to 1 transition of RST_CPU resets the machine.

    SYS_RST (whole system, or CPU alone) and FULL_RST (power cycle) are readable and writable, as
    drivers write SYS_RST first and RST_CPU next. Each of the four kinds of reset is the same here:
    `reset` is called once. An access wider than the byte acts on its lowest byte.
    """

    name = "reset-control"
    length: Final = 1
    state: ResetControlState

    def __init__(self, reset: Callable[[], None]) -> None:
        self.state = ResetControlState()
        self._reset = reset

    def reset(self) -> None:
        self.state = ResetControlState()

    def read(self, offset: int, size: int) -> int:
        return self.state.rst_cnt

    def write(self, offset: int, size: int, value: int) -> None:
        before, self.state.rst_cnt = self.state.rst_cnt, value & (SYS_RST | RST_CPU | FULL_RST)
        if value & ~before & RST_CPU:
            self._reset()


@dataclass
class SystemControlAState(State):
    """What PORT92 holds."""

    port92: Annotated[int, Range(0, INIT_NOW | ALT_A20_GATE)] = 0


class SystemControlA(Stateful, Device):
    """PORT92: a 0 to 1 transition of INIT_NOW resets; ALT_A20_GATE reads back as written.

    Address line 20 itself is never forced low: this bit and the keyboard controller's are joined by an
    OR, and no guest of today depends on the wrap at 1 MiB.
    """

    name = "system-control-a"
    length: Final = 1
    state: SystemControlAState

    def __init__(self, reset: Callable[[], None]) -> None:
        self.state = SystemControlAState()
        self._reset = reset

    def reset(self) -> None:
        self.state = SystemControlAState()

    def read(self, offset: int, size: int) -> int:
        return self.state.port92

    def write(self, offset: int, size: int, value: int) -> None:
        before, self.state.port92 = self.state.port92, value & (INIT_NOW | ALT_A20_GATE)
        if value & ~before & INIT_NOW:
            self._reset()
