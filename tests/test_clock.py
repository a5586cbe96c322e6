"""Guest time and timers: order, coalescing, arming anew, and what a guest's endless arming may cost."""

from __future__ import annotations

import enum
import re
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.clock import Clock, RealClock, SteppedClock, Timer, TimerError


def test_a_stepped_clock_stands_still() -> None:
    """Time is 0 at first and passes by `advance` only, never back."""
    clock = SteppedClock()
    assert clock.now() == 0
    clock.advance(5)
    clock.advance(0)
    assert clock.now() == 5
    with pytest.raises(ValueError, match="cannot advance by -1 ns: time does not go back"):
        clock.advance(-1)


def test_timers_fire_at_their_own_deadlines_in_order() -> None:
    """One `advance` over several deadlines fires each with the clock at its deadline, equal ones as they were armed."""
    clock = SteppedClock()
    fired: list[tuple[str, int]] = []

    def timer(name: str) -> Timer:
        return clock.timer(lambda: fired.append((name, clock.now())), name)

    for name, deadline in (("c", 30), ("a", 10), ("b2", 20), ("b1", 20), ("late", 101)):
        timer(name).arm(deadline)
    assert clock.next_deadline() == 10
    clock.advance(100)
    assert fired == [("a", 10), ("b2", 20), ("b1", 20), ("c", 30)]
    assert clock.now() == 100 and clock.next_deadline() == 101


def test_a_timer_fires_once() -> None:
    """After firing a timer is idle until it is armed again."""
    clock = SteppedClock()
    fired: list[int] = []
    timer = clock.timer(lambda: fired.append(clock.now()))
    timer.arm(10)
    clock.advance(100)
    assert fired == [10] and timer.deadline is None
    timer.arm(50)  # already past: soon
    clock.advance(0)
    assert fired == [10, 100]


def test_arming_anew_replaces_the_earlier_arming() -> None:
    """Earlier or later, the latest arming counts; `cancel` disarms, and the same deadline may be armed again."""
    clock = SteppedClock()
    fired: list[int] = []
    timer = clock.timer(lambda: fired.append(clock.now()))
    timer.arm(10)
    timer.arm(30)
    clock.advance(20)
    assert fired == []
    timer.arm(25)
    clock.advance(20)
    assert fired == [25]
    timer.arm(50)
    timer.cancel()
    assert clock.next_deadline() is None
    clock.advance(20)
    assert fired == [25]
    timer.arm(100)
    timer.cancel()
    timer.arm(100)
    timer.arm(100)
    clock.advance(100)
    assert fired == [25, 100]


def test_arming_at_the_deadline_it_has_keeps_a_timers_place() -> None:
    """Of equal deadlines the first armed fires first; a place is lost only by another deadline in between."""
    clock = SteppedClock()
    fired: list[str] = []
    a, b, c = (clock.timer(lambda name=name: fired.append(name), name) for name in "abc")
    for timer in (a, b, c):
        timer.arm(10)
    a.arm(10)
    clock.advance(10)
    assert fired == ["a", "b", "c"]
    for timer in (a, b, c):
        timer.arm(20)
    a.arm(15)
    a.arm(20)
    b.cancel()
    b.arm(20)
    clock.advance(10)
    assert fired[3:] == ["c", "a", "b"]
    for timer in (c, b, a):
        timer.arm(30)
    c.arm(29)
    c.arm(30)
    b.arm(30)
    clock.advance(10)
    assert fired[6:] == ["b", "a", "c"]


def test_a_periodic_timer_keeps_its_period() -> None:
    """A timer that arms itself for its next deadline fires at each of them in one `advance`."""
    clock = SteppedClock()
    fired: list[int] = []

    def fire() -> None:
        fired.append(clock.now())
        timer.arm(clock.now() + 10)

    timer = clock.timer(fire)
    timer.arm(10)
    clock.advance(35)
    assert fired == [10, 20, 30]


def test_a_callback_may_cancel_and_arm_others() -> None:
    """What a callback cancels does not fire, even if it was due; what it arms within the step fires in its turn."""
    clock = SteppedClock()
    fired: list[tuple[str, int]] = []
    b = clock.timer(lambda: fired.append(("b", clock.now())))
    c = clock.timer(lambda: fired.append(("c", clock.now())))

    def fire() -> None:
        fired.append(("a", clock.now()))
        b.cancel()
        c.arm(15)

    clock.timer(fire).arm(10)
    b.arm(10)
    c.arm(10)
    clock.advance(20)
    assert fired == [("a", 10), ("c", 15)]


