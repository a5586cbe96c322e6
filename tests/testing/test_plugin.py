"""The pytest plugin as a project has it that only installed iobus: fixtures, and what a failed test says."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

DEVICE = """
from iobus.registers import RW, Field, Register, RegisterBank

class Control(Register):
    ENABLE = Field(0, RW)

class Status(Register):
    READY = Field(7, RW, reset=1)

class Timer(RegisterBank):
    CTRL = Control(0)
    STATUS = Status(4)

    def connect(self, pc):
        self.irq = pc.irq(5)

    def update(self):
        self.irq.set(self.CTRL.ENABLE == 1)
"""


def run(pytester: pytest.Pytester, test: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(timer=DEVICE, test_it=test)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


def test_the_plugin_is_found() -> None:
    """The entry point is what pytest looks for."""
    (plugin,) = (entry for entry in entry_points(group="pytest11") if entry.name == "iobus")
    assert plugin.value == "iobus.testing.plugin"


def test_a_run_without_our_fixtures_pays_next_to_nothing() -> None:
    """The plugin is loaded in every run of pytest, so it loads nothing of iobus but itself."""
    code = "import sys, iobus.testing.plugin; print(*sorted(name for name in sys.modules if name.startswith('iobus')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["iobus", "iobus.testing", "iobus.testing.plugin"]


def test_a_failure_shows_the_last_accesses(pytester: pytest.Pytester) -> None:
    """By register and field name, with the interrupt lines' changes between them, and the time."""
    result = run(
        pytester,
        """
        from timer import Timer

        def test_it(bus):
            timer = Timer()
            bus.attach(timer, 0xD0000000)
            regs = bus.registers(timer)
            assert regs.STATUS.READY == 1
            bus.advance(1500)
            regs.CTRL.write(ENABLE=1)
            bus.read(0xD0001000, 2)
            assert regs.CTRL.ENABLE == 0
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- iobus: the last accesses -*",
            "0.000000 r vcpu0 mmio 0xd0000004 4 0x00000080 Timer STATUS 0x80 (READY=1)",
            "0.000002 irq5 high",
            "0.000002 w vcpu0 mmio 0xd0000000 4 0x00000001 Timer CTRL 0x1 (ENABLE=1)",
            "0.000002 r vcpu0 mmio 0xd0001000 2 0xffff (unclaimed)",
            "0.000002 r vcpu0 mmio 0xd0000000 4 0x00000001 Timer CTRL 0x1 (ENABLE=1)",
        ],
        consecutive=True,
    )


def test_a_long_history_is_cut(pytester: pytest.Pytester) -> None:
    """Twenty lines are shown, and how many there were before; a test that passes shows none."""
    result = run(
        pytester,
        """
        def test_passes(bus):
            bus.read(0, 1)

        def test_short(bus):
            [bus.read(0xD0000000 + 4 * n, 4) for n in range(25)]
            assert False

        def test_long(bus):
            [bus.read(0xD0000000, 4) for n in range(2000)]
            assert False

        def test_none(bus):
            assert False
        """,
    )
    result.assert_outcomes(passed=1, failed=3)
    lines = [line for line in result.outlines if "(unclaimed)" in line or "before these" in line]
    assert len(lines) == 2 * 21 and lines[0] == "(5 before these)" and lines[21] == "(at least 980 before these)"
    assert result.stdout.str().count("iobus: the last accesses") == 2


def test_a_device_error_is_the_failure(pytester: pytest.Pytester) -> None:
    """A device that raises fails the test with its own line in the traceback, and the next test is not affected."""
    result = run(
        pytester,
        """
        from iobus.bus import Device

        class Broken(Device):
            def read(self, offset, size):
                return self.missing

        def test_broken(bus):
            bus.attach(Broken(), 0xD0000000, 16)
            bus.read(0xD0000004, 4)

        def test_next(bus):
            assert bus.read(0xD0000004, 4) == 0xFFFFFFFF
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*AttributeError: 'Broken' object has no attribute 'missing'",
            "E*DeviceError: Broken at region 'Broken': 4-byte read at address 0xd0000004 (offset 0x4): AttributeError*",
        ]
    )


def test_a_loop_in_a_device_fails_its_test_only(pytester: pytest.Pytester) -> None:
    """The whole run goes on."""
    result = run(
        pytester,
        """
        from iobus.bus import Device

        class Loop(Device):
            def read(self, offset, size):
                while True:
                    pass

        def test_loop(bus):
            bus.time_limit = 0.2
            bus.attach(Loop(), 0xD0000000, 16)
            bus.read(0xD0000004, 4)

        def test_next(bus):
            assert bus.read(0xD0000004, 4) == 0xFFFFFFFF
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["E*DeviceError: Loop at region 'Loop': *no answer after 0.2 s, at test_it.py:* in read"]
    )


def test_machines_are_let_go(pytester: pytest.Pytester) -> None:
    """A machine does not live on in what pytest keeps of its tests, whether they failed or not."""
    result = run(
        pytester,
        """
        import gc, weakref
        import pytest
        kept = []

        @pytest.mark.parametrize("n", range(6))
        def test_it(bus, n):
            kept.append(weakref.ref(bus.machine))
            bus.read(0, 4)

        def test_gone():
            gc.collect()
            assert [ref() for ref in kept] == [None] * 6
        """,
    )
    result.assert_outcomes(passed=7)


WATCHED = """
import pytest
from timer import Timer

class Bell(Timer):
    def placed(self, region):
        self.machine.watch(region.doorbell(0, 4), self.rung)

    def connect(self, pc):
        super().connect(pc)
        self.machine = pc.machine

    def rung(self):
        1 // 0

@pytest.fixture
def bell(bus):
    bus.attach(Bell(), 0xD0000000)
    return bus

def test_that_ends_with_the_ring(bell):
    bell.write(0xD0000000, 4, 1)

def test_that_fails_otherwise(bell):
    bell.write(0xD0000000, 4, 1)
    assert bell.pins[5].level

def test_beside(bell):
    pass
"""


def test_no_error_of_a_watched_event_is_lost(pytester: pytest.Pytester) -> None:
    """A test that passed fails with it, one that failed otherwise shows it, and no other test has it."""
    result = run(pytester, WATCHED)
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.re_match_lines_random([
        "E .*WatchError: watch.*Bell.rung.*ZeroDivisionError",
        "E .*assert False",
        ".*iobus: what a callback raised",
        "iobus.watcher.WatchError: watch.*Bell.rung.*ZeroDivisionError.*",
    ])  # fmt: skip
