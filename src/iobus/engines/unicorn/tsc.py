"""The guest's time stamp counter: the host's, which the library hands to the guest, with an offset of the vCPU's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final


class HostTsc:
    """The host's counter beside the machine's clock, of which `now` gives the ns. One for all vCPUs."""

    def __init__(self, read: Callable[[], int], now: Callable[[], int]) -> None:
        self.read: Final = read
        self.now: Final = now
        self._start = self._sample()
        self._hz = 0

    def hz(self) -> int:
        """Return the frequency in Hz, measured once over at least 20 ms."""
        if not self._hz:
            while True:
                tsc, ns = self._sample()
                elapsed = ns - self._start[1]
                if elapsed >= 20_000_000:
                    break
                time.sleep((20_000_000 - elapsed) / 1e9)
            self._hz = (tsc - self._start[0]) * 1_000_000_000 // elapsed
        return self._hz

    def _sample(self) -> tuple[int, int]:
        """A pair of the counter and the host's time, of several the one taken fastest."""
        samples = []
        for _ in range(8):
            before, ns, after = self.read(), time.monotonic_ns(), self.read()
            samples.append((after - before, (before + after) // 2, ns))
        _, tsc, ns = min(samples)
        return tsc, ns


class GuestTsc:
    """One vCPU's counter (`clock.Tsc`); `offset` gives what it is ahead of the host's, modulo 2**64."""

    def __init__(self, host: HostTsc, offset: Callable[[], int]) -> None:
        self._host, self._offset = host, offset

    def read(self) -> int:
        """Return the guest's TSC."""
        return self._host.read() + self._offset() & _MASK64

    def deadline(self, tsc: int) -> int:
        """Return the clock's time in ns at which the guest's TSC reaches `tsc`."""
        return self._host.now() + (tsc - self.read()) * 1_000_000_000 // self._host.hz()


_MASK64: Final = (1 << 64) - 1
