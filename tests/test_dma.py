"""DMA beyond plain transfers: lists of pieces, limits, devices of several parts, and waiting in between."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from bus_devices import Bytes, Decliner, Failing, Recorder
from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import Device, DeviceError
from iobus.clock import SteppedClock
from iobus.dma import LIMIT
from iobus.machine import Machine, ReentrancyError

PAGE = 0x1000
DEVICE = 0x10000


def machine_with_ram() -> Machine:
    machine = Machine(clock=SteppedClock())
    machine.memory.add(0, 4 * PAGE)
    return machine


pieces = st.lists(st.tuples(st.integers(0, 4 * PAGE - 64), st.integers(0, 64)), max_size=8)


@given(pieces)
def test_a_list_is_read_as_its_pieces_are(parts: list[tuple[int, int]]) -> None:
    """Gathering gives what reads of the pieces give, one behind the other, whether they overlap or not."""
    machine = machine_with_ram()
    machine.memory.write(0, bytes(n * 7 & 0xFF for n in range(4 * PAGE)))
    dma = machine.dma(Device())
    assert dma.read_list(parts) == b"".join(machine.memory.read(gpa, length) for gpa, length in parts)


@given(pieces, st.binary(max_size=200))
def test_a_list_is_written_as_its_pieces_are(parts: list[tuple[int, int]], data: bytes) -> None:
    """Scattering fills the pieces in order, says how much they took, and leaves alone what the data does not reach."""
    machine, other = machine_with_ram(), machine_with_ram()
    taken = machine.dma(Device()).write_list(parts, data)
    assert taken == min(len(data), sum(length for _, length in parts))
    at = 0
    for gpa, length in parts:
        other.memory.write(gpa, data[at : at + length])
        at += length
    assert machine.memory.read(0, 4 * PAGE) == other.memory.read(0, 4 * PAGE)


def test_a_length_that_no_transfer_has_is_refused() -> None:
    """A guest's nonsense costs no memory and no time: more than the limit is refused, in one piece and in all."""
    dma = machine_with_ram().dma(Device())
    message = f"a call transfers at most {LIMIT}"
    with pytest.raises(ValueError, match=message):
        dma.read(0, LIMIT + 1)
    with pytest.raises(ValueError, match=message):
        dma.read_list((0, PAGE) for _ in range(LIMIT // PAGE + 1))
    with pytest.raises(ValueError, match=message):
        dma.write_list([(0, LIMIT + 1)], b"x")
    with pytest.raises(ValueError, match="neither may be negative"):
        dma.read_list([(0, 4), (8, -4)])
    assert dma.read(4 * PAGE - 4, 8) == bytes(4) + b"\xff" * 4


@pytest.mark.parametrize("times", [1, 2])
def test_again_is_as_the_first_time(times: int) -> None:
    """What the bus remembers of an element changes nothing: decliners are passed, errors and bad answers named."""
    machine = machine_with_ram()
    dma = machine.dma(Device())
    decliner, behind = Decliner(), Recorder()
    machine.mmio.attach(decliner, DEVICE, 0x100)
    machine.mmio.attach(behind, DEVICE, 0x100)
    machine.mmio.attach(Failing(), DEVICE + PAGE, 0x100)
    machine.mmio.attach(Recorder(1 << 32), DEVICE + 2 * PAGE, 0x100)
    for _ in range(times):
        assert dma.read(DEVICE, 4) == b"\x42\0\0\0"
        dma.write(DEVICE, b"1234")
        assert dma.read(DEVICE + 3 * PAGE, 4) == b"\xff" * 4
        with pytest.raises(DeviceError, match="no divisor"):
            dma.read(DEVICE + PAGE, 4)
        with pytest.raises(DeviceError, match="read returned 0x100000000"):
            dma.read(DEVICE + 2 * PAGE, 4)
    assert decliner.calls == behind.calls == [(0, 4), (0, 4, 0x34333231)] * times


class Part(Bytes):
    """One of a device's windows."""

    def __init__(self, whole: Device) -> None:
        super().__init__()
        self.part_of = whole


@pytest.mark.parametrize("times", [1, 2])
def test_dma_to_a_part_of_the_device_itself_is_refused(times: int) -> None:
    """A device with a window a BAR is one device to the check, whichever of them does the DMA."""
    machine = machine_with_ram()
    device = Device()
    control, data, stranger = Part(device), Part(device), Bytes()
    inner = Part(data)  # a part's part
    for number, window in enumerate((control, data, inner, stranger)):
        machine.mmio.attach(window, DEVICE + number * PAGE, 0x10)
    for master in (device, control, inner):
        dma = machine.dma(master)
        for number in range(3):
            for _ in range(times):
                with pytest.raises(ReentrancyError, match=f"DMA to {DEVICE + number * PAGE:#x} reaches the device"):
                    dma.read(DEVICE + number * PAGE, 4)
        assert dma.read(DEVICE + 3 * PAGE, 4) == b"\x10\x11\x12\x13"


class Waiting(Device):
    """Answers a read when data has come: waits for it with the machine lock released, then reads RAM by DMA."""

    def __init__(self, machine: Machine) -> None:
        self.dma = machine.dma(self)
        self.entered = threading.Event()
        self.arrived = threading.Condition(machine.lock)
        self.data: int | None = None

    def read(self, offset: int, size: int) -> int:
        self.entered.set()
        self.arrived.wait_for(lambda: self.data is not None, timeout=20)
        assert self.data is not None
        return self.data


class Reader(Device):
    """Reads another device by DMA."""

    def __init__(self, machine: Machine, to: int) -> None:
        self.dma = machine.dma(self)
        self.to = to

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.dma.read(self.to, size), "little")


def test_a_device_that_waits_stalls_nobody_else() -> None:
    """While one vCPU's read waits on a condition of the machine lock, another vCPU's devices and timers go on.

    That holds in the midst of DMA too: what waits on one thread is not taken for re-entrancy on the other.
    """
    machine = Machine(cpus=2, clock=SteppedClock())
    waiting = Waiting(machine)
    machine.mmio.attach(waiting, DEVICE, 4)
    machine.mmio.attach(Reader(machine, DEVICE), DEVICE + PAGE, 4)
    machine.mmio.attach(Reader(machine, DEVICE + 3 * PAGE), DEVICE + 2 * PAGE, 4)
    machine.mmio.attach(Bytes(), DEVICE + 3 * PAGE, 4)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(machine.vcpus[0].mmio_path.read(DEVICE + PAGE, 4)))
    thread.start()
    assert waiting.entered.wait(20)
    assert machine.vcpus[1].mmio_path.read(DEVICE + 2 * PAGE, 4) == 0x13121110
    fired: list[int] = []
    with machine.lock:
        machine.clock.timer(lambda: fired.append(1)).arm(0)
        machine.clock.run_due()
        assert fired == [1] and not got
        waiting.data = 0xABCD
        waiting.arrived.notify()
    thread.join(20)
    assert got == [0xABCD]
