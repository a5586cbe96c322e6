"""The bench, which is the fixture `bus`: accesses as a guest makes them, interrupts, RAM, time, registers by name."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from iobus.bus import Device, DeviceError, Region
from iobus.clock import RealClock, TimerError
from iobus.machine import Machine, UnclaimedAccess
from iobus.registers import RW, RW1C, WO, Field, R, Register, RegisterBank, RegisterGroup, Values, bits
from iobus.testing import Bench
from iobus.watcher import WatchError

BASE = 0xD0000000


class Echo(Device):
    """Keeps what was written, of any size; raises its line while that is odd."""

    length = 0x100

    def __init__(self, irq: int = 5) -> None:
        self.value = 0
        self.irq = irq

    def connect(self, pc: Any) -> None:
        self.line = pc.irq(self.irq, "echo")

    def read(self, offset: int, size: int) -> int:
        return self.value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value
        self.line.set(bool(value & 1))


def test_a_class_is_no_device(bus: Bench) -> None:
    """It is refused before its `connect` is called, as a function without a device."""
    with pytest.raises(TypeError, match=r"^attach Echo\(\), an instance; got the class Echo$"):
        bus.attach(Echo, BASE)  # type: ignore[arg-type]


def test_accesses_reach_the_device(bus: Bench) -> None:
    """Memory-mapped and at ports, in each size; `connect` gets the bench; a region may move."""
    region = bus.attach(Echo(), BASE)
    bus.attach_ports(Echo(), 0x300, 4)
    for size in (1, 2, 4, 8):
        bus.write(BASE, size, (1 << 8 * size) - 2)
        assert bus.read(BASE, size) == (1 << 8 * size) - 2
    for size in (1, 2, 4):
        bus.port_out(0x300, size, (1 << 8 * size) - 2)
        assert bus.port_in(0x300, size) == (1 << 8 * size) - 2
    region.move(BASE + 0x1000)
    assert bus.read(BASE, 4) == 0xFFFFFFFF and bus.read(BASE + 0x1000, 1) == 0xFE


def test_what_nobody_claims(bus: Bench, machine: Machine) -> None:
    """It reads as all ones, writes are dropped, and both are counted by address."""
    assert (bus.read(BASE, 1), bus.read(BASE, 8), bus.port_in(0x80, 2)) == (0xFF, (1 << 64) - 1, 0xFFFF)
    bus.write(BASE, 4, 0)
    bus.port_out(0x80, 4, 0)
    assert machine.unclaimed == {
        UnclaimedAccess("mmio", BASE, False): 2,
        UnclaimedAccess("mmio", BASE, True): 1,
        UnclaimedAccess("pio", 0x80, False): 1,
        UnclaimedAccess("pio", 0x80, True): 1,
    }
    assert [access.region for access in bus.accesses] == [None] * 5


def test_ram_lies_over_devices(bus: Bench) -> None:
    """As for a guest: where RAM is, accesses are RAM's, and no device sees them."""
    bus.attach(Echo(), 0x8000)
    bus.write(0x8000, 4, 0x12345678)
    assert bus.read(0x8002, 2) == 0x1234 and bus.memory.load(0x8000, 4) == 0x12345678
    assert bus.accesses == []


def test_interrupts_are_counted(bus: Bench) -> None:
    """A pin tells its level and how often it went high; two devices share one."""
    bus.attach(Echo(), BASE)
    bus.attach(Echo(), BASE + 0x1000)
    assert (bus.pins[5].level, bus.pins[5].count) == (False, 0)
    bus.write(BASE, 4, 1)
    bus.write(BASE + 0x1000, 4, 1)
    bus.write(BASE, 4, 2)
    assert (bus.pins[5].level, bus.pins[5].count) == (True, 1)
    bus.write(BASE + 0x1000, 4, 2)
    assert (bus.pins[5].level, bus.pins[5].count) == (False, 1)
    with pytest.raises(ValueError, match="interrupt 24: use 0 to 23"):
        bus.irq(24)


