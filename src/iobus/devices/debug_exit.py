"""Two ports by which a bare-metal guest ends its run: with a code, or by the word "Shutdown".

Stand among the devices; no PC has them, `pc/host_interface.py` attaches them for guests that expect an emulator. The
first is QEMU's isa-debug-exit (a write of CODE ends the run with status CODE * 2 + 1), the second the power-off port
of Bochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from iobus.bus import Device
from iobus.state import Range, State, Stateful

SHUTDOWN: Final = b"Shutdown"


class DebugExitPort(Device):
    """Four ports: a write of 1, 2 or 4 bytes to any of them calls `end` with the value. They read as 0."""

    name = "debug-exit"
    length: Final = 4

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._end(value)


@dataclass
class ShutdownPortState(State):
    """How far the word has come."""

    matched: Annotated[int, Range(0, len(SHUTDOWN) - 1)] = 0


class ShutdownPort(Stateful, Device):
    """One port: the bytes of "Shutdown", one after the other, call `power_off`. It reads as 0."""

    name = "shutdown-port"
    length: Final = 1
    state: ShutdownPortState

    def __init__(self, power_off: Callable[[], None]) -> None:
        self.state = ShutdownPortState()
        self._power_off = power_off

    def reset(self) -> None:
        self.state = ShutdownPortState()

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        state = self.state
        if value != SHUTDOWN[state.matched]:
            state.matched = 0  # and this byte may begin the word anew
        state.matched += value == SHUTDOWN[state.matched]
        if state.matched == len(SHUTDOWN):
            state.matched = 0
            self._power_off()
