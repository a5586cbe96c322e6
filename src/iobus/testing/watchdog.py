"""A time limit for devices: one that does not answer gets an exception where it hangs, and the test an error.

Stands on `path.py`, which tells what is under way, and `hung.py`, which tells where. One thread watches all machines
of the tests. In the main thread the exception comes by a signal, which also ends a wait; in another one as soon as
that runs Python code.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from time import perf_counter_ns
from typing import Final, NamedTuple

from iobus.bus import IobusError
from iobus.hung import where
from iobus.machine import Machine
from iobus.path import AccessPath, UnderWay

SECONDS: Final = 10.0
"""How long a device has for an access, and its timers for a step of time, unless a test says otherwise."""

_TICK: Final = 0.05  # seconds between two looks
_SIGNAL: Final = signal.SIGRTMIN + 5  # nobody's
_MAIN: Final = threading.main_thread()


class DeviceTimeoutError(IobusError):
    """Raised in a device, or a timer's callback, that takes longer than its time limit; it says where that was."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or _messages.pop(threading.get_ident(), "no answer in time"))


class StuckDeviceError(BaseException):
    """The same for a device that went on after a `DeviceTimeoutError`: `except Exception` does not catch it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or _messages.pop(threading.get_ident(), "no answer in time"))


class DeviceHungError(IobusError):
    """Raised in the main thread when a device waits on an engine's thread, where nothing ends it.

    The machine is given up: it cannot be run on, nor closed.
    """


class Step(NamedTuple):
    """A stretch of time that timers are fired in."""

    thread: int
    started: int
    """In ns of `time.perf_counter_ns`."""


class Watch:
    """The time limit of one machine, from `start` to `stop`."""

    def __init__(self, machine: Machine) -> None:
        self.seconds = SECONDS
        """How long an access, or a step of time, may take."""
        self.step: Step | None = None
        self._machine: Final = machine
        self._paths: Final[tuple[AccessPath, ...]] = tuple(
            path for vcpu in machine.vcpus for path in (vcpu.mmio_path, vcpu.pio_path)
        )
        self._warned: UnderWay | Step | None = None
        self._next = 0
        self._times = 0

    def start(self) -> None:
        """Watch from now on."""
        _watchdog.add(self)

    def stop(self) -> None:
        """Watch no more."""
        _watchdog.remove(self)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Watch what is done meanwhile as a step of time."""
        self.step = Step(threading.get_ident(), perf_counter_ns())
        try:
            yield
        finally:
            self.step = None

    def under_way(self) -> UnderWay | Step | None:
        """What has been going on for longest, where it is over the limit."""
        now = perf_counter_ns()
        found = [item for item in (self.step, *(path.under_way for path in self._paths)) if item is not None]
        late = [item for item in found if now - item.started > self.seconds * 1e9]
        return min(late, key=lambda item: item.started, default=None)

    def is_under_way(self, what: UnderWay | Step) -> bool:
        """Whether it has not come to its end yet."""
        return what is self.step or any(what is path.under_way for path in self._paths)

    def _hangs(self, late: UnderWay) -> bool:
        """Whether two exceptions have not ended it, on a thread on which they do not end a wait."""
        on_engine = self._machine.engine is not None and late.thread != _MAIN.ident
        return on_engine and _watchdog.signals and self._times > 2

    def look(self) -> None:
        """Raise in the thread of what is over the limit; again each time as long passes as the limit is."""
        late = self.under_way()
        if late is None:
            return
        if late is not self._warned:
            self._warned, self._next, self._times = late, 0, 0
        if perf_counter_ns() < self._next:
            return
        self._next = perf_counter_ns() + int(self.seconds * 1e9)
        self._times += 1
        kind: type[DeviceTimeoutError | StuckDeviceError] = DeviceTimeoutError if self._times == 1 else StuckDeviceError
        message = f"no answer after {self.seconds:g} s, at {where(late.thread)}"
        if isinstance(late, UnderWay) and self._hangs(late):
            self._machine.hung = True
            name = type(late.region.device).__name__
            what = f"{name} at address {late.address:#x}: {message}; nothing ends it there, so the machine is given up"
            _watchdog.pending = self, late, DeviceHungError(what)
            signal.pthread_kill(_MAIN.ident or 0, _SIGNAL)
        elif late.thread == _MAIN.ident and _watchdog.signals:
            _watchdog.pending = self, late, kind(message)
            signal.pthread_kill(late.thread, _SIGNAL)
        else:
            _messages[late.thread] = message
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(late.thread), ctypes.py_object(kind))


_messages: dict[int, str] = {}  # by thread: what an exception says that is raised there without arguments


class _Watchdog:
    """The thread that looks at each `Watch`."""

    def __init__(self) -> None:
        self.signals = False
        """Whether the main thread is told by a signal."""
        self.pending: tuple[Watch, UnderWay | Step, BaseException] | None = None
        # Guards the rest; a leaf.
        self._change = threading.Condition()
        self._watches: tuple[Watch, ...] = ()
        self._thread: threading.Thread | None = None

    def add(self, watch: Watch) -> None:
        if self._thread is None:
            if threading.current_thread() is _MAIN:
                signal.signal(_SIGNAL, self._signalled)
                self.signals = True
            self._thread = threading.Thread(target=self._main, name="iobus-watchdog", daemon=True)
            self._thread.start()
        with self._change:
            self._watches = (*self._watches, watch)
            self._change.notify()

    def remove(self, watch: Watch) -> None:
        with self._change:
            self._watches = tuple(other for other in self._watches if other is not watch)

    def _main(self) -> None:
        tick = threading.Event()
        while True:
            with self._change:
                self._change.wait_for(lambda: self._watches)
            self._look()
            tick.wait(_TICK)

    def _look(self) -> None:  # apart from `_main`, whose variables would keep machines alive
        for watch in self._watches:
            watch.look()

    def _signalled(self, *_: object) -> None:
        """In the main thread: raise, if what is meant is still going on."""
        pending, self.pending = self.pending, None
        if pending is not None and pending[0].is_under_way(pending[1]):
            raise pending[2]


_watchdog: Final = _Watchdog()