def test_memory_for_dma(bus: Bench) -> None:
    """`alloc` gives RAM to nobody twice, aligned as asked, up to the RAM's end; devices reach it by DMA."""
    first, second = bus.alloc(100), bus.alloc(0x1000, 0x1000)
    assert first > 0 and first % 16 == 0 and second % 0x1000 == 0 and first + 100 <= second
    bus.dma(Device()).write(first, b"by the device")
    assert bus.memory.read(first, 13) == b"by the device"
    for size, align in ((0, 16), (1, 3), (1 << 20, 16)):
        with pytest.raises(ValueError, match=f"^{size} bytes"):
            bus.alloc(size, align)


@pytest.mark.parametrize(("address", "size", "value"), [(0, 3, 0), (0xFFE, 4, 0), (-4, 4, 0), (0, 1, 256), (0, 4, -1)])
def test_accesses_that_no_guest_makes(bus: Bench, address: int, size: int, value: int) -> None:
    """An odd size, an access over two pages, a value that does not fit: an error that says so, and no access."""
    with pytest.raises(ValueError, match=f"{size} bytes"):
        bus.write(address, size, value)
    assert bus.accesses == []


@pytest.mark.parametrize(("port", "size"), [(0, 8), (0xFFFF, 2), (-1, 1)])
def test_ports_that_no_guest_has(bus: Bench, port: int, size: int) -> None:
    """As above, for ports."""
    with pytest.raises(ValueError, match="1, 2 or 4 within 0x10000"):
        bus.port_in(port, size)


def test_a_bench_needs_a_clock_that_stands_still() -> None:
    """A machine with the real clock is refused: tests would wait for time."""
    with Machine(clock=RealClock()) as machine, pytest.raises(ValueError, match="SteppedClock"):
        Bench(machine)


# Time, and work elsewhere.


class Timer(Device):
    """Raises its line so many ns after each write."""

    length = 4

    def __init__(self, after: int) -> None:
        self.after = after

    def connect(self, pc: Any) -> None:
        self.clock, self.line = pc.machine.clock, pc.irq(7)
        self.timer = self.clock.timer(self.expired, "the timer")

    def expired(self) -> None:
        self.line.pulse()

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.timer.arm(self.clock.now() + self.after)


def test_time_passes_when_the_test_says_so(bus: Bench) -> None:
    """A timer fires at its own time and not before; one that raises fails `advance` and names itself."""
    timer = Timer(1000)
    bus.attach(timer, BASE)
    bus.write(BASE, 4, 1)
    bus.advance(999)
    assert bus.pins[7].count == 0
    bus.advance(1)
    assert bus.pins[7].count == 1
    del timer.line
    bus.write(BASE, 4, 1)
    with pytest.raises(TimerError, match="timer 'the timer' due at 2000 ns: AttributeError"):
        bus.advance(5000)


class Background(Device):
    """Does its work on a thread: BUSY reads 1 until that is done and back."""

    length = 4

    def __init__(self, go: threading.Event) -> None:
        self.go = go
        self.busy = False

    def connect(self, pc: Any) -> None:
        self.clock, self.line = pc.machine.clock, pc.irq(3)

    def read(self, offset: int, size: int) -> int:
        return int(self.busy)

    def write(self, offset: int, size: int, value: int) -> None:
        self.busy = True
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        self.go.wait(20)
        self.clock.call_soon(self.done)

    def done(self) -> None:
        self.busy = False
        self.line.pulse()


class Asynchronous(Background):
    """Does it in asyncio."""

    def work(self) -> None:
        async def main() -> None:
            await asyncio.to_thread(self.go.wait, 20)

        asyncio.run(main())
        self.clock.call_soon(self.done)


@pytest.mark.parametrize("kind", [Background, Asynchronous])
def test_work_elsewhere_comes_back(bus: Bench, kind: type[Background]) -> None:
    """The device answers meanwhile, and is called back under the machine lock when the test waits for it."""
    go = threading.Event()
    bus.attach(kind(go), BASE)
    bus.write(BASE, 4, 1)
    bus.advance(1_000_000)
    assert bus.read(BASE, 4) == 1
    go.set()
    bus.wait_for(lambda: bus.pins[3].count > 0)
    assert bus.read(BASE, 4) == 0


