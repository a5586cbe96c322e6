"""A thread that waits for a machine's events and acts on them: what `Machine.watch` gives.

Beside `machine.py`; it stands on `doorbell.py`.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import Final

from iobus.doorbell import Event
from iobus.errors import RAISED, CallbackError
from iobus.lock import Lock


class WatchError(CallbackError):
    """A callback given to `Machine.watch` raised; the original exception is `__cause__`."""


class Watcher:
    """Calls what belongs to an event, with `lock` held, after rings. `fail` gets a `WatchError` of what that raises."""

    def __init__(self, lock: Lock, fail: Callable[[Exception], None]) -> None:
        self._lock: Final = lock
        self._fail = fail
        self._watched: dict[int, tuple[Event, Callable[[], object]]] = {}  # guarded by the lock
        self._epoll: select.epoll | None = None
        self._end: Event | None = None
        self._thread: threading.Thread | None = None

    def add(self, event: Event, call: Callable[[], object]) -> None:
        """Call `call()` after each ring, once for several that come together. Rings it already has count."""
        with self._lock:
            if self._epoll is None:
                self._epoll, self._end = select.epoll(), Event()
                self._epoll.register(self._end, select.EPOLLIN)
                self._thread = threading.Thread(target=self._main, name="iobus-events", daemon=True)
                self._thread.start()
            if event.fileno() in self._watched:
                raise ValueError(f"{event!r} is watched already")
            self._watched[event.fileno()] = event, call
            self._epoll.register(event, select.EPOLLIN)

    def remove(self, event: Event) -> None:
        """Call nothing for `event` any more, once this has returned."""
        with self._lock:
            if self._watched.pop(event.fileno(), None) is not None and self._epoll is not None:
                self._epoll.unregister(event)

    def settle(self) -> None:
        """Act, on this thread, on the rings that there are: for who leaves and must not miss what they lead to."""
        with self._lock:
            if self._thread is not None and self._epoll is not None:
                for fd, _ in self._epoll.poll(0):
                    self._act(fd)

    def close(self) -> None:
        """End the thread."""
        if self._thread is None or self._end is None or self._epoll is None:
            return
        self._end.ring()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        self._epoll.close()

    def _main(self) -> None:
        assert self._epoll is not None and self._end is not None
        end = self._end.fileno()
        while True:
            for fd, _ in self._epoll.poll():
                if fd == end:
                    return
                with self._lock:
                    self._act(fd)

    def _act(self, fd: int) -> None:
        """Call what belongs to the event `fd`, if it is rung. The lock is held."""
        event, call = self._watched.get(fd, (None, None))
        if event is None or call is None or not event.take():
            return
        try:
            call()
        except RAISED as exc:
            error = WatchError(f"watch({event!r}, {call!r}): {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._fail(error)
