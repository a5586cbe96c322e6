"""The guest's time stamp counter beside the machine's clock: what a LAPIC in Python needs for its deadline timer.

Beside `cpu.py`, which has one for each vCPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iobus.engines.kvm import abi, cpustate, ioctls
from iobus.engines.kvm.ioctls import call, flexible


class KvmTsc:
    """A `clock.Tsc`. The kernel is asked each time, which only the vCPU's own thread can do while it runs."""

    def __init__(self, fd: int, now: Callable[[], int]) -> None:
        self._fd, self._now = fd, now
        self._hz = call(fd, ioctls.KVM_GET_TSC_KHZ) * 1000
        head, entries, self._buffer = flexible(abi.Msrs, abi.MsrEntry, 1)
        head.nmsrs = 1
        self._entry: Any = entries[0]
        self._entry.index = cpustate.IA32_TSC

    def read(self) -> int:
        """Return the guest's TSC."""
        call(self._fd, ioctls.KVM_GET_MSRS, self._buffer)
        value: int = self._entry.data
        return value

    def deadline(self, tsc: int) -> int:
        """Return the clock's time in ns at which the guest's TSC reaches `tsc`."""
        return self._now() + (tsc - self.read()) * 1_000_000_000 // self._hz