def test_waiting_in_vain(bus: Bench) -> None:
    """`wait_for` ends when its time is over."""
    with pytest.raises(TimeoutError, match=r"not true after 0.01 s"):
        bus.wait_for(lambda: False, seconds=0.01)


# Registers by name.


class Mode(Values):
    STOP = 0
    RUN = 3


class Control(Register):
    ENABLE = Field(0, RW)
    MODE = Field(bits(5, 4), RW, values=Mode)


class Status(Register):
    DONE = Field(0, RW1C, reset=1)
    ERROR = Field(1, RW1C, reset=1)


class Command(Register, width=16):
    GO = Field(15, WO)


class Level(Register, width=8, rest=R): ...


class Channel(RegisterGroup):
    CONTROL = Control(0)
    COMMAND = Command(4)
    LEVEL = Level.array(6, 2, reset=0x50)


class Bank(RegisterBank):
    STATUS = Status(0)
    CHANNEL = Channel.array(0x10, 2, stride=0x10)


def test_registers_by_name(bus: Bench) -> None:
    """Reads and writes by name are accesses of the register's size at its address: no more of them, and no fewer."""
    bank = Bank()
    bus.attach(bank, BASE)
    regs = bus.registers(bank)
    assert regs.STATUS.DONE == 1
    regs.STATUS.write(DONE=1)
    assert regs.STATUS.read() == 2
    one = regs.CHANNEL[1]
    one.CONTROL.write(ENABLE=1, MODE="RUN")
    one.CONTROL.modify(ENABLE=0)
    assert one.CONTROL.MODE == Mode.RUN and one.CONTROL["ENABLE"] == 0
    one.CONTROL.write(MODE=Mode.STOP)
    one.COMMAND.write(0x8000)
    assert regs["CHANNEL"][0].LEVEL[1].read() == 0x50
    assert [(access.offset, access.size, access.is_write, access.value) for access in bus.accesses] == [
        (0, 4, False, 3), (0, 4, True, 1), (0, 4, False, 2),
        (0x20, 4, True, 0x31), (0x20, 4, False, 0x31), (0x20, 4, True, 0x30), (0x20, 4, False, 0x30),
        (0x20, 4, False, 0x30), (0x20, 4, True, 0), (0x24, 2, True, 0x8000), (0x17, 1, False, 0x50),
    ]  # fmt: skip


def test_registers_follow_their_region(bus: Bench) -> None:
    """They are found by region too, at ports, in big-endian regions, and where a region has moved to."""
    bank = Bank()
    port = bus.attach_ports(bank, 0x200)
    assert bus.registers(port).STATUS.read() == 3
    assert bus.accesses[-1].space == "pio"
    big = bus.attach(Bank(), BASE, endian="big", implements=(4,))
    big.move(BASE + 0x1000)
    regs = bus.registers(big)
    regs.CHANNEL[0].CONTROL.write(ENABLE=1)
    assert bus.read(BASE + 0x1010, 4) == 0x01000000 and regs.CHANNEL[0].CONTROL.ENABLE == 1


def test_names_that_are_none(bus: Bench) -> None:
    """Each mistake is an error that says what there is, and no access."""
    bank = Bank()
    with pytest.raises(ValueError, match="Bank is not attached"):
        bus.registers(bank)
    bus.attach(bank, BASE)
    bus.attach(Echo(), BASE + 0x1000)
    regs = bus.registers(bank)
    with pytest.raises(TypeError, match="Echo has no register map"):
        bus.registers(bus.machine.mmio.regions[1])
    for mistake, kind, message in (
        (lambda: regs.STATE, AttributeError, "Bank has no register 'STATE'; it has STATUS, CHANNEL"),
        (lambda: regs.STATUS.BUSY, AttributeError, "Bank.STATUS has no field 'BUSY'; it has DONE, ERROR"),
        (lambda: regs.CHANNEL[2], IndexError, r"Bank.CHANNEL\[2\]: it has 2 elements"),
        (lambda: setattr(regs, "STATUS", 1), AttributeError, r"use .write\(1\)"),
        (lambda: setattr(regs.STATUS, "DONE", 1), AttributeError, r"use .write\(DONE=1\)"),
        (lambda: regs.STATUS.write(), TypeError, "give a value, or fields by name"),
        (lambda: regs.STATUS.write(1, DONE=1), TypeError, "give a value, or fields by name"),
        (lambda: regs.STATUS.write(DONE=2), ValueError, "takes 0 to 1"),
        (lambda: regs.CHANNEL[0].CONTROL.write(MODE="WALK"), ValueError, "no value 'WALK'; it has STOP, RUN"),
    ):
        with pytest.raises(kind, match=message):
            mistake()
    assert bus.accesses == []


