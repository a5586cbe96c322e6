"""What `run()` hands back to the caller, and the faults that accesses made for the guest raise.

Imports only `bus.py`'s error root. An exit is not an error: it is the guest's question or its end.
"""

from __future__ import annotations

from dataclasses import dataclass

from iobus.bus import IobusError


@dataclass(slots=True)
class MmioExit:
    """An access to memory-mapped I/O that no device claimed.

    The caller of a read puts the value in `data` and runs on; a write brings its value in `data`.
    """

    address: int
    """Guest physical address."""
    size: int
    """1, 2, 4 or 8 bytes; never across a page."""
    is_write: bool
    data: int = 0


@dataclass(slots=True)
class PioExit:
    """An access to an I/O port that no device claimed; answered as `MmioExit` is."""

    address: int
    """The port, 0-0xFFFF."""
    size: int
    """1, 2 or 4 bytes."""
    is_write: bool
    data: int = 0


@dataclass(frozen=True, slots=True)
class HltExit:
    """The CPU halted with interrupts off, or waits for start-up: nothing of its own can wake it.

    Only an NMI, an INIT or a start-up message can, from another CPU usually. `Machine.run` returns it
    when that is so for all of them.
    """


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """A triple fault."""

    rip: int


@dataclass(frozen=True, slots=True)
class PowerOffExit:
    """The guest switched the machine off."""


@dataclass(frozen=True, slots=True)
class ResetExit:
    """The guest asked for a machine reset; `source` names the device it asked."""

    source: str


@dataclass(frozen=True, slots=True)
class DebugExit:
    """The guest ended its run at the debug exit port, as bare-metal tests do."""

    code: int
    """What it wrote, 0-0xFFFFFFFF; by custom 0 is success."""


@dataclass(frozen=True, slots=True)
class KickExit:
    """`kick()` was called: the caller asked for the CPU back."""


@dataclass(frozen=True, slots=True)
class TimeoutExit:
    """The time the caller gave has passed."""

    seconds: float


Exit = MmioExit | PioExit | HltExit | ShutdownExit | PowerOffExit | ResetExit | DebugExit | KickExit | TimeoutExit


class EngineError(IobusError):
    """The engine cannot do what the guest or the caller asks; the message says what and where."""


class GuestFault(Exception):
    """An exception of the guest's architecture, to be delivered to the guest."""

    def __init__(self, vector: int, error_code: int | None, what: str) -> None:
        super().__init__(what)
        self.vector = vector
        self.error_code = error_code


class ProtectionFault(GuestFault):
    """#GP, error code 0 unless given."""

    def __init__(self, what: str, error_code: int = 0) -> None:
        super().__init__(13, error_code, what)


class PageFault(GuestFault):
    """#PF. `error_code` is the architecture's (SDM vol. 3A, section 4.7): P, W/R, U/S, RSVD, I/D."""

    def __init__(self, address: int, error_code: int) -> None:
        present = "protection" if error_code & 1 else "not present"
        kind = "fetch" if error_code & 16 else "write" if error_code & 2 else "read"
        mode = "user" if error_code & 4 else "supervisor"
        super().__init__(14, error_code, f"page fault at {address:#x}: {present}, {mode} {kind}")
        self.address = address
