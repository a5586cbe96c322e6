"""The machine's lock: what `threading.RLock` promises, and the short way that an engine's accesses take."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from threading import get_ident

import pytest

from iobus.lock import Lock


@pytest.fixture
def busy_switching() -> Iterator[None]:
    """Threads take turns as often as they can, so that every gap between two operations is met."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_thread(lock: Lock) -> tuple[threading.Thread, threading.Event]:
    """A thread that takes the lock, and an event for when it has it."""
    has = threading.Event()

    def take() -> None:
        with lock:
            has.set()

    thread = threading.Thread(target=take)
    thread.start()
    return thread, has


def until_waiting(lock: Lock, count: int = 1) -> None:
    """Return when so many threads wait for the lock."""
    while len(lock.waiting) < count:
        time.sleep(0.001)


def test_its_owner_may_take_it_again_and_leaves_it_as_often() -> None:
    """Another thread gets it only after the last `release`."""
    lock = Lock()
    lock.acquire()
    with lock:
        assert lock.held()
    thread, has = in_thread(lock)
    until_waiting(lock)
    assert lock.held() and not has.is_set()
    lock.release()
    thread.join()
    assert has.is_set() and not lock.held()


def test_who_does_not_have_it_cannot_release_it() -> None:
    """Neither when it is free nor when another thread has it."""
    lock = Lock()
    with pytest.raises(RuntimeError, match="does not hold it"):
        lock.release()
    lock.acquire()
    refused = []

    def release() -> None:
        try:
            lock.release()
        except RuntimeError as exc:
            refused.append(exc)

    thread = threading.Thread(target=release)
    thread.start()
    thread.join()
    assert len(refused) == 1 and lock.held()


def test_an_exception_leaves_it() -> None:
    """As any context manager."""
    lock = Lock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.held()
    thread, has = in_thread(lock)
    thread.join()
    assert has.is_set()


def test_those_that_wait_get_it_in_turn() -> None:
    """Each release wakes one, and the last that waited is served too."""
    lock = Lock()
    lock.acquire()
    threads = [in_thread(lock) for _ in range(5)]
    until_waiting(lock, 5)
    lock.release()
    for thread, has in threads:
        thread.join(timeout=30)
        assert has.is_set()
    assert not lock.waiting


def test_ctrl_c_ends_a_wait_and_the_lock_goes_to_the_next() -> None:
    """Who is interrupted waits no more, does not have the lock, and takes no other's turn with it."""
    lock = Lock()
    main = threading.main_thread().ident
    assert main is not None
    taken, go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            until_waiting(lock)
            signal.pthread_kill(main, signal.SIGINT)
            go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    assert not lock.held() and not lock.waiting
    thread, has = in_thread(lock)
    until_waiting(lock)
    go.set()
    holder.join()
    thread.join(timeout=30)
    assert has.is_set()


def test_ctrl_c_at_any_moment_of_taking_it_loses_no_token() -> None:
    """Signals come all the time, at any step of `acquire`; afterwards another thread can have the lock."""
    lock = Lock()

    class Come(Exception):
        pass

    def come(*_: object) -> None:
        raise Come

    before = signal.signal(signal.SIGALRM, come)
    interrupted, end = 0, time.monotonic() + 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
        while time.monotonic() < end:
            try:
                for _ in range(100):
                    lock.acquire()
                    lock.release()
            except Come:
                interrupted += 1
            while lock.held():  # it came behind the taking, or before the leaving
                try:
                    lock.release()
                except Come:
                    interrupted += 1
    except Come:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    while lock.held():
        lock.release()
    assert interrupted
    thread, has = in_thread(lock)
    thread.join(timeout=30)
    assert has.is_set()


def test_a_condition_on_it_leaves_it_whole_while_it_waits() -> None:
    """However often its owner has taken it; afterwards it has it as often again."""
    lock = Lock()
    condition = threading.Condition(lock)
    waits, done = threading.Event(), []

    def wait() -> None:
        with lock, condition:
            waits.set()
            done.append(condition.wait(timeout=30))
            lock.release()
            done.append(lock.held())
            lock.acquire()

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait()
    with condition:
        condition.notify()
    thread.join(timeout=30)
    assert done == [True, True]
    with pytest.raises(RuntimeError):
        lock.release()


def test_one_at_a_time_has_it_by_either_way(busy_switching: None) -> None:
    """Threads that use `with`, and one that takes the token by itself, never meet inside, and all come to their end."""
    lock = Lock()
    rounds, count, inside, met = 3_000, 0, 0, 0

    def body() -> None:
        nonlocal count, inside, met
        inside += 1
        met += inside > 1
        count += 1
        inside -= 1

    def plain() -> None:
        for _ in range(rounds):
            with lock, lock:
                body()

    def by_itself() -> None:
        me = get_ident()
        for _ in range(rounds):
            try:
                lock.take()
            except IndexError:
                lock.wait()
            lock.owner = me
            try:
                with lock:  # what a device may do in its callback
                    body()
            finally:
                lock.owner = 0
                lock.give(True)
                if lock.waiting:
                    lock.wake()

    threads = [threading.Thread(target=target) for target in (plain, plain, plain, by_itself)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert (count, met) == (4 * rounds, 0)
    assert not lock.waiting and not lock.held()
