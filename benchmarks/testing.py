"""What tests of devices cost: one without a CPU, and the boot that all tests with the fixture `guest` share.

A device test is timed by running pytest on a file of many and on one of few. The fixture's boot stands beside
QEMU TCG's of the same kernel, initrd and command line, from the start of the process to the agent's first word.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from benchmarks import guests
from benchmarks.report import Row
from iobus.boot.debian import GuestUnavailableError

_LIMIT: Final = 2_000_000  # ns: 500 tests a second
_BOOT: Final = "fixture guest to its shell"
_PEER: Final = "QEMU TCG"

# As a project has them: a device of declared registers with an interrupt, attached anew in each test.
_TESTS: Final = """\
import pytest
from iobus.registers import RW, RW1C, Field, Register, RegisterBank, W, on_write

class Control(Register):
    RING = Field(0, W)
    ENABLE = Field(1, RW)

class Status(Register):
    RUNG = Field(0, RW1C)

class Bell(RegisterBank, length=0x1000):
    CTRL = Control(0)
    STATUS = Status(4)

    def connect(self, pc):
        self.irq = pc.irq(10)

    @on_write(CTRL.RING)
    def ring(self, value):
        self.STATUS.RUNG |= value

    def update(self):
        self.irq.set(bool(self.CTRL.ENABLE and self.STATUS.RUNG))

@pytest.mark.parametrize("number", range({count}))
def test_bell(bus, number):
    bell = Bell()
    bus.attach(bell, 0xD0000000)
    regs = bus.registers(bell)
    regs.CTRL.write(RING=1, ENABLE=1)
    assert regs.STATUS.RUNG == 1 and bus.pins[10].level
    regs.STATUS.write(RUNG=1)
    assert regs.STATUS.RUNG == 0 and not bus.pins[10].level
"""


def run(quick: bool) -> list[Row]:
    """Measure and return the rows."""
    rows = [_device_tests(few=10, many=1010, rounds=1 if quick else 5)]
    try:
        with guests.fixture_files() as files:
            rows.append(_boots(files, runs=1 if quick else 5))
    except GuestUnavailableError as exc:
        rows.append(Row("testing", _BOOT, "s", _PEER, note=str(exc)))
    return rows


def _device_tests(few: int, many: int, rounds: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="iobus-bench-") as directory:
        best = {few: float("inf"), many: float("inf")}
        for _ in range(rounds):
            for count in best:
                file = Path(directory, f"test_{count}.py")
                file.write_text(_TESTS.format(count=count))
                command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
                start = perf_counter()
                subprocess.run(command, cwd=directory, stdout=subprocess.DEVNULL, check=True)
                best[count] = min(best[count], perf_counter() - start)
        ns = (best[many] - best[few]) / (many - few) * 1e9
    return Row("testing", "device test without a CPU", "ns", "(500 a second)", ns, _LIMIT, 1.0)


def _boots(files: guests.Files, runs: int) -> Row:
    missing = guests.qemu_missing()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(runs):
        with guests.fixture_on_iobus() as guest:
            ours.append(guest.wait_for(guests.FIXTURE_UP) - guest.start)
        if not missing:
            with guests.fixture_on_qemu(files) as guest:
                theirs.append(guest.wait_for(guests.FIXTURE_UP) - guest.start)
    return Row(
        "testing", _BOOT, "s", _PEER, median(ours), median(theirs) if theirs else None, None, missing,
        tuple(ours), tuple(theirs),
    )  # fmt: skip
