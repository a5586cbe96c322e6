"""The machine: DMA and re-entrancy, the loop of `run` and what ends it, counting, reset, and real timers.

No CPU engine is needed: where `run` is tested, a scripted executor stands in for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from bus_devices import Bytes, Decliner, Recorder

from iobus.bus import Bus, Device, DeviceError
from iobus.clock import RealClock, SteppedClock, TimerError
from iobus.dma import Dma
from iobus.exits import Exit, HltExit, KickExit, MmioExit, PioExit, PowerOffExit, ResetExit, TimeoutExit
from iobus.machine import Machine, ReentrancyError, UnclaimedAccess
from iobus.vcpu import VCPU, Answer, NoExecutor


def machine_with_ram() -> Machine:
    machine = Machine(clock=SteppedClock())
    machine.memory.add(0x1000, 0x2000)
    return machine


# DMA.


def test_dma_to_ram() -> None:
    """RAM is read and written directly, any length, over the border of two slots that touch."""
    machine = machine_with_ram()
    machine.memory.add(0x3000, 0x1000)
    dma = machine.dma(Device())
    data = bytes(range(256)) * 20
    dma.write(0x2801, data)
    assert machine.memory.read(0x2801, len(data)) == data
    assert dma.read(0x2801, len(data)) == data
    assert dma.read(0x1000, 0) == b""


def test_dma_to_a_device_comes_in_aligned_elements() -> None:
    """Another device is accessed in naturally aligned elements of at most 8 bytes, lowest address first."""
    machine, target = machine_with_ram(), Bytes(bytes(32))
    machine.mmio.attach(target, 0x10000, 32)
    dma = machine.dma(Device())
    dma.write(0x10003, bytes(range(3, 22)))
    assert [call[:3] for call in target.calls] == [
        *[("w", 3, 1), ("w", 4, 4), ("w", 8, 8), ("w", 16, 4), ("w", 20, 2)],
    ]
    assert target.data == bytes(3) + bytes(range(3, 22)) + bytes(10)
    assert dma.read(0x10003, 19) == bytes(range(3, 22))


def test_dma_that_nobody_claims() -> None:
    """What is neither RAM nor a device's reads as all ones and drops writes, and is no error."""
    dma = machine_with_ram().dma(Device())
    assert dma.read(0x9_0001, 13) == b"\xff" * 13
    dma.write(0x9_0001, bytes(13))
    assert dma.read(0, 3) == b"\xff" * 3


def test_dma_over_rams_borders() -> None:
    """One transfer from nowhere through RAM into a device is cut at each border and comes together."""
    machine, target = machine_with_ram(), Bytes(b"DEVICE!!")
    machine.mmio.attach(target, 0x3000, 8)
    dma = machine.dma(Device())
    machine.memory.write(0x1000, b"first")
    machine.memory.write(0x2FFC, b"last")
    data = dma.read(0xFFD, 0x200A)
    assert data[:8] == b"\xff\xff\xfffirst" and data[-11:] == b"lastDEVICE!"
    dma.write(0x2FFE, b"RAMdevice")
    assert machine.memory.read(0x2FFE, 2) == b"RA" and target.data == b"Mdevice!"


def test_dma_asks_the_machines_devices_only() -> None:
    """A vCPU's own devices are not on the way of another device's DMA."""
    machine = machine_with_ram()
    own = Recorder()
    machine.vcpus[0].mmio.attach(own, 0x10000, 16)
    assert machine.dma(Device()).read(0x10000, 4) == b"\xff" * 4
    assert own.calls == []


def test_dma_that_a_device_declines_goes_on_in_order() -> None:
    """Declining works for DMA as for a CPU's access."""
    machine, behind = machine_with_ram(), Recorder(0x11)
    machine.mmio.attach(Decliner(), 0x10000, 16)
    machine.mmio.attach(behind, 0x10000, 16)
    assert machine.dma(Device()).read(0x10000, 2) == b"\x11\x00"


@pytest.mark.parametrize(("gpa", "length"), [(-1, 4), (0, -4)])
def test_dma_ranges_are_not_negative(gpa: int, length: int) -> None:
    """A negative address or length is the device's error, and named."""
    with pytest.raises(ValueError, match=f"DMA of {length} bytes at {gpa:#x}: neither may be negative"):
        machine_with_ram().dma(Device()).read(gpa, length)


