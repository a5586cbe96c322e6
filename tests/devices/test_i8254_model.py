"""The 8254 and port 0x61 beside a model that ticks, and under any accesses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from i8254_rig import Bench


class Ticking:
    """A counter that ticks: what each CLK pulse does in each mode, literally. Counts are plain numbers."""

    def __init__(self) -> None:
        self.gate = False
        self.program(0)

    def program(self, mode: int) -> None:
        self.mode = mode
        self.out = mode != 0
        self.cr: int | None = None
        self.ce: int | None = None
        self.load = self.trigger = self.armed = self.half = False
        self.null = True
        self.odd = False

    def write(self, count: int) -> None:
        self.cr, self.null, self.half = count, True, False
        if self.mode in (0, 4) or (self.mode in (2, 3) and self.ce is None):
            self.load = True
        if self.mode == 0:
            self.out = False

    def first_byte(self) -> None:
        if self.mode == 0:
            self.half, self.out, self.armed = True, False, False

    def set_gate(self, level: bool) -> None:
        if level and not self.gate and self.cr is not None and self.mode in (1, 2, 3, 5):
            self.trigger = True
        if not level and self.mode in (2, 3) and not self.load:
            self.out = True
        self.gate = level

    def reload(self) -> None:
        assert self.cr is not None
        self.ce, self.null, self.armed = self.cr, False, True
        if self.mode == 3:
            self.odd = bool(self.cr & 1)
            self.ce -= self.odd
        self.load = self.trigger = False

    def clk(self, modulus: int) -> None:
        if self.load or self.trigger:
            was_triggered = self.trigger
            self.reload()
            if self.mode in (2, 3, 4, 5):
                self.out = True
            elif self.mode == 1 and was_triggered:
                self.out = False
            if self.mode == 0 and self.half:
                self.armed = False
            return
        if self.ce is None:
            return
        if self.mode in (0, 2, 3, 4) and not self.gate:
            return
        if self.mode == 0 and self.half:
            return
        if self.mode == 2:
            if self.ce == 1:
                self.reload()
                self.out = True
            else:
                self.ce -= 1
                self.out = self.ce != 1
        elif self.mode == 3:
            if self.ce == 0 or (self.ce == 2 and not (self.odd and self.out)):
                self.reload()
                self.out = not self.out
            else:
                self.ce -= 2
        else:
            self.ce = (self.ce - 1) % modulus
            if self.mode in (4, 5):
                self.out = True
            if self.ce == 0 and self.armed:
                self.armed = False
                self.out = self.mode in (0, 1)


OPERATION = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("gate"), st.integers(0, 1)),
    st.tuples(st.just("count"), st.integers(2, 9)),
    st.tuples(st.just("first"), st.integers(2, 9)),
    st.tuples(st.just("program"), st.integers(0, 7)),
)


BEGIN = st.tuples(
    st.tuples(st.just("program"), st.integers(0, 7)),
    st.tuples(st.just("gate"), st.just(1)),
    st.tuples(st.just("count"), st.integers(2, 9)),
    st.tuples(st.just("step"), st.integers(1, 12)),
).map(list)
"""A counter at work: histories that go on from here find more than those that begin with nothing."""
HISTORY = st.builds(list.__add__, BEGIN, st.lists(OPERATION, max_size=40))


@settings(max_examples=300, deadline=None)
@given(st.booleans(), HISTORY)
def test_the_lazy_counter_equals_a_ticking_one(bcd: bool, operations: list[tuple[str, int]]) -> None:
    """Any mode, counts, gates and times: count, OUT and NULL COUNT are those of a counter that ticks."""
    bench, model, modulus = Bench(), Ticking(), 10_000 if bcd else 65_536
    bench.control(0xB0 | bcd)
    half = False
    for what, number in operations:
        if what == "gate":
            bench.pit.gate2(bool(number))
            model.set_gate(bool(number))
        elif what == "program":
            bench.control(0xB0 | number << 1 | bcd)
            model.program(number & 3 if number > 5 else number)
            half = False
        elif what == "first":
            if not half:
                bench.pit.write(2, 1, number)
                model.first_byte()
                half, low = True, number
        elif what == "count":
            if not half:
                bench.pit.write(2, 1, number)
                model.first_byte()
                low = number
            bench.pit.write(2, 1, 0)
            model.write(low)
            half = False
        else:
            for _ in range(number):
                model.clk(modulus)
            bench.step(number)
        assert bench.pit.output2() == model.out, f"OUT after {what} {number}"
        assert bool(bench.status(2) & 0x40) == model.null, f"NULL COUNT after {what} {number}"
        shown = bench.count(2)
        if model.ce is not None:
            assert shown == (int(str(model.ce), 16) if bcd else model.ce), f"count after {what} {number}"


@settings(deadline=None)
@given(HISTORY)
def test_the_line_follows_every_edge(operations: list[tuple[str, int]]) -> None:
    """Counter 0's line rises at each pulse where a ticking counter's OUT does, and never else."""
    bench, model, expected = Bench(), Ticking(), []
    model.set_gate(True)
    bench.control(0x30)
    pulse, out = 0, False
    for what, number in operations:
        if what in ("gate", "first"):  # counter 0's GATE is tied high
            continue
        if what == "program":
            bench.control(0x30 | number << 1)
            model.program(number & 3 if number > 5 else number)
        elif what == "count":
            bench.pit.write(0, 1, number)
            bench.pit.write(0, 1, 0)
            model.first_byte()
            model.write(number)
        else:
            bench.step(number)
        for _ in range(number if what == "step" else 1):
            if what == "step":
                model.clk(65_536)
                pulse += 1
            if model.out and not out:
                expected.append(pulse)
            out = model.out
    assert bench.rises() == expected


ACCESS = st.tuples(st.integers(0, 7), st.sampled_from([1, 2, 4, 8]), st.none() | st.integers(0, 2**64 - 1))
STEP = st.tuples(st.just(-1), st.just(1), st.integers(0, 300_000))
PORT61 = st.tuples(st.just(-2), st.just(1), st.none() | st.integers(0, 255))


@settings(deadline=None)
@given(st.lists(st.one_of(ACCESS, STEP, PORT61), max_size=30))
def test_fuzz(steps: list[tuple[int, int, int | None]]) -> None:
    """Whatever a guest does: values fit, no time loops, and restored devices have the same state and line."""
    bench = Bench()
    for offset, size, value in steps:
        if offset == -1:
            assert value is not None
            bench.clock.advance(value)
        elif offset == -2:
            if value is None:
                assert 0 <= bench.port61.read(0, 1) < 256
            else:
                bench.port61.write(0, 1, value)
        elif value is None:
            assert 0 <= bench.pit.read(offset, size) < 1 << 8 * size
        else:
            bench.pit.write(offset, size, value & (1 << 8 * size) - 1)
    saved, saved61 = bench.pit.save(), bench.port61.save()
    other = Bench(start_ns=bench.clock.now())
    other.pit.restore(saved)
    other.port61.restore(saved61)
    assert (other.pit.save(), other.port61.save()) == (saved, saved61)
    assert other.line.level == bench.line.level
    assert other.clock.next_deadline() == bench.clock.next_deadline()
