"""Doorbells and coalesced writes: the same for guest, device and who waits, without a CPU, on Unicorn, on KVM."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from accesses import Accesses, Op
from bus_devices import Bytes, Decliner, Recorder
from rig import MMIO

from iobus.bus import Region
from iobus.doorbell import Doorbell
from iobus.exits import MmioExit

PORT = 0x1230


def attach(guest: Accesses, at: int = MMIO, **options: object) -> tuple[Recorder, Region]:
    device = Recorder(0x5A)
    return device, guest.machine.mmio.attach(device, at, 0x1000, **options)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_doorbell_takes_exactly_its_writes(guest: Accesses, size: int) -> None:
    """A write of that offset and size rings and does not reach the device; others, and reads, do."""
    device, region = attach(guest)
    bell = region.doorbell(0x10, size)
    other = {1: 2, 2: 4, 4: 2}[size]
    ops = [Op(MMIO + 0x10, size, 7), Op(MMIO + 0x10, size, 8), Op(MMIO + 0x10, other, 9)]
    ops += [Op(MMIO + 0x10 + size, size, 1), Op(MMIO + 0x10, size)]
    assert guest.make(ops) == [0x5A]
    assert bell.take() == 2 and bell.take() == 0
    assert device.calls == [(0x10, other, 9), (0x10 + size, size, 1), (0x10, size)]


def test_eight_bytes_ring_where_the_guest_has_them(guest: Accesses) -> None:
    """A doorbell of 8 bytes is rung by a 64-bit store; Unicorn makes two of 4 bytes of it, which are not its."""
    device, region = attach(guest)
    bell, half = region.doorbell(8, 8), region.doorbell(12, 4)
    guest.store(MMIO + 8, 8, 1 << 63)
    assert (bell.take(), half.take(), device.calls) == ((0, 1, [(8, 4, 0)]) if guest.kind == "unicorn" else (1, 0, []))


def test_a_value_has_its_own_doorbell(guest: Accesses) -> None:
    """With a value, only that value rings; two queues share a register so (virtio's notify)."""
    device, region = attach(guest)
    bells = [region.doorbell(0x50, 4, queue) for queue in (0, 1)]
    guest.make([Op(MMIO + 0x50, 4, value) for value in (1, 0, 1, 2)])
    assert [bell.take() for bell in bells] == [1, 2]
    assert device.calls == [(0x50, 4, 2)]


def test_the_value_is_the_one_that_the_device_would_see(guest: Accesses) -> None:
    """In a big-endian region the bytes are swapped before they are compared."""
    device, region = attach(guest, endian="big")
    bell = region.doorbell(0, 2, 0x1234)
    guest.make([Op(MMIO, 2, 0x1234), Op(MMIO, 2, 0x3412)])
    assert (bell.take(), device.calls) == (1, [(0, 2, 0x3412)])


def test_a_doorbell_is_of_the_guests_size(guest: Accesses) -> None:
    """Where the device implements bytes only, a write of 4 rings the doorbell of 4 and none of 1."""
    device, region = attach(guest, implements=(1,))
    four, one = region.doorbell(4, 4), region.doorbell(8, 1)
    guest.make([Op(MMIO + 4, 4, 1), Op(MMIO + 8, 4, 0x04030201), Op(MMIO + 8, 1, 1)])
    assert (four.take(), one.take()) == (1, 1)
    assert device.calls == [(8, 1, 1), (9, 1, 2), (10, 1, 3), (11, 1, 4)]


def test_ports_have_doorbells(guest: Accesses) -> None:
    """A region on the bus of ports has them too."""
    device = Recorder(0x11)
    bell = guest.machine.pio.attach(device, PORT, 8).doorbell(2, 2)
    guest.make([Op(PORT + 2, 2, 0xFFFF, True), Op(PORT + 2, 1, 3, True), Op(PORT + 2, 2, 4, True)])
    assert (bell.take(), device.calls) == (2, [(2, 1, 3)])


def test_a_doorbell_goes_where_its_region_goes(guest: Accesses) -> None:
    """Moved, it is at the new place only; switched off, nowhere; closed, the device has the writes."""
    device, region = attach(guest)
    bell = region.doorbell(0, 4)
    region.move(MMIO + 0x1000)
    guest.make([Op(MMIO, 4, 1), Op(MMIO + 0x1000, 4, 2)])
    assert bell.take() == 1 and guest.exits == [MmioExit(MMIO, 4, True, 1)]
    region.enable(False)
    guest.store(MMIO + 0x1000, 4, 3)
    assert bell.take() == 0 and guest.exits[1:] == [MmioExit(MMIO + 0x1000, 4, True, 3)]
    region.enable()
    guest.store(MMIO + 0x1000, 4, 4)
    assert bell.take() == 1 and device.calls == []
    bell.close()
    guest.store(MMIO + 0x1000, 4, 5)
    assert device.calls == [(0, 4, 5)] and region.doorbells == ()
    other = region.doorbell(0, 4)
    region.detach()
    guest.store(MMIO + 0x1000, 4, 6)
    assert other.take() == 0 and guest.exits[2:] == [MmioExit(MMIO + 0x1000, 4, True, 6)]


def test_who_comes_first_at_an_address_has_it_before_a_doorbell(guest: Accesses) -> None:
    """A region of higher priority, and the vCPU's own, lie over a doorbell; where they decline, it rings."""
    _, region = attach(guest)
    bell = region.doorbell(0, 4)
    above = guest.machine.mmio.attach(Recorder(), MMIO, 4, priority=1)
    guest.store(MMIO, 4, 1)
    assert above.device.calls == [(0, 4, 1)] and bell.take() == 0
    above.detach()
    own = guest.vcpu.mmio.attach(Recorder(), MMIO, 4)
    guest.store(MMIO, 4, 2)
    assert own.device.calls == [(0, 4, 2)] and bell.take() == 0
    own.detach()
    guest.machine.mmio.attach(Decliner(), MMIO, 4, priority=1)
    guest.store(MMIO, 4, 3)
    assert bell.take() == 1


def test_in_range_in_front_is_asked(guest: Accesses) -> None:
    """A claimant that tells by itself what it claims is asked before a doorbell behind it."""

    class Sometimes(Recorder):
        mine = True

        def in_range(self, address: int, size: int) -> bool:
            return self.mine and address == MMIO

    device = Sometimes()
    guest.machine.mmio.attach(device)
    bell = attach(guest)[1].doorbell(0, 4)
    guest.store(MMIO, 4, 1)
    assert (device.calls, bell.take()) == ([(MMIO, 4, 1)], 0)
    device.mine = False
    guest.store(MMIO, 4, 2)
    assert bell.take() == 1


def test_a_doorbell_of_a_vcpus_own_device_is_that_vcpus(guests: Callable[[int], Accesses]) -> None:
    """At the same address another vCPU does not ring it."""
    guest = guests(2)
    bell = guest.vcpu.mmio.attach(Recorder(), MMIO, 8).doorbell(0, 4)
    guest.store(MMIO, 4, 1, cpu=1)
    assert bell.take() == 0 and len(guest.exits) == 1
    guest.store(MMIO, 4, 1)
    assert bell.take() == 1


def test_a_thread_waits_for_a_doorbell(guest: Accesses) -> None:
    """`wait` in another thread returns when the guest rings, and gives 0 when its time has passed."""
    bell = attach(guest)[1].doorbell(0, 4)
    assert bell.wait(0.001) == 0
    rings: list[int] = []
    thread = threading.Thread(target=lambda: rings.append(bell.wait(60)))
    thread.start()
    guest.store(MMIO, 4, 1)
    thread.join()
    assert rings == [1]


def test_a_device_gives_itself_a_doorbell_inside_a_write(guest: Accesses) -> None:
    """From the next access on, as for `move`."""

    class Armed(Recorder):
        region: Region
        bell: Doorbell

        def write(self, offset: int, size: int, value: int) -> None:
            super().write(offset, size, value)
            self.bell = self.region.doorbell(0, 4)

    device = Armed()
    device.region = guest.machine.mmio.attach(device, MMIO, 8)
    guest.make([Op(MMIO, 4, 1), Op(MMIO, 4, 2), Op(MMIO, 4, 3)])
    assert (device.calls, device.bell.take()) == ([(0, 4, 1)], 2)


# Coalesced writes.


def test_coalesced_writes_are_there_when_run_returns(guest: Accesses) -> None:
    """All of them, in their order and sizes, more than any ring holds."""
    device, region = attach(guest)
    region.coalesce = True
    ops = [Op(MMIO + 4 * (n % 64), (1, 2, 4)[n % 3], n & 0xFF) for n in range(400)]
    guest.make(ops)
    assert device.calls == [(op.address - MMIO, op.size, op.value) for op in ops]


def test_a_read_comes_after_the_writes_before_it(guest: Accesses) -> None:
    """The register that a guest writes and reads back has what it wrote."""
    device = Bytes(bytes(16))
    guest.machine.mmio.attach(device, MMIO, 16).coalesce = True
    ops = [op for n in range(20) for op in (Op(MMIO, 4, n), Op(MMIO + 4, 2, 2 * n), Op(MMIO, 4), Op(MMIO + 4, 2))]
    assert guest.make(ops) == [value for n in range(20) for value in (n, 2 * n)]


def test_order_is_kept_between_devices_ports_and_exits(guest: Accesses) -> None:
    """One log of two devices, of which one is coalesced, a port and what nobody claims, is in the guest's order."""
    log: list[tuple[str, int]] = []

    class Logging(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            log.append((self.name, value))

    for name, base, coalesce in (("a", MMIO, True), ("b", MMIO + 0x1000, False), ("c", MMIO + 0x2000, True)):
        guest.machine.mmio.attach(Logging(name=name), base, 0x100).coalesce = coalesce
    guest.machine.pio.attach(Logging(name="p"), PORT, 4)
    ops, wanted = [], []
    for n in range(120):
        where = n * n * 7 % 5
        wanted.append(("abcp-"[where], n))
        ops.append(Op(PORT, 1, n, True) if where == 3 else Op(MMIO + 0x1000 * where, 4, n))
    guest.make(ops)
    assert [entry for entry in wanted if entry[0] != "-"] == log
    assert [exit.data for exit in guest.exits] == [n for name, n in wanted if name == "-"]


def test_a_doorbell_in_a_coalesced_region_comes_after_its_writes(guest: Accesses) -> None:
    """Who sees the ring finds the device with all that the guest wrote before."""
    device, region = attach(guest)
    region.coalesce = True
    bell = region.doorbell(0x40, 4)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.extend([bell.wait(60), len(device.calls)]))
    thread.start()
    guest.make([*(Op(MMIO + 4 * n, 4, n) for n in range(16)), Op(MMIO + 0x40, 4, 0)])
    thread.join()
    assert seen == [1, 16]
    assert device.calls == [(4 * n, 4, n) for n in range(16)]


def test_a_coalescing_device_may_move_or_decline(guest: Accesses) -> None:
    """The writes before a move were made at the old place; those that it declines come to the caller."""
    device = Decliner(reads=False)
    region = guest.machine.mmio.attach(device, MMIO, 0x10)
    region.coalesce = True

    class Control(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            region.move(value)

    guest.machine.mmio.attach(Control(), MMIO + 0x1000, 4)
    ops = [
        Op(MMIO, 4, 1),
        Op(MMIO + 4, 4, 2),
        Op(MMIO + 0x1000, 4, MMIO + 0x100),
        Op(MMIO, 4, 3),
        Op(MMIO + 0x108, 4, 4),
    ]
    guest.make(ops)
    assert device.calls == [(0, 4, 1), (4, 4, 2), (8, 4, 4)]
    expected = [(MMIO, 1), (MMIO + 4, 2), (MMIO, 3), (MMIO + 0x108, 4)]
    assert guest.exits == [MmioExit(address, 4, True, value) for address, value in expected]


def test_sizes_that_the_region_has_not_are_not_its(guest: Accesses) -> None:
    """A coalesced region of 4-byte registers leaves other sizes to the next claimant."""
    device, region = attach(guest, sizes=(4,))
    region.coalesce = True
    guest.make([Op(MMIO, 4, 1), Op(MMIO, 2, 2), Op(MMIO + 4, 4, 3)])
    assert device.calls == [(0, 4, 1), (4, 4, 3)]
    assert guest.exits == [MmioExit(MMIO, 2, True, 2)]


def test_a_trace_shows_what_would_be_taken_before(guest: Accesses) -> None:
    """While somebody observes the accesses, rings and coalesced writes are among them, in their order."""
    device, region = attach(guest)
    region.coalesce = True
    region.doorbell(0, 4)
    seen: list[tuple[int, int]] = []
    observer = lambda access: seen.append((access.address - MMIO, access.value))  # noqa: E731
    ops = [Op(MMIO + 4, 4, 1), Op(MMIO, 4, 2), Op(MMIO + 8, 4, 3)]
    guest.vcpu.mmio_path.observe(observer)
    guest.make(ops)
    guest.vcpu.mmio_path.ignore(observer)
    guest.make(ops)
    assert seen == [(4, 1), (0, 2), (8, 3)]
    assert device.calls == [(4, 4, 1), (8, 4, 3)] * 2