class Copier(Device):
    """Copies 4 bytes by DMA when written: from the address written, to the address in `to`."""

    def __init__(self, machine: Machine, to: int = 0x1000) -> None:
        self.dma: Dma = machine.dma(self)
        self.to = to
        self.entered = 0

    def read(self, offset: int, size: int) -> int:
        self.entered += 1
        return int.from_bytes(self.dma.read(self.to, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.entered += 1
        self.dma.write(self.to, self.dma.read(value, 4))


def test_a_device_may_do_dma_in_its_callback() -> None:
    """DMA to RAM and to other devices works from inside an access."""
    machine, source = machine_with_ram(), Bytes(b"\x44\x33\x22\x11")
    copier = Copier(machine)
    machine.mmio.attach(copier, 0x10000, 16)
    machine.mmio.attach(source, 0x20000, 4)
    machine.vcpus[0].mmio_path.write(0x10000, 4, 0x20000)
    assert machine.memory.load(0x1000, 4) == 0x11223344


def test_dma_to_the_devices_own_region_is_refused() -> None:
    """A device whose DMA would reach itself gets `ReentrancyError`, the guest's access `DeviceError`, and no loop."""
    machine = machine_with_ram()
    copier = Copier(machine)
    machine.mmio.attach(copier, 0x10000, 16, name="copier")
    message = "Copier at region 'copier': DMA to 0x10008 reaches the device that started it"
    with pytest.raises(DeviceError, match="ReentrancyError") as caught:
        machine.vcpus[0].mmio_path.write(0x10000, 4, 0x10008)
    assert isinstance(caught.value.__cause__, ReentrancyError) and str(caught.value.__cause__) == message
    assert copier.entered == 1
    with pytest.raises(ReentrancyError, match=message):
        copier.dma.read(0x10008, 4)
    machine.memory.store(0x1800, 4, 0x77)
    machine.vcpus[0].mmio_path.write(0x10000, 4, 0x1800)
    assert machine.memory.load(0x1000, 4) == 0x77, "the machine runs on"


def test_dma_to_the_device_itself_through_a_chain_is_refused() -> None:
    """A's DMA reaches B, whose DMA reaches A: refused at that point, with both accesses in the chain of causes."""
    machine = machine_with_ram()
    first, second = Copier(machine), Copier(machine, to=0x10000)
    machine.mmio.attach(first, 0x10000, 16, name="first")
    machine.mmio.attach(second, 0x20000, 16, name="second")
    with pytest.raises(DeviceError) as caught:
        machine.vcpus[0].mmio_path.write(0x10000, 4, 0x20000)
    inner = caught.value.__cause__
    assert caught.value.region == "first" and isinstance(inner, DeviceError) and inner.region == "second"
    assert isinstance(inner.__cause__, ReentrancyError)
    assert "region 'first': DMA to 0x10000 reaches" in str(inner.__cause__)
    assert (first.entered, second.entered) == (1, 1)


def test_dma_that_is_over_bars_nobody() -> None:
    """Only DMA under way counts: afterwards, also after one that was refused, the device may be reached again."""
    machine = machine_with_ram()
    first, second = Copier(machine), Copier(machine)
    machine.mmio.attach(first, 0x10000, 16)
    machine.mmio.attach(second, 0x20000, 16)
    assert first.dma.read(0x20000, 4) == bytes(4)
    with pytest.raises(ReentrancyError):
        first.dma.read(0x10000, 4)
    assert second.dma.read(0x10000, 4) == bytes(4)


def test_a_decliner_in_front_does_not_hide_the_device_from_the_check() -> None:
    """The device itself is refused also where another is asked first and declines, or by `in_range` says no."""
    machine = machine_with_ram()
    copier, decliner = Copier(machine), Decliner()
    machine.mmio.attach(copier, 0x10000, 16)
    machine.mmio.attach(decliner, 0x10000, 16, priority=1)
    with pytest.raises(ReentrancyError):
        copier.dma.read(0x10000, 4)
    assert decliner.calls == [(0, 4)] and copier.entered == 0


def test_another_device_over_the_devices_own_region_is_fine() -> None:
    """What eclipses the device's region and takes the access is another device: no re-entrancy."""
    machine = machine_with_ram()
    copier, over = Copier(machine), Recorder(0x11)
    machine.mmio.attach(copier, 0x10000, 16)
    machine.mmio.attach(over, 0x10000, 16, priority=1)
    assert copier.dma.read(0x10000, 4) == b"\x11\0\0\0"


def test_what_comes_before_the_devices_own_region_is_written() -> None:
    """A transfer is refused where it reaches the device: the RAM before it has been written, as on hardware."""
    machine = machine_with_ram()
    copier = Copier(machine)
    machine.mmio.attach(copier, 0x3000, 16)
    with pytest.raises(ReentrancyError):
        copier.dma.write(0x2FFC, b"12345678")
    assert machine.memory.read(0x2FFC, 4) == b"1234" and copier.entered == 0


def test_a_failing_target_is_reported_to_the_dma() -> None:
    """An exception of the device that DMA reaches is that device's `DeviceError`."""

    class Breaks(Device):
        def read(self, offset: int, size: int) -> int:
            raise OSError("broken")

    machine = machine_with_ram()
    machine.mmio.attach(Breaks(), 0x10000, 16, name="target")
    dma = machine.dma(Device())
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"region 'target': 4-byte read at address 0x10004 .*OSError"):
            dma.read(0x10004, 4)
    assert dma.read(0x1000, 4) == bytes(4)


# run, with a scripted executor.


class Scripted(NoExecutor):
    """Runs a list: an exit is returned, a function called. A kick comes back as `KickExit`, at the next step."""

    def __init__(self, vcpu: VCPU, steps: list[Exit | Callable[[], Any]]) -> None:
        super().__init__()
        self.vcpu = vcpu
        self.steps = steps
        self.kicked = threading.Event()
        self.answers: list[Answer | None] = []

    def run(self, answer: Answer | None) -> Exit:
        self.answers.append(answer)
        while True:
            if self.kicked.is_set():
                self.kicked.clear()
                return KickExit()
            if not self.steps:
                assert self.kicked.wait(5), "the script is at its end and nobody kicks"
                continue
            step = self.steps.pop(0)
            if not callable(step):
                return step
            step()

    def kick(self) -> None:
        self.kicked.set()


def scripted(*steps: Exit | Callable[[], Any], clock: Any = None) -> tuple[Machine, Scripted]:
    machine = Machine(clock=clock or SteppedClock())
    executor = Scripted(machine.vcpus[0], list(steps))
    machine.vcpus[0].executor = executor
    return machine, executor


def test_run_returns_why_the_machine_stopped() -> None:
    """An exit of the CPU's own is the result of `run`."""
    machine, _ = scripted(HltExit())
    assert machine.run() == HltExit()


def test_a_device_stops_the_machine_with_a_reason() -> None:
    """`stop` ends `run` with its reason; when two are given the first counts, and neither is kept for later."""
    machine, executor = scripted()
    executor.steps = [lambda: machine.stop(PowerOffExit()), lambda: machine.stop(ResetExit("late"))]
    assert machine.run() == PowerOffExit()
    executor.steps = [HltExit()]
    machine.stop(ResetExit("i8042"))
    machine.stop(PowerOffExit())
    assert machine.run() == ResetExit("i8042"), "a stop before the run is kept"
    assert machine.run() == HltExit()


def test_a_kick_without_a_reason_does_not_end_the_run() -> None:
    """`VCPU.kick` gets `VCPU.run` to return; the machine's loop goes on."""
    machine, executor = scripted()
    executor.steps = [machine.vcpus[0].kick, machine.vcpus[0].kick, HltExit()]
    assert machine.run() == HltExit()
    executor.steps = [machine.vcpus[0].kick]
    assert machine.vcpus[0].run() == KickExit()


def test_a_timeout_ends_the_run() -> None:
    """`timeout` in seconds gives `TimeoutExit`; a run that ends before is not disturbed."""
    machine, executor = scripted()
    assert machine.run(timeout=0.01) == TimeoutExit(0.01)
    executor.steps = [HltExit()]
    assert machine.run(timeout=60) == HltExit()
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
            assert not thread.is_alive(), "the alarm of a run that has ended is still set"


def test_unclaimed_ones_gives_the_defined_result_and_counts() -> None:
    """The default answers with all ones, and counts by space, address and direction."""
    machine, executor = scripted()
    vcpu = machine.vcpus[0]
    results: list[int] = []

    def access() -> None:
        answer = executor.answers[-1]
        assert answer is not None
        results.extend(answer(vcpu, MmioExit(0xD000, 4, False)) for _ in range(3))
        results.append(answer(vcpu, PioExit(0xD000, 1, False)))
        answer(vcpu, MmioExit(0xD000, 8, True, 5))

    executor.steps = [access, HltExit()]
    machine.run()
    assert results == [0xFFFFFFFF] * 3 + [0xFF]
    assert machine.unclaimed == {
        UnclaimedAccess("mmio", 0xD000, False): 3,
        UnclaimedAccess("pio", 0xD000, False): 1,
        UnclaimedAccess("mmio", 0xD000, True): 1,
    }


def test_unclaimed_stop_gives_the_exit_to_the_caller() -> None:
    """With `unclaimed="stop"` the executor is given no answer, and the exit comes out of `run`."""
    exit = MmioExit(0xD000, 4, False)
    machine, executor = scripted(exit)
    assert machine.run(unclaimed="stop") is exit
    assert executor.answers == [None] and not machine.unclaimed


def test_what_counting_costs_is_bounded() -> None:
    """A guest that reads everywhere fills a bounded counter; what is in it is still counted."""
    machine = Machine(clock=SteppedClock())
    for address in range(70_000):
        assert machine.complete_unclaimed(MmioExit(address, 1, False)) == 0xFF
    machine.complete_unclaimed(MmioExit(0, 1, False))
    assert len(machine.unclaimed) == 1 << 16
    assert machine.unclaimed[UnclaimedAccess("mmio", 0, False)] == 2


def test_an_error_outside_an_access_ends_the_run_once() -> None:
    """`fail` makes `run` raise; the next run goes on."""
    machine, executor = scripted()
    executor.steps = [lambda: machine.fail(TimerError("the PIT")), HltExit()]
    with pytest.raises(TimerError, match="the PIT"):
        machine.run()
    assert machine.run() == HltExit()


# Reset, listing.


class Resettable(Recorder):
    resets = 0

    def reset(self) -> None:
        self.resets += 1


def test_reset_reaches_every_device_once_and_the_cpus() -> None:
    """A device on two buses, or at two addresses, is reset once; one without `reset` is left alone; RAM stays."""

    class Bare:
        def read(self, offset: int, size: int) -> int:
            return 0

        def write(self, offset: int, size: int, value: int) -> None: ...

    machine = machine_with_ram()
    both, own = Resettable(), Resettable()
    machine.mmio.attach(both, 0x10000, 16)
    machine.mmio.attach(both, 0x20000, 16)
    machine.pio.attach(both, 0x60, 1)
    machine.pio.attach(Bare(), 0x70, 2)
    machine.vcpus[0].mmio.attach(own, 0xFEE00000, 0x1000)
    machine.memory.store(0x1000, 4, 5)
    registers = machine.vcpus[0].registers
    registers.rip = 0x1234
    machine.vcpus[0].registers = registers
    assert isinstance(machine.vcpus[0].load(0x90000, 4), MmioExit)
    machine.stop(PowerOffExit())
    machine.reset()
    assert (both.resets, own.resets) == (1, 1)
    assert machine.vcpus[0].registers.rip == 0xFFF0
    assert machine.memory.load(0x1000, 4) == 5
    assert isinstance(machine.vcpus[0].load(0x80000, 4), MmioExit), "an access that waited is dropped"


def test_devices_lists_each_once_in_order() -> None:
    """Machine's memory-mapped devices, its ports', then each vCPU's."""
    machine = Machine(cpus=2)
    a, b, c, d = (Recorder() for _ in range(4))
    machine.vcpus[1].mmio.attach(d, 0, 4)
    machine.vcpus[0].pio.attach(c, 0, 4)
    machine.pio.attach(b, 0, 4)
    machine.pio.attach(a, 4, 4)
    machine.mmio.attach(a, 0, 4)
    assert machine.devices() == [a, b, c, d]


def test_devices_behind_a_device_are_the_machines_too() -> None:
    """What is on a bus of a device's own is listed behind the rest, however deep, and reset once with the machine."""
    machine = Machine()
    hub, inner, leaf, last = (Resettable() for _ in range(4))
    i2c, behind = Bus(0x80, name="i2c"), Bus(0x100, name="behind")
    hub.buses, inner.buses = (i2c,), (behind,)
    i2c.attach(inner, 0x48, 1)
    i2c.attach(leaf, 0x50, 1)
    behind.attach(leaf, 0, 16)
    behind.attach(hub, 16, 16)  # a cycle
    machine.mmio.attach(hub, 0x10000, 16)
    machine.pio.attach(last, 0x60, 1)
    assert machine.devices() == [hub, last, inner, leaf]
    machine.reset()
    assert [device.resets for device in (hub, inner, leaf, last)] == [1, 1, 1, 1]


@pytest.mark.parametrize("cpus", [0, -1])
def test_a_machine_has_a_cpu(cpus: int) -> None:
    """Fewer than one vCPU is refused, and the number named."""
    with pytest.raises(ValueError, match=f"a machine has at least 1 vCPU, not {cpus}"):
        Machine(cpus=cpus)


def test_a_machine_takes_its_engine() -> None:
    """The engine is attached once, makes each vCPU's executor, is named, and is closed with the machine."""
    log: list[str] = []

    class Engine:
        name = "scripted"

        def attach(self, machine: Machine) -> None:
            log.append("attach")

        def executor(self, vcpu: VCPU) -> Scripted:
            log.append(f"executor {vcpu.index}")
            return Scripted(vcpu, [HltExit()])

        def close(self) -> None:
            log.append("close")

    with Machine(Engine(), cpus=2, clock=SteppedClock()) as machine:
        assert repr(machine) == "<Machine on scripted>"
        assert machine.run() == HltExit()
    assert log == ["attach", "executor 0", "executor 1", "close"]


# The real clock's timers.


def test_timers_fire_by_themselves_once_the_machine_has_started() -> None:
    """With the real clock, timers fire with the lock held, on a thread of the machine, from the first run on."""

    def tickers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "iobus-timers"}

    others = tickers()
    with Machine() as machine:
        fired = threading.Event()
        owned: list[bool] = []

        def fire() -> None:
            owned.append(machine.lock.held())
            fired.set()

        timer = machine.clock.timer(fire)
        with machine.lock:
            timer.arm(machine.clock.now())
        assert not fired.wait(0.02), "nothing has run yet"
        machine.started()
        assert fired.wait(5) and owned == [True]
        for delay in (5_000_000_000, 1_000_000):  # a later deadline, then an earlier one: the ticker wakes for it
            fired.clear()
            with machine.lock:
                timer.arm(machine.clock.now() + delay)
        assert fired.wait(2)
        fired.clear()
        machine.clock.call_soon(fire)  # without the lock, from a thread of no machine
        assert fired.wait(2) and all(owned)
        machine.started()
        assert len(tickers() - others) == 1
    assert tickers() <= others


def test_a_deadline_beyond_what_a_thread_can_sleep_is_only_far_away() -> None:
    """A guest may ask for any time: timers that are nearer fire all the same."""
    with Machine() as machine:
        fired = threading.Event()
        with machine.lock:
            machine.clock.timer(lambda: None).arm(1 << 80)
        machine.started()
        for _ in range(2):
            with machine.lock:
                machine.clock.timer(fired.set).arm(machine.clock.now() + 10_000_000)
            assert fired.wait(5)
            fired.clear()


def test_a_timer_that_raises_ends_the_run() -> None:
    """`run` raises `TimerError` with the timer's name and the cause; other timers go on."""

    def boom() -> None:
        raise RuntimeError("boom")

    machine, executor = scripted(clock=RealClock())
    with machine:
        later = threading.Event()
        with machine.lock:
            machine.clock.timer(boom, "PIT channel 0").arm(0)
            machine.clock.timer(later.set, "RTC").arm(1)
        with pytest.raises(TimerError, match="timer 'PIT channel 0' due at 0 ns: RuntimeError: boom"):
            machine.run()
        assert later.wait(5)
        executor.steps = [HltExit()]
        assert machine.run() == HltExit()
