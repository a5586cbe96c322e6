"""The HPET beside a model that ticks, and under any accesses."""

from __future__ import annotations

from hpet_rig import CFG, CMP, ENABLE, LEVEL, MODE32, ONES, PERIODIC, ROUTE, VAL_SET, Bench
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.devices import hpet as h


class Ticking:
    """One timer that ticks: the specification's words done at each count. The counter starts at 0, running."""

    def __init__(self) -> None:
        self.counter, self.comparator, self.last = 0, ONES, 0
        self.periodic = self.mode32 = self.val_set = False
        self.matches = 0

    @property
    def mask(self) -> int:
        return 0xFFFFFFFF if self.mode32 else ONES

    def configure(self, value: int) -> None:
        self.periodic, self.val_set = bool(value & PERIODIC), bool(value & VAL_SET)
        changed, self.mode32 = self.mode32 != bool(value & MODE32), bool(value & MODE32)
        if changed:
            self.comparator &= self.mask
            self.last &= self.mask
            self.compare()

    def write(self, value: int) -> None:
        self.last = value & self.mask
        if not self.periodic or self.val_set:
            self.comparator = self.last
            self.compare()
        self.val_set = False

    def compare(self) -> None:
        if self.counter & self.mask == self.comparator:
            self.matches += 1
            if self.periodic:
                self.comparator = self.comparator + self.last & self.mask

    def tick(self) -> None:
        self.counter = self.counter + 1 & ONES
        self.compare()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(1, 40)),
            st.tuples(st.just("compare"), st.integers(0, 60)),
            st.tuples(st.just("ahead"), st.integers(0, 20)),
            st.tuples(
                st.just("configure"), st.sampled_from([0, PERIODIC, PERIODIC | VAL_SET, MODE32, PERIODIC | MODE32])
            ),
            st.tuples(st.just("configure"), st.just(PERIODIC | VAL_SET | MODE32)),
        ),
        max_size=25,
    ),
    st.sampled_from([0, (1 << 32) - 50, ONES - 50]),
)
def test_the_lazy_timer_equals_a_ticking_one(operations: list[tuple[str, int]], start: int) -> None:
    """Any modes, comparators and times, also over the wraps: matches and comparator are those of one that ticks."""
    bench, model = Bench(), Ticking()
    bench.put(h.COUNTER, start)
    model.counter = start
    bench.put(CFG, ENABLE | LEVEL | ROUTE, 0)
    bench.run()
    if start == ONES:
        model.compare()
    for what, number in operations:
        before = model.matches
        bench.put(h.STATUS, 1)
        if what == "step":
            for _ in range(number):
                model.tick()
            bench.step(number)
        elif what == "configure":
            bench.put(CFG, ENABLE | LEVEL | ROUTE | number, 0)
            model.configure(number)
        else:
            value = number if what == "compare" else model.counter + number & ONES
            bench.put(CMP, value, 0)
            model.write(value)
        assert bench.get(CMP, 0) == model.comparator, f"comparator after {what} {number}"
        assert bench.get(h.STATUS) & 1 == (model.matches > before), f"status after {what} {number}"


REGISTERS = [0x000, 0x010, 0x020, 0x0F0, *(0x100 + 0x20 * timer + at for timer in range(3) for at in (0, 8, 16))]
ACCESS = st.tuples(
    st.sampled_from(REGISTERS) | st.integers(0, 0x3FF),
    st.sampled_from([1, 2, 4, 8]),
    st.none() | st.sampled_from([0, 1, 2, 3, 0x2804, 0x2804 | 0x4A, 0x6806, 0x284E, 1000, ONES]) | st.integers(0, ONES),
)
STEP = st.tuples(st.just(-1), st.just(1), st.integers(0, 100_000) | st.integers(0, 1 << 40))


@settings(deadline=None)
@given(st.lists(st.one_of(ACCESS, ACCESS, STEP), max_size=40))
def test_fuzz(steps: list[tuple[int, int, int | None]]) -> None:
    """Whatever a guest does: values fit, no time loops, and a restored HPET has the same state and lines."""
    bench = Bench()
    for offset, size, value in steps:
        if offset == -1:
            assert value is not None
            bench.clock.advance(min(value, 10_000_000))
            bench.clock._now += value
        elif value is None:
            assert 0 <= bench.hpet.read(offset, size) < 1 << 8 * size
        else:
            bench.hpet.write(offset, size, value & (1 << 8 * size) - 1)
    bench.clock.run_due()
    saved = bench.hpet.save()
    other = Bench(start_ns=bench.clock.now())
    other.hpet.restore(saved)
    assert other.hpet.save() == saved
    assert other.high() == bench.high()
    assert other.replaced[-1] == (saved["configuration"] == 3)
