"""One test of a device, without a CPU and on each engine: what the bench promises, made by a CPU's instructions."""

from __future__ import annotations

from typing import Any

import pytest

from iobus.bus import Device, DeviceError
from iobus.clock import SteppedClock
from iobus.machine import Machine, UnclaimedAccess
from iobus.registers import RW, RW1C, Field, Register, RegisterBank, W, on_write
from iobus.testing import Bench

pytestmark = pytest.mark.iobus_engine("none", "unicorn", "kvm")

BASE = 0xD0000000


class Control(Register):
    START = Field(0, W)
    ENABLE = Field(1, RW)


class Status(Register):
    DONE = Field(0, RW1C)


class Timer(RegisterBank):
    CTRL = Control(0)
    STATUS = Status(4)

    def connect(self, pc: Any) -> None:
        self.irq, self.dma = pc.irq(5, "timer"), pc.machine.dma(self)
        self.clock = pc.machine.clock
        self.timer = self.clock.timer(self.done, "timer")

    @on_write(CTRL.START)
    def start(self, value: int) -> None:
        if value:
            self.timer.arm(self.clock.now() + 1000)

    def done(self) -> None:
        self.STATUS.DONE = 1
        self.dma.write(0x1000, b"done")
        self.update()

    def update(self) -> None:
        self.irq.set(bool(self.CTRL.ENABLE and self.STATUS.DONE))


class Failing(Device):
    """Fails in a way of its own at each offset; 0 answers with what was written."""

    length = 0x100
    value: Any = 0

    def read(self, offset: int, size: int) -> Any:
        if offset == 8:
            raise KeyError("no such register")
        while offset == 16:
            pass
        return {24: 1 << 64, 32: "text"}.get(offset, self.value)

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value


def test_a_device_with_all_it_has(bus: Bench) -> None:
    """Registers by name, time, DMA, an interrupt, and the accesses as they were made."""
    timer = Timer()
    bus.attach(timer, BASE)
    regs = bus.registers(timer)
    regs.CTRL.write(START=1, ENABLE=1)
    bus.advance(999)
    assert regs.STATUS.DONE == 0
    bus.advance(1)
    assert bus.pins[5].level and regs.STATUS.DONE == 1
    assert bus.memory.read(0x1000, 4) == b"done" and bus.read(0x1000, 4) == int.from_bytes(b"done", "little")
    regs.STATUS.write(DONE=1)
    assert (bus.pins[5].level, bus.pins[5].count) == (False, 1)
    assert [(access.offset, access.size, access.is_write, access.value) for access in bus.accesses] == [
        (0, 4, True, 3), (4, 4, False, 0), (4, 4, False, 1), (4, 4, True, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 4])
def test_sizes_and_places(bus: Bench, size: int) -> None:
    """Memory-mapped accesses anywhere in a page and in 40 bits of address, and ports; RAM is RAM."""
    device, value = Failing(), int.from_bytes(bytes(range(0xF0, 0xF0 + size)), "little")
    region = bus.attach(device, BASE)
    bus.attach_ports(device, 0x1234, 16)
    for base in (BASE, BASE + 0x1F00, 0xFF_FFFF_FF00):
        region.move(base)
        bus.write(base + 0x100 - size, size, value)
        assert device.value == value == bus.read(base + 0x100 - size, size)
    bus.port_out(0x1234, size, 0)
    assert device.value == 0 == bus.port_in(0x1234, size)
    bus.write(0x2000, size, value)
    assert bus.memory.load(0x2000, size) == value


def test_eight_bytes(bus: Bench) -> None:
    """In one access, but on Unicorn in two, the lower half first."""
    engine = bus.machine.engine
    bus.attach(Failing(), BASE)
    bus.write(BASE, 8, 0x1122334455667788)
    sizes = [access.size for access in bus.accesses]
    assert sizes == ([4, 4] if engine is not None and engine.name == "unicorn" else [8])


def test_what_nobody_claims(bus: Bench) -> None:
    """All ones, counted by address."""
    assert (bus.read(BASE, 2), bus.port_in(0x80, 1)) == (0xFFFF, 0xFF)
    assert bus.machine.unclaimed == {UnclaimedAccess("mmio", BASE, False): 1, UnclaimedAccess("pio", 0x80, False): 1}


@pytest.mark.parametrize(
    ("offset", "message"),
    [(8, "KeyError"), (16, "no answer after 0.2 s, at test_resident.py"), (24, "read returned 0x1"), (32, "'text'")],
)
def test_a_device_that_fails(bus: Bench, offset: int, message: str) -> None:
    """It raises, loops, returns too large a value, or none: an error that names it each, and the machine goes on."""
    bus.time_limit = 0.2
    bus.attach(Failing(), BASE)
    with pytest.raises(DeviceError, match=f"Failing .* address {BASE + offset:#x} .*{message}"):
        bus.read(BASE + offset, 4)
    bus.write(BASE, 4, 7)
    assert bus.read(BASE, 4) == 7


def test_faults(bus: Bench) -> None:
    """A register that fails, a lost interrupt, surprise removal."""
    timer = Timer()
    bus.attach(timer, BASE)
    regs = bus.registers(timer)
    bus.faults.fail(timer, "STATUS", times=1)
    assert [regs.STATUS.read() for _ in range(2)] == [0xFFFFFFFF, 0]
    with bus.faults.lose_interrupt(5):
        regs.CTRL.write(START=1, ENABLE=1)
        bus.advance(1000)
        assert timer.irq.level and not bus.pins[5].level
    bus.faults.remove(timer)
    assert regs.STATUS.read() == 0xFFFFFFFF and not bus.pins[5].level


@pytest.mark.iobus_engine("unicorn")
def test_an_address_that_no_cpu_has(bus: Bench) -> None:
    """Beyond the CPU's 40 bits: an error that says so."""
    with pytest.raises(ValueError, match="address 0x10000000000: the CPU has 40 bits"):
        bus.read(1 << 40, 4)


@pytest.mark.iobus_engine("none")
def test_the_marks_engine_is_the_machines(machine: Machine, pytester: pytest.Pytester) -> None:
    """Each engine is a test of its own, the closest mark counts, and a name that is none stops the run."""
    assert machine.engine is None and isinstance(machine.clock, SteppedClock)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.iobus_engine("unicorn", "none")
        class TestBoth:
            def test_it(self, bus): ...

            @pytest.mark.iobus_engine("none")
            def test_one(self, machine): ...

            def test_no_machine(self): ...
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-v")
    done.stdout.fnmatch_lines(["*::test_it[[]unicorn[]] PASSED*", "*::test_it[[]none[]] PASSED*",
                               "*::test_one[[]none[]] PASSED*", "*::test_no_machine PASSED*"])  # fmt: skip
    pytester.makepyfile("import pytest\n@pytest.mark.iobus_engine('qemu')\ndef test_it(bus): ...")
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert "iobus_engine('qemu') of test_the_marks_engine_is_the_machines.py::test_it: use" in done.stderr.str() + (
        done.stdout.str()
    )
