"""The copier without a CPU, then under its Linux driver."""

from pathlib import Path

import pytest
from copier import Copier

from iobus.testing import Bench, Guest

AT = 0xD0000000


@pytest.mark.iobus_engine("none", "unicorn", "kvm")
def test_a_copy(bus: Bench) -> None:
    """BUSY while it goes on, a nanosecond a byte; then the bytes are there, and the interrupt is up until taken."""
    copier = Copier()
    bus.attach(copier, AT)
    regs = bus.registers(copier)
    source, target = bus.alloc(100), bus.alloc(100)
    bus.memory.write(source, bytes(range(100)))

    regs.SOURCE.write(source)
    regs.TARGET.write(target)
    regs.LENGTH.write(100)
    regs.CTRL.write(START=1, ENABLE=1)
    bus.advance(99)
    assert regs.STATUS.BUSY == 1 and not bus.pins[10].level
    bus.advance(1)
    assert bus.memory.read(target, 100) == bytes(range(100))
    assert regs.STATUS.read() == 1 and bus.pins[10].level
    regs.STATUS.write(DONE=1)
    assert not bus.pins[10].level


def test_a_length_that_is_none(bus: Bench) -> None:
    """Zero, and more than a MiB, are refused."""
    copier = Copier()
    bus.attach(copier, AT)
    regs = bus.registers(copier)
    for length in (0, (1 << 20) + 1):
        regs.LENGTH.write(length)
        regs.CTRL.write(START=1)
        assert regs.STATUS.ERROR == 1
        regs.STATUS.write(ERROR=1)


@pytest.fixture
def copier(guest: Guest) -> Copier:
    """The device and its driver in a running Linux."""
    device = Copier()
    guest.attach(device, at=AT)
    guest.insmod(guest.build(Path(__file__).with_name("copier.c")))
    return device


@pytest.mark.slow
def test_the_driver_copies(guest: Guest, copier: Copier) -> None:
    """What is written comes back, by DMA and one interrupt for each write."""
    shown = guest.run("head -c 4096 /dev/urandom >a; cat a >/dev/copier; cat /dev/copier >b; cmp a b && echo same")
    assert shown.output == "same\n"
    guest.run("for word in one two; do echo $word >/dev/copier; done; cat /dev/copier", check=True)
    assert guest.interrupts(10) == guest.pc.pins[10].count == 3
    assert copier.STATUS.DONE == 0 and not copier.irq.level


@pytest.mark.slow
def test_the_driver_gives_up(guest: Guest, copier: Copier) -> None:
    """An interrupt that never comes: the writer gets an error after a second, and no hang; the next has no trouble."""
    with guest.faults.lose_interrupt(10, times=1):
        assert "Connection timed out" in guest.run("echo word >/dev/copier").output
    assert guest.run("echo next >/dev/copier; cat /dev/copier").output == "next\n"


@pytest.mark.slow
def test_a_late_interrupt(guest: Guest, copier: Copier) -> None:
    """It is waited for, a tenth of a second."""
    with guest.faults.delay_interrupt(10, 100_000_000):
        before = copier.clock.now()
        assert guest.run("echo late >/dev/copier; cat /dev/copier").output == "late\n"
        assert copier.clock.now() - before >= 100_000_000