class Hand(Clock):
    """A clock whose time a test sets."""

    time = 0

    def now(self) -> int:
        return self.time


def test_run_due_fires_each_due_timer_once() -> None:
    """A timer that arms itself for a past time waits for the next call, and does not keep others from firing."""
    clock = Hand()
    fired: list[str] = []

    def restless() -> None:
        fired.append("restless")
        assert len(fired) < 100, "run_due does not end"
        timer.arm(clock.now() - 5)

    timer = clock.timer(restless)
    timer.arm(1)
    for index in range(3):
        clock.timer(lambda index=index: fired.append(str(index))).arm(10 + index)
    clock.time = 11
    clock.run_due()
    assert fired == ["restless", "0", "1"]
    assert clock.next_deadline() == 6
    clock.run_due()
    assert fired == ["restless", "0", "1", "restless"]
    timer.cancel()
    assert clock.next_deadline() == 12


def test_a_failing_timer_is_named_and_the_others_stay_armed() -> None:
    """`TimerError` names the timer and its deadline and carries the cause; what was due next still fires."""
    clock = SteppedClock()
    fired: list[int] = []

    def boom() -> None:
        other.arm(0)
        raise RuntimeError("boom")

    other = clock.timer(lambda: fired.append(0))
    clock.timer(boom, "RTC update").arm(10)
    clock.timer(lambda: fired.append(1)).arm(10)
    with pytest.raises(TimerError, match="timer 'RTC update' due at 10 ns: RuntimeError: boom") as caught:
        clock.advance(20)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert clock.now() == 10
    clock.advance(10)
    assert sorted(fired) == [0, 1]


def test_on_earlier_is_called_when_the_next_deadline_came_closer() -> None:
    """Whoever sleeps until the next deadline is told of an earlier one, and of none that is not."""
    clock = SteppedClock()
    told: list[int] = []
    clock.on_earlier = told.append
    first, second = clock.timer(lambda: None), clock.timer(lambda: None)
    first.arm(100)
    second.arm(200)
    second.arm(50)
    second.arm(50)
    first.arm(50)
    first.arm(49)
    assert told == [100, 50, 49]
    second.cancel()
    first.cancel()
    first.arm(1000)
    assert told[-1] == 1000


def test_endless_arming_does_not_grow_the_clock() -> None:
    """A guest that arms a timer anew without end, behind an earlier one of another device, costs no memory."""
    clock = SteppedClock()
    clock.timer(lambda: None).arm(5)
    timer = clock.timer(lambda: None)
    for deadline in range(10, 100_000):
        timer.arm(deadline)
        timer.cancel()
        timer.arm(deadline)
    assert len(clock._heap) < 1000
    many = [clock.timer(lambda: None) for _ in range(1000)]
    for index, one in enumerate(many):
        one.arm(index)
    assert clock.next_deadline() == 0
    clock.advance(100_000)
    assert clock.next_deadline() is None


def test_timers_show_their_state() -> None:
    """`repr` names the timer and its deadline."""
    timer = SteppedClock().timer(lambda: None, "PIT")
    assert repr(timer) == "<Timer 'PIT' idle>"
    timer.arm(7)
    assert repr(timer) == "<Timer 'PIT' at 7 ns>"


def test_the_real_clock_follows_the_host() -> None:
    """It starts near 0 and does not go back; timers fire when `run_due` is called after their deadline."""
    clock = RealClock()
    fired: list[int] = []
    clock.timer(lambda: fired.append(1)).arm(2_000_000)
    first = clock.now()
    assert 0 <= first < 1_000_000_000
    time.sleep(0.003)
    assert clock.now() >= first + 3_000_000
    clock.run_due()
    assert fired == [1]


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("arm"), st.integers(0, 4), st.integers(-2, 12) | st.integers(-5, 60)),
            st.tuples(st.just("cancel"), st.integers(0, 4), st.just(0)),
            st.tuples(st.just("advance"), st.just(0), st.integers(0, 30)),
        ),
        max_size=60,
    ),
    periods=st.lists(st.none() | st.integers(1, 9), min_size=5, max_size=5),
)
def test_any_sequence_fires_what_a_list_of_deadlines_says(
    steps: list[tuple[str, int, int]], periods: list[int | None]
) -> None:
    """Beside a plain list searched for its least deadline: the same timers, at the same times, in the same order."""
    clock = SteppedClock()
    fired: list[tuple[int, int]] = []
    expected: list[tuple[int, int]] = []
    armed: dict[int, tuple[int, int]] = {}  # timer -> (deadline, how manieth arming)
    now = armings = 0

    def callback(index: int) -> None:
        fired.append((index, clock.now()))
        period = periods[index]
        if period is not None:
            timers[index].arm(clock.now() + period)

    timers = [clock.timer(lambda index=index: callback(index)) for index in range(5)]
    for verb, index, amount in steps:
        armings += 1
        if verb == "arm":
            timers[index].arm(now + amount)
            if index not in armed or armed[index][0] != now + amount:
                armed[index] = now + amount, armings
        elif verb == "cancel":
            timers[index].cancel()
            armed.pop(index, None)
        else:
            clock.advance(amount)
            target = now + amount
            while armed and min(armed.values())[0] <= target:
                due = min(armed, key=lambda timer: armed[timer])
                now = max(now, armed.pop(due)[0])
                expected.append((due, now))
                period = periods[due]
                if period is not None:
                    armings += 1
                    armed[due] = now + period, armings
            now = target
        assert fired == expected
        assert clock.next_deadline() == (min(armed.values())[0] if armed else None)


