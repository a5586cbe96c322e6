"""The engine's thread, and which vCPU's code it runs: the one that has run least, of those that have any.

Guest code runs on a thread of the engine's own, for two reasons: a read that no device claims must wait
for its caller's answer in the middle of a block, with the library's stack in place; and the callers'
threads stay free for signals, so that Ctrl-C works. The library has one CPU, so of several vCPUs one
runs at a time. It gives way when it halts, at PAUSE, after a time slice, and when another one that has
run less is woken. Between two blocks of code, never within one: what an instruction does, locked or
not, is whole before another vCPU sees any of it.

Everybody else leaves a request at the vCPU and calls `call`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from iobus.engines.unicorn.cpu import UnicornCpu

SLICE: Final = 2_000_000
"""In ns of host time: how long a vCPU runs at most while another one could."""
LOAN: Final = 200_000
"""In ns of host time: how long one runs that was called in the turn of another, which then goes on.

The other may have called it, by an interrupt, and wait for what it does about that.
"""


class Runner:
    """The thread, and the vCPUs it serves. `poke` makes running guest code come to the engine soon."""

    def __init__(self, poke: Callable[[], None]) -> None:
        self.cpus: list[UnicornCpu] = []
        self.closing = False
        self.attention = False
        """Guest code shall be left, for `_next` to look at all vCPUs. Set by any thread, cleared by the engine's."""
        self._poke = poke
        self._current: UnicornCpu | None = None  # whose code is being run
        self._began = 0  # when it was put in, in ns of host time
        self._last: UnicornCpu | None = None  # whose code was run last
        self._lender: UnicornCpu | None = None  # in whose turn the current one was called
        self._ready: list[UnicornCpu] = []  # those with code to run at the last look
        self._floor = 0  # ns: who has slept gets no more credit than this, by `UnicornCpu.used`
        self._thread: threading.Thread | None = None
        self._starting, self._started = threading.Lock(), False
        # A binary semaphore, released by who has something for the thread; only while it is `_waiting`.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._waiting = False
        self._slicer = _Slicer(self.contended, self._end_slice)

    # From any thread.

    def start(self) -> None:
        """Have the thread running. Ctrl-C in the middle of this leaves it to the next call."""
        if not self._started:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._main, name="iobus-unicorn", daemon=True)
                if not self._thread.is_alive():
                    self._thread.start()
                self._started = True

    def call(self, cpu: UnicornCpu, *, leave: bool = False) -> None:
        """There is something new at `cpu`, which it can take where it runs, or only outside guest code (`leave`)."""
        if cpu is not self._current:
            cpu.called = self.attention = True
        elif leave:
            self.attention = True
        self._poke()
        if self._waiting:
            self._ring()

    def close(self) -> None:
        """End the thread: guest code is left at the end of its block."""
        self.closing = self.attention = True
        if self._started and self._thread is not None:
            self._poke()
            self._ring()
            self._thread.join()
        self._slicer.close()

    def here(self) -> bool:
        """Whether the caller is on the engine's thread."""
        return threading.current_thread() is self._thread

    # On the engine's thread.

    def contended(self) -> bool:
        """Whether more than one vCPU had code to run at the last look."""
        return len(self._ready) > 1 and not self.closing

    def give_way(self, cpu: UnicornCpu) -> None:
        """Put `cpu` behind all others that have code to run."""
        cpu.used = max(self._floor, *(other.used for other in self._ready)) + 1
        self.attention = True

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait in a callback of the library's; of the vCPUs only those are served that have no code to run."""
        while True:
            self._waiting = True  # before looking: what comes from here on rings
            if done() or self.closing:
                break
            for cpu in self.cpus:
                if cpu.running and cpu is not self._current:
                    cpu.settle()
            self._bell.acquire()
        self._waiting = False

    def _main(self) -> None:
        while (cpu := self._next()) is not None:
            self._last = self._current = cpu
            began = self._began
            try:
                cpu.slice()
            except BaseException as exc:
                cpu.fail(exc)
            self._current = None
            cpu.used += time.perf_counter_ns() - began
            self._floor = max(self._floor, min(other.used for other in self._ready) - SLICE)

    def _next(self) -> UnicornCpu | None:
        """Hand over what vCPUs have for their callers; wait for one with code to run. None at the end."""
        while True:
            self._waiting = True  # before looking: what comes from here on rings
            self.attention = False
            self._ready = ready = [
                cpu for cpu in self.cpus if cpu.running and (cpu.called or not cpu.asleep) and cpu.settle()
            ]
            if self.closing:
                return None
            if ready:
                break
            self._bell.acquire()
        self._waiting = False
        if len(ready) > 1 and not self._slicer.running:
            self._slicer.start()
        chosen = ready[0] if len(ready) == 1 else min(ready, key=self._turn)
        chosen.used = max(chosen.used, self._floor)
        self._began = time.perf_counter_ns()  # before it is a loan: `_end_slice` looks at both
        if not chosen.called:
            self._lender = None
        elif chosen is not self._last:  # else it has not got to what it was called for: the loan is not used up
            self._lender = self._last if self._last in ready else None
        return chosen

    def _turn(self, cpu: UnicornCpu) -> int:
        """The least is next. Who was called goes before others that have run as much, and a slice more.

        Next comes who has lent its turn.
        """
        credit = SLICE if cpu.called else SLICE // 2 if cpu is self._lender else 0
        return max(cpu.used, self._floor) - credit

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:  # it rings already
            return

    def _end_slice(self) -> None:
        """Have the current vCPU's turn end, if it has run long enough. From any thread."""
        if time.perf_counter_ns() - self._began >= (SLICE if self._lender is None else LOAN):
            self.attention = True
            self._poke()


class _Slicer:
    """Calls `look` every `LOAN` ns while `wanted()`, on a thread of its own, made when first needed."""

    def __init__(self, wanted: Callable[[], bool], look: Callable[[], None]) -> None:
        self._wanted, self._look = wanted, look
        self._gate = threading.Lock()  # held while the thread has nothing to do
        self._gate.acquire()
        self.running = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run until no longer wanted. On the engine's thread."""
        self.running = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="iobus-slices", daemon=True)
            self._thread.start()
        if self._gate.locked():
            self._gate.release()

    def close(self) -> None:
        """End the thread; the engine's has ended."""
        self._closed.set()
        if self._thread is not None:
            self.start()
            self._thread.join()

    def _main(self) -> None:
        while not self._closed.is_set():
            self._gate.acquire()
            while self.running:
                self._closed.wait(LOAN / 1e9)
                if self._wanted():
                    self._look()
                else:
                    self.running = False
                    # Who wanted it just then may still have seen it running.
                    self.running = self._wanted()
