"""The examples that are one file each: what their pages say of them."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import threading

import pytest
from alarm import Alarm
from background import Fetcher, Hasher, Mailbox
from i2c import I2c, Thermometer
from nomad import Nomad
from smallest import Smallest

from iobus.clock import SteppedClock
from iobus.machine import Machine
from iobus.testing import Bench

AT = 0xD0000000
ONES = 0xFFFFFFFF


def test_smallest(bus: Bench) -> None:
    """It says who it is; writes are dropped."""
    bus.attach(Smallest(), AT)
    bus.write(AT, 4, 1)
    assert bus.read(AT, 4) == 0x10B05


def test_alarm(bus: Bench) -> None:
    """It rings when the counter has the value, once; an alarm that is set again, or off, rings as set last."""
    alarm = Alarm()
    bus.attach(alarm, AT)
    regs = bus.registers(alarm)
    bus.advance(5_500)
    assert regs.COUNTER.read() == 5
    regs.ALARM.write(100)
    regs.CTRL.write(ENABLE=1)
    regs.ALARM.write(10)
    bus.advance(4_499)
    assert regs.STATUS.RANG == 0
    bus.advance(1)
    assert regs.STATUS.RANG == 1 and bus.pins[10].level and regs.CTRL.ENABLE == 0
    regs.STATUS.write(RANG=1)
    regs.ALARM.write(20)
    regs.CTRL.write(ENABLE=1)
    regs.CTRL.write(ENABLE=0)
    bus.advance(1_000_000_000)
    assert regs.STATUS.RANG == 0 and not bus.pins[10].level


def test_an_alarm_that_is_past(bus: Bench) -> None:
    """It rings when the counter of 32 bits comes round to it."""
    alarm = Alarm()
    bus.attach(alarm, AT)
    bus.advance(10_000)
    bus.registers(alarm).ALARM.write(9)
    bus.registers(alarm).CTRL.write(ENABLE=1)
    bus.advance((2**32 - 2) * 1000)
    assert bus.pins[10].count == 0
    bus.advance(1000)
    assert bus.pins[10].count == 1


@pytest.mark.iobus_engine("none", "unicorn")
def test_nomad(bus: Bench) -> None:
    """It answers where it was told to be, and no more where it was."""
    bus.attach(Nomad(), AT)
    assert bus.read(AT + 4, 4) == AT
    bus.write(AT + 4, 4, 0xE0001234)
    assert bus.read(AT, 4) == ONES
    assert bus.read(0xE0001000, 4) == 0x10B05 and bus.read(0xE0001004, 4) == 0xE0001000


def test_i2c(bus: Bench) -> None:
    """Targets are read and written through the controller; nobody, and a register that is none, is a NACK."""
    i2c, thermometer = I2c(), Thermometer()
    i2c.add(thermometer, 0x48)
    bus.attach(i2c, AT)
    regs = bus.registers(i2c)
    regs.TARGET.write(ADDRESS=0x48, REGISTER=0)
    regs.COMMAND.write(READ=1)
    assert regs.DATA.BYTE == 21 and regs.STATUS.NACK == 0
    regs.TARGET.write(ADDRESS=0x48, REGISTER=1)
    regs.DATA.write(BYTE=30)
    regs.COMMAND.write(WRITE=1)
    assert thermometer.limit == 30 and regs.STATUS.NACK == 0
    for address, register in ((0x49, 0), (0x48, 2)):
        regs.TARGET.write(ADDRESS=address, REGISTER=register)
        regs.COMMAND.write(READ=1)
        assert regs.STATUS.NACK == 1
        regs.STATUS.write(NACK=1)
    assert thermometer in bus.machine.devices()
    bus.machine.reset()
    assert thermometer.limit == 80


def test_hasher(bus: Bench) -> None:
    """It is busy until the work is back, and interrupts once; the machine's time stands still meanwhile."""
    hasher, data = Hasher(), bytes(range(256))
    bus.attach(hasher, AT)
    regs = bus.registers(hasher)
    regs.SOURCE.write(bus.alloc(256))
    regs.LENGTH.write(256)
    bus.memory.write(regs.SOURCE.read(), data)
    regs.CTRL.write(START=1)
    bus.wait_for(lambda: bus.pins[10].count == 1)
    digest = struct.pack(">8I", *(regs.DIGEST[index].read() for index in range(8)))
    assert digest == hashlib.sha256(data).digest() and regs.STATUS.BUSY == 0


def test_fetcher(bus: Bench) -> None:
    """A coroutine's result comes back; the device answers while it is awaited."""
    go = threading.Event()

    async def fetch() -> int:
        await asyncio.to_thread(go.wait, 20)
        return 42

    fetcher = Fetcher(fetch)
    bus.attach(fetcher, AT)
    regs = bus.registers(fetcher)
    regs.CTRL.write(START=1)
    assert regs.STATUS.BUSY == 1
    go.set()
    bus.wait_for(lambda: bus.pins[11].count == 1)
    assert regs.RESULT.read() == 42 and regs.STATUS.BUSY == 0
    fetcher.loop.call_soon_threadsafe(fetcher.loop.stop)


class Entered(Mailbox):
    """Says when it is being read."""

    def __init__(self) -> None:
        self.entered = threading.Event()

    def read(self, offset: int, size: int) -> int:
        self.entered.set()
        return super().read(offset, size)


def test_mailbox() -> None:
    """While one vCPU waits in a read, another one's accesses, and timers, go on; then the read has its value."""
    with Machine(cpus=2, clock=SteppedClock()) as machine:
        bench = Bench(machine)
        mailbox, got, fired = Entered(), list[int](), list[int]()
        bench.attach(mailbox, AT)
        bench.attach(Smallest(), AT + 0x1000)
        reader = threading.Thread(target=lambda: got.append(machine.vcpus[0].mmio_path.read(AT, 4)))
        reader.start()
        assert mailbox.entered.wait(20)
        assert machine.vcpus[1].mmio_path.read(AT + 0x1000, 4) == 0x10B05
        bench.clock.timer(lambda: fired.append(1)).arm(10)
        bench.advance(10)
        assert fired and reader.is_alive() and not got
        mailbox.post(7)
        reader.join(20)
        assert got == [7]