def test_call_soon_is_called_where_timers_fire() -> None:
    """What other threads give is called in order, before timers, by the next `advance`; what it gives waits for one."""
    clock = SteppedClock()
    done: list[str] = []

    def first() -> None:
        done.append("first")
        clock.call_soon(lambda: done.append("later"))

    clock.timer(lambda: done.append("timer")).arm(0)
    thread = threading.Thread(target=lambda: (clock.call_soon(first), clock.call_soon(lambda: done.append("second"))))
    thread.start()
    thread.join()
    assert done == []
    clock.advance(0)
    assert done == ["first", "second", "timer"]
    clock.advance(0)
    assert done[3:] == ["later"]


def test_call_soon_that_raises() -> None:
    """The error names the callback and has the cause; what was given behind it is called by the next `advance`."""
    clock = SteppedClock()
    done: list[str] = []

    def broken() -> None:
        raise KeyError("no packet")

    clock.call_soon(broken)
    clock.call_soon(lambda: done.append("behind"))
    with pytest.raises(TimerError, match=r"call_soon.*broken.*KeyError: 'no packet'") as caught:
        clock.advance(0)
    assert isinstance(caught.value.__cause__, KeyError)
    clock.advance(0)
    assert done == ["behind"]


def test_a_closed_timer_never_fires() -> None:
    """Neither as it is armed, nor when whoever has it arms it again; the clock knows the timers that somebody has."""
    clock, fired = SteppedClock(), []
    timer = clock.timer(lambda: fired.append(1))
    assert set(clock.timers) == {timer}
    timer.arm(10)
    timer.close()
    timer.arm(20)
    clock.advance(100)
    assert fired == [] and clock.next_deadline() is None


@pytest.mark.parametrize("bad", ["x", 1.5, None, True, b"1"])
def test_a_time_is_an_int(bad: object) -> None:
    """`arm` and `advance` refuse anything else at the call, and the clock and its other timers go on."""
    clock, fired = SteppedClock(), []
    timer = clock.timer(lambda: fired.append(clock.now()), "tick")
    timer.arm(10)
    with pytest.raises(TypeError, match=re.escape(f"timer 'tick': arm(deadline) takes ns as an int, not {bad!r}")):
        timer.arm(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=re.escape(f"advance(ns) takes ns as an int, not {bad!r}")):
        clock.advance(bad)  # type: ignore[arg-type]
    clock.advance(10)
    assert fired == [10]


def test_a_time_may_be_a_kind_of_int() -> None:
    """An `IntEnum`'s member, say, which a register map may have for a period."""
    clock, fired = SteppedClock(), []

    class Period(enum.IntEnum):
        SHORT = 7

    clock.timer(lambda: fired.append(clock.now())).arm(Period.SHORT)
    clock.advance(Period.SHORT)
    assert fired == [7]


def test_a_timer_that_exits_is_its_error() -> None:
    """A `sys.exit` in a callback ends nothing but the callback."""
    clock = SteppedClock()
    clock.timer(lambda: sys.exit(3), "quitter").arm(1)
    with pytest.raises(TimerError, match="timer 'quitter' due at 1 ns: SystemExit: 3"):
        clock.advance(1)
    clock.call_soon(sys.exit)
    with pytest.raises(TimerError, match="SystemExit"):
        clock.advance(0)
