"""The machine's lock: reentrant, and cheap where nobody else wants it. The ground floor; it imports nothing of iobus.

It is taken and left at every access of a guest to a device, nearly always with nobody waiting. There
`threading.RLock` costs as much as several calls of Python functions, for it parses arguments and asks the time; a
token in a list costs a third of that. `list.pop` and `list.append` are atomic: whoever pops the token has the lock.
"""

from __future__ import annotations

import threading
from collections import deque
from threading import get_ident
from typing import Final


class Lock:
    """A lock that the thread which has it may take again; `with lock:` holds it.

    An access path that is never entered again by the thread that is in it may do by itself what `acquire` and
    `release` do, and save the calls:

        try:
            lock.take()
        except IndexError:
            lock.wait()
        lock.owner = me  # threading.get_ident()
        try:
            ...
        finally:
            lock.owner = 0
            lock.give(True)
            if lock.waiting:
                lock.wake()
    """

    __slots__ = ("_depth", "_token", "give", "owner", "take", "waiting")

    def __init__(self) -> None:
        token = [True]
        self._token = (token,)
        self.take: Final = token.pop
        self.give: Final = token.append
        self.owner = 0
        """The `threading.get_ident` of who has it; a thread can only tell by it whether it is its own."""
        self.waiting: Final[deque[threading.Lock]] = deque()
        """What each waiting thread sleeps on; the first is woken first."""
        self._depth = 0  # how often the owner has taken it again

    def acquire(self) -> None:
        """Take the lock, waiting for it where another thread has it."""
        me = get_ident()
        if self.owner == me:
            self._depth += 1
            return
        taken: list[bool] = []
        try:
            # By one call from C, which no signal can come into: Ctrl-C finds the token here or there.
            taken.extend(map(list.pop, self._token))
        except IndexError:
            self.wait()
        except BaseException:
            if taken:
                self.give(True)
                self.wake()
            raise
        self.owner = me

    def release(self) -> None:
        """Leave it once for each time it was taken. Raises `RuntimeError` where the caller does not have it."""
        if self.owner != get_ident():
            raise RuntimeError("the machine's lock is released by a thread that does not hold it")
        if self._depth:
            self._depth -= 1
            return
        self.owner = 0
        try:
            self.give(True)
        finally:
            if self.waiting:
                self.wake()

    def held(self) -> bool:
        """Whether the calling thread has it."""
        return self.owner == get_ident()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    # What a `threading.Condition` on it calls: a device may wait on one, and others have the lock meanwhile.

    _is_owned = held

    def _release_save(self) -> int:
        depth, self._depth = self._depth, 0
        self.release()
        return depth

    def _acquire_restore(self, depth: int) -> None:
        self.acquire()
        self._depth = depth

    # What the short way calls where it cannot be short.

    def wait(self) -> None:
        """Take the token once it is there."""
        bell = threading.Lock()
        bell.acquire()
        taken: list[bool] = []
        try:
            while True:
                # Before the look: who gives the token back after it then sees that somebody waits.
                self.waiting.append(bell)
                try:
                    taken.extend(map(list.pop, self._token))
                    break
                except IndexError:
                    bell.acquire()  # released by `wake`, which took it from `waiting`
        except BaseException:  # Ctrl-C
            if taken:
                self.give(True)
            if not self._withdraw(bell) or taken:
                self.wake()  # it was woken, or has given back what it took: another may look
            raise
        self._withdraw(bell)  # where it was woken meanwhile, leaving the lock wakes the next

    def wake(self) -> None:
        """Have the first that waits look again; the token was given back."""
        try:
            self.waiting.popleft().release()
        except IndexError:
            return  # it has stopped waiting

    def _withdraw(self, bell: threading.Lock) -> bool:
        try:
            self.waiting.remove(bell)
        except ValueError:
            return False
        return True
