"""Events that a guest's write fires without asking the device: `Event`, and a region's `Doorbell`s.

The ground floor below `bus.py`, where `Region.doorbell` makes them; it imports nothing of iobus. An event is the
kernel's eventfd on every engine, so that a thread, `select`, asyncio or another process can wait for it. Where no
engine takes the write nearer to the guest, the bus rings (`ringing`); on KVM the kernel does (engines/kvm).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterable
from typing import Final

from iobus.widths import Endian, Write


class Event:
    """A count of rings: rung from anywhere, waited for and taken by one. An eventfd (Linux, eventfd(2))."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The eventfd, for `select`, asyncio or another process: it is readable while there are rings to take."""
        if self._fd < 0:
            raise ValueError("the event is closed")
        return self._fd

    def ring(self) -> None:
        """Count one ring. From any thread; never waits."""
        with contextlib.suppress(BlockingIOError):  # as many rings as it can count: it is rung
            os.eventfd_write(self.fileno(), 1)

    def take(self) -> int:
        """Return how often it was rung since the last time, 0 if not at all, and start from 0."""
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0

    def wait(self, timeout: float | None = None) -> int:
        """Wait for a ring, `timeout` seconds at most, and `take`: 0 says that the time has passed."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return self.take()

    def close(self) -> None:
        """Free the eventfd. No thread may be waiting, and nothing rings it afterwards."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            Event.close(self)


class Doorbell(Event):
    """Fires at a guest's write of `size` bytes at `offset`, of `value` or (None) of any; see `Region.doorbell`."""

    def __init__(
        self, offset: int, size: int, value: int | None, endian: Endian, remove: Callable[[Doorbell], None]
    ) -> None:
        super().__init__()
        self.offset: Final = offset
        """In bytes, from the region's base."""
        self.size: Final = size
        """1, 2, 4 or 8 bytes."""
        self.value: Final = value
        """What the device would be given; None for any."""
        self.raw: Final = value if value is None else int.from_bytes(value.to_bytes(size, endian), "little")
        """`value` in the order of bytes of the guest's access."""
        self._remove: Callable[[Doorbell], None] | None = remove

    def __repr__(self) -> str:
        value = "" if self.value is None else f" of {self.value:#x}"
        return f"<Doorbell {self.size}-byte write{value} at offset {self.offset:#x}>"

    def collides(self, other: Doorbell) -> bool:
        """Whether some write would be both's."""
        same_place = (self.offset, self.size) == (other.offset, other.size)
        return same_place and (self.value is None or other.value is None or self.value == other.value)

    def close(self) -> None:
        """Let the device have these writes again, and free the eventfd."""
        remove, self._remove = self._remove, None
        if remove is not None:
            remove(self)
        super().close()


def ringing(write: Write, doorbells: Iterable[Doorbell]) -> Write:
    """Return `write` with the doorbells in front of it. It takes the guest's access, before it is split or swapped."""
    any_value = {(bell.offset, bell.size): bell for bell in doorbells if bell.raw is None}
    by_value = {(bell.offset, bell.size, bell.raw): bell for bell in doorbells if bell.raw is not None}

    def ring_or_write(offset: int, size: int, value: int) -> object:
        bell = any_value.get((offset, size)) or by_value.get((offset, size, value))
        if bell is None:
            return write(offset, size, value)
        bell.ring()
        return None

    return ring_or_write
