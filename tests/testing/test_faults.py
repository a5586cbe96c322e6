"""Faults on demand: what fails, how often, and that all is as before when they end. Under a guest: examples/sampler."""

from __future__ import annotations

from typing import Any

import pytest

from iobus.registers import RW, RW1C, Field, Register, RegisterBank, RegisterGroup
from iobus.testing import Bench

BASE = 0xD0000000
ONES = 0xFFFFFFFF


class Number(Register, rest=RW): ...


class Status(Register):
    DONE = Field(0, RW1C, reset=1)


class Channel(RegisterGroup):
    COUNT = Number(0)


class Chip(RegisterBank):
    STATUS = Status(0)
    VALUE = Number(4, reset=5)
    CHANNEL = Channel.array(8, 2, stride=4)

    def connect(self, pc: Any) -> None:
        self.line, self.clock = pc.irq(5, "chip"), pc.machine.clock
        self.timer = self.clock.timer(self.tick, "chip")
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1
        self.line.set(not self.line.level)
        self.timer.arm(self.clock.now() + 100)


@pytest.fixture
def chip(bus: Bench) -> Chip:
    device = Chip()
    bus.attach(device, BASE)
    return device


def test_a_register_that_fails(bus: Bench, chip: Chip) -> None:
    """Reads give all ones and writes are lost, of that register alone, in any size; then it is as it was."""
    regs = bus.registers(chip)
    with bus.faults.fail(chip, "VALUE") as fault:
        assert regs.VALUE.read() == ONES and bus.read(BASE + 5, 1) == 0xFF and bus.read(BASE, 8) == (1 << 64) - 1
        regs.VALUE.write(7)
        assert regs.STATUS.DONE == 1 and regs.CHANNEL[0].COUNT.read() == 0
    assert fault.count == 4
    assert regs.VALUE.read() == 5


def test_so_many_times(bus: Bench, chip: Chip) -> None:
    """The first accesses fail, the next pass; reads alone, writes alone, and with a value of one's own."""
    regs = bus.registers(chip)
    bus.faults.fail(chip, "CHANNEL[1].COUNT", times=2, writes=False, value=0x123456789)
    assert [regs.CHANNEL[1].COUNT.read() for _ in range(3)] == [0x23456789, 0x23456789, 0]
    fault = bus.faults.fail(chip, 4, times=1, reads=False)
    assert regs.VALUE.read() == 5
    regs.VALUE.write(1)
    regs.VALUE.write(2)
    assert regs.VALUE.read() == 2 and fault.count == 1


def test_a_fault_follows_its_device(bus: Bench, chip: Chip) -> None:
    """Where the region has moved to, and it is off with it; the report names the register and the fault."""
    region = bus.machine.mmio.regions[0]
    bus.faults.fail(region)
    region.move(BASE + 0x1000)
    assert bus.read(BASE + 0x1004, 4) == ONES and bus.accesses[-1].region == "Chip (fault)"
    assert "Chip (fault) VALUE 0xffffffff" in bus.history.report()
    region.enable(False)
    bus.read(BASE + 0x1004, 4)
    assert bus.accesses[-1].region is None


def test_what_cannot_fail(bus: Bench, chip: Chip) -> None:
    """Each mistake is an error that says what there is."""
    for where, message in (("COUNT", r"Chip has no register 'COUNT'; it has STATUS, VALUE, CHANNEL\[0\].COUNT"),
                           (0x10, "offset 0x10: Chip has 0x10 bytes")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            bus.faults.fail(chip, where)
    with pytest.raises(ValueError, match="Chip is not attached"):
        bus.faults.fail(Chip())
    bus.faults.lose_interrupt(5)
    with pytest.raises(ValueError, match="interrupt 5 has a fault already"):
        bus.faults.delay_interrupt(5, 10)


def test_surprise_removal(bus: Bench, chip: Chip) -> None:
    """All ones everywhere, writes lost, its line low, its timers still; whatever it does by itself reaches nobody."""
    chip.timer.arm(0)
    bus.advance(0)
    assert bus.pins[5].level
    bus.faults.remove(chip)
    bus.write(BASE + 4, 4, 9)
    assert [bus.read(BASE + offset, 4) for offset in (0, 4, 8)] == [ONES] * 3 and chip.VALUE.value == 5
    assert not bus.pins[5].level
    bus.advance(1000)
    chip.line.pulse()
    assert chip.ticks == 1 and bus.pins[5].count == 1
    with pytest.raises(ValueError, match="Chip is not attached"):
        bus.faults.remove(chip)
    bus.attach(Chip(), BASE)
    assert bus.read(BASE + 4, 4) == 5


def test_a_late_interrupt(bus: Bench, chip: Chip) -> None:
    """Its edges come that much later, in their order and distance; the end of the fault brings what is on its way."""
    pin, seen = bus.pins[5], list[tuple[int, bool]]()
    pin.listen(lambda level: seen.append((bus.clock.now(), level)))
    fault = bus.faults.delay_interrupt(5, 1000, times=1)
    chip.line.set(True)
    bus.advance(300)
    chip.line.set(False)
    bus.advance(2000)
    assert seen == [(1000, True), (1300, False)]
    chip.line.pulse()
    assert seen[2:] == [(2300, True), (2300, False)] and fault.count == 1
    fault.end()
    fault = bus.faults.delay_interrupt(5, 1000)
    chip.line.set(True)
    assert not pin.level
    fault.end()
    assert pin.level
    chip.line.set(False)
    bus.advance(5000)
    assert not pin.level and pin.count == 3


def test_a_lost_interrupt(bus: Bench, chip: Chip) -> None:
    """The line goes up and the pin does not, so many times; a line that is up when the fault ends is seen."""
    pin = bus.pins[5]
    fault = bus.faults.lose_interrupt(5, times=1)
    chip.line.pulse()
    assert (pin.count, fault.count) == (0, 1)
    chip.line.pulse()
    assert (pin.count, pin.level) == (1, False)
    fault.end()
    with bus.faults.lose_interrupt(5):
        chip.line.set(True)
        assert not pin.level
    assert pin.level
    chip.line.set(False)
    assert not pin.level
