"""Guest time and timers: `RealClock` follows the host, `SteppedClock` is moved by a test.

Near the ground: imports only `errors.py`. Times are integer nanoseconds since the clock was made.
Timers fire on whoever calls `run_due` (a vCPU between two stretches of guest code, or a test), with
the machine lock held, in the order of their deadlines.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakSet

from iobus.errors import RAISED, CallbackError


class TimerError(CallbackError):
    """A timer's callback, or one given to `call_soon`, raised; the original exception is `__cause__`."""


class Timer:
    """One deadline and what to do at it. Made by `Clock.timer`."""

    __slots__ = ("__weakref__", "_arming", "_clock", "callback", "deadline", "name")

    def __init__(self, clock: Clock, callback: Callable[[], None], name: str) -> None:
        self._clock = clock
        self.callback = callback
        self.name = name
        self._arming = 0  # the number of its latest arming: what tells its entry in the heap from stale ones
        self.deadline: int | None = None
        """When it fires, in ns of the clock; None while it is not armed."""

    def __repr__(self) -> str:
        return f"<Timer {self.name!r} {'idle' if self.deadline is None else f'at {self.deadline} ns'}>"

    def arm(self, deadline: int) -> None:
        """Fire once at `deadline` (ns of the clock), instead of an earlier arming; soon if it is past.

        Timers of one deadline fire in the order in which they were armed for it; arming a timer for the
        deadline that it has changes nothing. Raises `TypeError` for anything but an int.
        """
        if type(deadline) is not int:  # later the clock would stumble over it, far from here
            deadline = _whole(deadline, f"timer {self.name!r}: arm(deadline)")
        if deadline != self.deadline:
            self._clock._arm(self, deadline)

    def cancel(self) -> None:
        """Do not fire."""
        self.deadline = None

    def close(self) -> None:
        """Fire no more, whatever it is armed for: whoever made it is gone."""
        self.cancel()
        self._clock = _NEVER


class Tsc(Protocol):
    """A CPU's time stamp counter beside the clock."""

    def read(self) -> int:
        """Return the counter as RDTSC would."""

    def deadline(self, tsc: int) -> int:
        """Return the clock's time in ns at which the counter reaches `tsc`."""


class Clock:
    """Guest time. Use `RealClock` or `SteppedClock`."""

    def __init__(self) -> None:
        # (deadline, arming, timer). Stale entries (cancelled, or armed anew) stay until they surface,
        # or until they outnumber the others.
        self._heap: list[tuple[int, int, Timer]] = []
        self._heap_limit = _HEAP_LEAST
        self._armings = 0
        self.timers: WeakSet[Timer] = WeakSet()
        """Every timer that somebody still has."""
        self._soon: deque[Callable[[], None]] = deque()
        self.on_earlier: Callable[[int], None] | None = None
        """Called with the next deadline when it became earlier, for whoever sleeps until it. From any thread."""

    def now(self) -> int:
        """Return the guest time in ns."""
        raise NotImplementedError

    def timer(self, callback: Callable[[], None], name: str = "") -> Timer:
        """Return a new timer, not armed."""
        timer = Timer(self, callback, name)
        self.timers.add(timer)
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, soon, as a timer's is: with the machine lock held. From any thread, at once.

        It is how work that a device has done elsewhere (on a thread, in asyncio) comes back to it. With a
        `SteppedClock` it is called by the next `advance`, be it by 0 ns. Callbacks keep their order.
        """
        self._soon.append(callback)
        if self.on_earlier is not None:
            self.on_earlier(self.now())

    def next_deadline(self) -> int | None:
        """Return the earliest deadline in ns, or None."""
        while self._heap and not _stands(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run_due(self) -> None:
        """Call what `call_soon` was given, then fire every timer whose deadline has come, each once.

        What is armed or given meanwhile, even for a time already past, waits for the next call: a guest's
        shortest timer cannot keep it. Raises `TimerError` when a callback does.
        """
        for _ in range(len(self._soon)):
            callback = self._soon.popleft()
            try:
                callback()
            except RAISED as exc:
                raise TimerError(f"call_soon({callback!r}): {type(exc).__name__}: {exc}") from exc
        now, before = self.now(), self._armings
        later: list[tuple[int, int, Timer]] = []
        try:
            while (deadline := self.next_deadline()) is not None and deadline <= now:
                entry = heapq.heappop(self._heap)
                if entry[1] > before:
                    later.append(entry)
                    continue
                timer = entry[2]
                timer.deadline = None
                try:
                    timer.callback()
                except RAISED as exc:
                    raise TimerError(f"timer {timer.name!r} due at {deadline} ns: {type(exc).__name__}: {exc}") from exc
        finally:
            for entry in later:
                heapq.heappush(self._heap, entry)

    def _arm(self, timer: Timer, deadline: int) -> None:
        first = self.next_deadline()
        self._armings += 1
        timer.deadline, timer._arming = deadline, self._armings
        if len(self._heap) >= self._heap_limit:  # a guest can arm anew without end
            self._heap = [entry for entry in self._heap if _stands(entry)]
            heapq.heapify(self._heap)
            self._heap_limit = max(_HEAP_LEAST, 2 * len(self._heap))
        heapq.heappush(self._heap, (deadline, self._armings, timer))
        if self.on_earlier is not None and (first is None or deadline < first):
            self.on_earlier(deadline)


class _Never(Clock):
    """The clock of closed timers, on which nothing is armed."""

    def _arm(self, timer: Timer, deadline: int) -> None: ...


_HEAP_LEAST: Final = 64  # entries, below which dropping the stale ones is not worth while
_NEVER: Final = _Never()


def _whole(ns: object, what: str) -> int:
    """Return a time as a plain int, or raise `TypeError`."""
    if isinstance(ns, int) and not isinstance(ns, bool):
        return int(ns)
    raise TypeError(f"{what} takes ns as an int, not {ns!r}")


def _stands(entry: tuple[int, int, Timer]) -> bool:
    """Whether the entry is its timer's latest arming, and was not cancelled."""
    return entry[2].deadline is not None and entry[2]._arming == entry[1]


class RealClock(Clock):
    """Guest time is the host's monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic_ns()

    def now(self) -> int:
        return time.monotonic_ns() - self._start


class SteppedClock(Clock):
    """Guest time stands still until `advance`: a test decides when what happens."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0

    def now(self) -> int:
        return self._now

    def advance(self, ns: int) -> None:
        """Let `ns` nanoseconds pass; each timer fires at its own deadline, in order.

        What `call_soon` was given is called before any time passes. Raises `TypeError` for anything but an int.
        """
        ns = _whole(ns, "advance(ns)")
        if ns < 0:
            raise ValueError(f"cannot advance by {ns} ns: time does not go back")
        target = self._now + ns
        self.run_due()
        while (deadline := self.next_deadline()) is not None and deadline <= target:
            self._now = max(self._now, deadline)
            self.run_due()
        self._now = target