# A device that fails.


class Failing(Device):
    """Fails in a way of its own at each offset; offset 0 answers."""

    length = 0x100

    def read(self, offset: int, size: int) -> Any:
        if offset == 8:
            raise KeyError("no such register")
        return {0: 0x1234, 16: None, 24: 1 << 8 * size, 32: -1}[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        raise ZeroDivisionError("no divisor")


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (8, "4-byte read at address 0xd0000008 .*KeyError: 'no such register'"),
        (16, "read returned None; it must be an int from 0 to 0xffffffff, or NotImplemented"),
        (24, "read returned 0x100000000; it must be an int from 0 to 0xffffffff"),
        (32, "read returned -0x1; it must be"),
    ],
)
def test_a_device_that_fails(bus: Bench, offset: int, message: str) -> None:
    """An exception, no value, one that is too large or negative: the error names device and access, and all goes on."""
    bus.attach(Failing(), BASE)
    with pytest.raises(DeviceError, match=f"Failing at region 'Failing': .*{message}"):
        bus.read(BASE + offset, 4)
    with pytest.raises(DeviceError, match=r"4-byte write of 0x7 at address 0xd0000000.*no divisor"):
        bus.write(BASE, 4, 7)
    assert bus.read(BASE, 4) == 0x1234
    bus.advance(100)


class Queue(Device):
    """Rings a doorbell for work, which divides by what was written, and interrupts by an event when it is done."""

    length = 0x10

    def connect(self, pc: Any) -> None:
        self.machine, self.done = pc.machine, pc.irq_event(6, "done")
        self.divisor = 1

    def placed(self, region: Region) -> None:
        self.machine.watch(region.doorbell(0, 4), self.work)

    def write(self, offset: int, size: int, value: int) -> None:
        self.divisor = value

    def read(self, offset: int, size: int) -> int:
        return self.divisor

    def work(self) -> None:
        assert 60 // self.divisor
        self.done.ring()


@pytest.mark.iobus_engine("none", "unicorn", "kvm")
def test_an_event_interrupts(bus: Bench) -> None:
    """`irq_event` is there as on a PC: each ring is an edge at the interrupt."""
    bus.attach(Queue(), BASE)
    for count in (1, 2):
        bus.write(BASE, 4, 1)
        bus.wait_for(lambda count=count: bus.pins[6].count == count)  # type: ignore[misc]
    assert not bus.pins[6].level
    with pytest.raises(ValueError, match="interrupt 24: use 0 to 23"):
        bus.irq_event(24)


OPERATIONS: list[Callable[[Bench], object]] = [
    lambda bus: bus.wait_for(lambda: False, 60),
    lambda bus: bus.advance(1),
    lambda bus: bus.read(BASE + 4, 4),
    lambda bus: bus.write(BASE + 4, 4, 3),
    lambda bus: bus.port_in(0x80, 1),
    lambda bus: bus.port_out(0x80, 1, 0),
    lambda bus: bus.check(),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_a_watched_event_raises_the_next_operation_does(bus: Bench, operation: Callable[[Bench], object]) -> None:
    """`WatchError` names the callback and has the cause; it is raised once, and the bench is whole."""
    bus.attach(Queue(), BASE)
    bus.write(BASE + 4, 4, 0)
    bus.write(BASE, 4, 1)
    bus.machine._watcher.settle()  # the ring has been acted on, by either thread
    with pytest.raises(WatchError, match=r"watch\(.*Queue\.work.*ZeroDivisionError") as caught:
        operation(bus)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    bus.write(BASE + 4, 4, 2)
    bus.check()
    bus.write(BASE, 4, 1)
    bus.wait_for(lambda: bus.pins[6].count == 1)
